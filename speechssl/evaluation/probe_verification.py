"""What a probe finds in trials of speaker verification: back-ends, and their errors for every kind of features."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speechssl.config.inference import ProbeConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.errors import DataError
from speechssl.evaluation.plda import PldaScorer
from speechssl.evaluation.probe_features import standardise
from speechssl.evaluation.probe_figures import Figures, Measure, make_fitter
from speechssl.evaluation.probe_plan import Plan
from speechssl.evaluation.trials import Trials, describe_dispute, describe_nesting, make_trials, read_trials
from speechssl.evaluation.verification import (
    ErrorCurve,
    bootstrap_trials,
    calibrate,
    compute_cllr,
    compute_dcf,
    find_eer,
    find_min_dcf,
    normalise_scores,
    score_trials,
    thin_curve,
)
from speechssl.progress import track
from speechssl.seeds import make_rng

FloatArray = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

P_TARGETS = (0.01, 0.05)
"""How frequent trials of one speaker are taken to be: those of VoxSRC and of NIST's evaluations."""

BACKENDS = ("cosine", "cosine-asnorm", "plda", "plda-asnorm")
CALIBRATION_SHARE = 0.2

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Verification:
    """Who is heard and who is tested.

    Attributes:
        speakers: of the rows that back-ends learn from.
        learnt: these rows, among all that have features.
        tested: rows of the trials' utterances, that trials count from 0.
        tested_speakers: of these.
        trials: of the test.
        held: trials that calibrate, of speakers that no back-end learns from; None without calibration.
        held_rows: rows that these count from 0.
    """

    speakers: list[str]
    learnt: IntArray
    tested: IntArray
    tested_speakers: list[str]
    trials: Trials
    held: Trials | None
    held_rows: IntArray


def plan_verification(
    config: ProbeConfig, plan: Plan, trials: Trials, sexes: Sequence[str | None] | None
) -> Verification:
    """Decide whom back-ends learn from: nobody of the trials, and nobody who calibrates.

    One set that was split by utterance is the exception: its speakers are in both parts.

    Args:
        config: of the verb.
        plan: of one fold.
        trials: of its test, whose rows they count.
        sexes: of all rows, or None.

    Raises:
        DataError: fewer than two speakers are left to learn from, or too few to calibrate.
    """
    (fold,), every = plan.folds, np.array(plan.values)
    owners, tested = every[fold.train], every[fold.test]
    known = np.zeros(len(owners), dtype=bool)
    if config.data.test:
        known = np.isin(owners, tested[np.concatenate([trials.first, trials.second])])
    else:
        _logger.warning("data.test is not given: the trials are of %ss that the probe has heard", config.label)
    if known.any():
        _logger.warning(
            "%d of %d utterances of data.train are of %ss in the trials, and are left out",
            known.sum(), len(known), config.label,
        )  # fmt: skip
    names = sorted(set(owners[~known]))
    calibrating: list[str] = []
    if config.calibrate:
        count = max(round(CALIBRATION_SHARE * len(names)), 2)
        calibrating = [names[k] for k in make_rng(config.seed, "probe split").permutation(len(names))[:count]]
    is_held = np.isin(owners, calibrating)
    learnt, rows = fold.train[~known & ~is_held], fold.train[is_held]
    if len(set(every[learnt])) < 2:
        also = " and do not calibrate" if config.calibrate else ""
        raise DataError(
            f"`data.train` must have two {config.label}s or more who are in no trial{also}, "
            f"but has {len(set(every[learnt]))}"
        )
    held = None
    if config.calibrate:
        kinds = [sexes[row] for row in rows] if sexes is not None else None
        held = make_trials(every[rows].tolist(), kinds, config.num_trials, config.seed, "data.train")
    return Verification(every[learnt].tolist(), learnt, fold.test, tested.tolist(), trials, held, rows)


def find_trials(config: ProbeConfig, test: Manifest, left_out: LeftOut) -> Trials:
    """Read or draw the trials, and say where the speakers of the manifest may be none."""
    ids, paths = test.column("id"), list_paths(test)
    speakers = [str(value) for value in test.column(config.label)]
    if not config.data.trials:
        doubt = describe_nesting(speakers, paths)
        sexes = test.column("sex") if test.has("sex") else None
        trials = make_trials(speakers, sexes, config.num_trials, config.seed)
    else:
        # Trials of what is left out are known, and left out too.
        others = left_out.items
        names = ids + [item.id for item in others], paths + [item.path for item in others]
        trials = read_trials(config.data.trials, *names, unusable=range(len(ids), len(names[0])))
        doubt = describe_dispute(trials, ids, speakers, paths)
    if doubt:
        _logger.warning("%s", doubt)
    return trials


def list_paths(manifest: Manifest) -> list[str]:
    """List the absolute paths of a manifest's audio, as text."""
    return [os.path.join(manifest.root, path) for path in manifest.column("path")]


def make_verification(config: ProbeConfig, plan: Verification) -> Measure:
    """Make the function that turns features into the figures of the trials.

    Raises:
        DataError: PLDA is asked for, and no speaker has two utterances to learn from.
    """
    backends = BACKENDS if len(set(plan.speakers)) < len(plan.speakers) else BACKENDS[:2]
    if config.backend not in backends:
        raise DataError(
            f"`backend` must be cosine where data.train has one utterance a speaker, but is {config.backend}"
        )
    return lambda features: _verify(config, plan, backends, features)


@dataclass(frozen=True)
class _Heard:
    """What one encoder's features gave: scores of each layer, of the mix by each back-end, and of calibration."""

    layers: list[float]
    weights: list[float]
    rates: list[float]
    scores: dict[str, Scores]
    held: Scores | None


def _verify(
    config: ProbeConfig, plan: Verification, backends: Sequence[str], features: Iterable[FloatArray]
) -> Figures:
    heard = [_hear(config, plan, backends, each) for each in features]
    trials, same = plan.trials, plan.trials.same
    curves = {name: [ErrorCurve(each.scores[name], same) for each in heard] for name in backends}
    mine = curves[config.backend]
    costs = [partial(find_min_dcf, p_target=p) for p in P_TARGETS]
    intervals = bootstrap_trials(
        mine, trials, plan.tested_speakers, [find_eer, *costs], config.num_resamples, config.seed, config.label
    )
    seeds = [find_eer(*curve.compute_rates()) for curve in mine]
    layers = np.mean([each.layers for each in heard], axis=0).tolist()
    dcf = [_average(mine, cost) for cost in costs]
    table = {name: _average(each, find_eer) for name, each in curves.items()}
    more: dict[str, Any] = {
        "min_dcf": [
            {"p_target": p, "c_miss": 1.0, "c_fa": 1.0, "min_dcf": value, "interval": interval.to_dict()}
            for p, value, interval in zip(P_TARGETS, dcf, intervals[1:], strict=True)
        ],
        "backends": {name: {"eer": value, **_list_costs(curves[name])} for name, value in table.items()},
        "num_backend_speakers": len(set(plan.speakers)),
        "num_backend_utterances": len(plan.speakers),
    }
    scores = heard[0].scores[config.backend]
    if plan.held is not None and heard[0].held is not None:
        scale, offset = calibrate(heard[0].held, plan.held.same)
        scores = scale * scores + offset
        more["calibration"] = {
            "scale": scale, "offset": offset, "num_trials": len(plan.held.same), "cllr": compute_cllr(scores, same),
            "act_dcf": {f"{p}": compute_dcf(scores, same, p) for p in P_TARGETS},
        }  # fmt: skip
    by_speaker = _list_speakers(heard[0].scores[config.backend], plan)
    return Figures(
        mixed=float(np.mean(seeds)),
        layers=layers,
        weights=heard[0].weights,
        interval=intervals[0],
        by_group=by_speaker,
        seeds=seeds,
        rates=heard[0].rates,
        more=more,
        scores=scores,
        det=thin_curve(*mine[0].compute_rates()),
    )


def _average(curves: Sequence[ErrorCurve], rate: Callable[..., float]) -> float:
    return float(np.mean([rate(*curve.compute_rates()) for curve in curves]))


def _list_costs(curves: Sequence[ErrorCurve]) -> dict[str, float]:
    return {f"min_dcf_{p}": _average(curves, partial(find_min_dcf, p_target=p)) for p in P_TARGETS}


def _hear(config: ProbeConfig, plan: Verification, backends: Sequence[str], features: FloatArray) -> _Heard:
    """Score the trials by each layer alone and by the mix that tells the speakers of training."""
    train, rest = standardise(features[plan.learnt], features)
    layers = []
    for state in track(range(train.shape[1]), "probe", unit="layers"):
        scored = _score(config, plan, (config.backend,), train[:, state], rest[:, state])[0][config.backend]
        layers.append(find_eer(*ErrorCurve(scored, plan.trials.same).compute_rates()))
    train, rest = standardise(features[plan.learnt], features, alike=True)
    names, targets = np.unique(np.array(plan.speakers), return_inverse=True)
    fitter = make_fitter(config, targets.astype(np.int64), len(names), plan.speakers, None)
    (probe, *_), rates = fitter.fit(train, is_mixed=True)
    mixed, everything = (probe.combine(torch.from_numpy(part)).numpy() for part in (train, rest))
    scores, held = _score(config, plan, backends, mixed, everything)
    return _Heard(layers, probe.weights.tolist(), rates, scores, held)


def _score(
    config: ProbeConfig, plan: Verification, backends: Sequence[str], train: FloatArray, every: FloatArray
) -> tuple[dict[str, Scores], Scores | None]:
    """Score the trials by some back-ends, and the trials that calibrate by that of the verb."""
    scores: dict[str, Scores] = {}
    held = None
    for kind in dict.fromkeys(name.removesuffix("-asnorm") for name in backends):
        backend = _Cosine() if kind == "cosine" else _Plda(train, plan.speakers)
        cohort = _average_speakers(backend.project(train), plan.speakers)
        for name in (name for name in backends if name.removesuffix("-asnorm") == kind):
            top = config.cohort if name.endswith("-asnorm") else 0
            scores[name] = _score_by(backend, backend.project(every[plan.tested]), plan.trials, cohort, top)
            if plan.held is not None and name == config.backend:
                held = _score_by(backend, backend.project(every[plan.held_rows]), plan.held, cohort, top)
    return scores, held


class _Cosine:
    """Cosine of the vectors as they are."""

    def project(self, vectors: FloatArray) -> Scores:
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        unit: Scores = (vectors / lengths).astype(np.float64)
        return unit

    def score(self, vectors: Scores, trials: Trials) -> Scores:
        return score_trials(vectors.astype(np.float32), trials)

    def score_cohort(self, vectors: Scores, cohort: Scores) -> Scores:
        scores: Scores = vectors @ (cohort / np.maximum(np.linalg.norm(cohort, axis=1, keepdims=True), 1e-12)).T
        return scores


class _Plda:
    """Log likelihood ratios of `PldaScorer`."""

    def __init__(self, train: FloatArray, speakers: Sequence[str]) -> None:
        self._scorer = PldaScorer(train, speakers)

    def project(self, vectors: FloatArray) -> Scores:
        return self._scorer.project(vectors)

    def score(self, vectors: Scores, trials: Trials) -> Scores:
        return self._scorer.plda.score(vectors[trials.first], vectors[trials.second])

    def score_cohort(self, vectors: Scores, cohort: Scores) -> Scores:
        columns = [self._scorer.plda.score(vectors, np.broadcast_to(one, vectors.shape)) for one in cohort]
        return np.stack(columns, 1)


def _score_by(backend: _Cosine | _Plda, vectors: Scores, trials: Trials, cohort: Scores, top: int) -> Scores:
    scores = backend.score(vectors, trials)
    if not top:
        return scores
    return normalise_scores(scores, trials, backend.score_cohort(vectors, cohort), top)


def _average_speakers(vectors: Scores, speakers: Sequence[str]) -> Scores:
    """Average the vectors of each speaker: the cohort of AS-norm."""
    names, owners = np.unique(np.array(speakers), return_inverse=True)
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, owners, vectors)
    means: Scores = sums / np.bincount(owners)[:, None]
    return means


def _list_speakers(scores: Scores, plan: Verification) -> dict[str, float]:
    """Compute the equal error rate of each speaker's trials."""
    owners, trials, each = np.array(plan.tested_speakers), plan.trials, {}
    for name in sorted(set(plan.tested_speakers)):
        part = (owners[trials.first] == name) | (owners[trials.second] == name)
        if trials.same[part].any() and not trials.same[part].all():
            each[name] = find_eer(*ErrorCurve(scores[part], trials.same[part]).compute_rates())
    return each
