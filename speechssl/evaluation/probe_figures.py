"""What a probe finds: speaker identification or verification with frozen features, by layer and with a learned mix."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from speechssl.config.inference import ProbeConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.evaluation.probe_features import standardise
from speechssl.evaluation.probe_training import train_probe
from speechssl.evaluation.statistics import Interval, compute_interval
from speechssl.evaluation.verification import (
    Trials,
    compute_eer,
    compute_eer_interval,
    describe_dispute,
    describe_nesting,
    make_trials,
    read_trials,
    score_trials,
)
from speechssl.objectives.speaker import SpeakerProbe
from speechssl.progress import track

_logger = logging.getLogger("speechssl")

FloatArray = npt.NDArray[np.float32]
Pooled = tuple[FloatArray, FloatArray]
"""Features of the training set and of the test set: (n, S, D) each."""


@dataclass(frozen=True)
class Figures:
    """Figures of one kind of features, in percent."""

    mixed: float
    layers: list[float]
    weights: list[float]
    interval: Interval
    by_speaker: dict[str, float]


def make_measure(
    config: ProbeConfig, train: Manifest, test: Manifest, left_out: LeftOut
) -> Callable[[Pooled], Figures]:
    """Make the function that turns features of both sets into figures."""
    names, labels = np.unique(np.array(train.column("speaker")), return_inverse=True)

    def fit(features: FloatArray) -> SpeakerProbe:
        return train_probe(features, labels.astype(np.int64), len(names), config.updates, config.lr, config.seed)

    if config.task == "identification":
        wanted = np.searchsorted(names, np.array(test.column("speaker")))
        return lambda pooled: _identify(config, fit, pooled, wanted, test.column("speaker"))
    trials = _find_trials(config, test, left_out)
    return lambda pooled: _verify(config, fit, pooled, trials, test.column("speaker"))


def _find_trials(config: ProbeConfig, test: Manifest, left_out: LeftOut) -> Trials:
    """Read or make the trials, and say where the speakers of the manifest may be none."""
    ids, speakers, paths = test.column("id"), test.column("speaker"), list_paths(test)
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


def _identify(
    config: ProbeConfig,
    fit: Callable[[FloatArray], SpeakerProbe],
    pooled: Pooled,
    wanted: npt.NDArray[np.int64],
    speakers: list[str],
) -> Figures:
    train, test = standardise(*pooled)

    def count_right(probe: SpeakerProbe, features: FloatArray) -> npt.NDArray[np.float64]:
        guesses = probe(torch.from_numpy(features)).argmax(-1).numpy()
        right: npt.NDArray[np.float64] = (guesses == wanted).astype(np.float64)
        return right

    states = track(range(train.shape[1]), "probe", unit="layers")
    layers = [100 * float(count_right(fit(train[:, s : s + 1]), test[:, s : s + 1]).mean()) for s in states]
    train, test = standardise(*pooled, alike=True)
    mixed = fit(train)
    right = count_right(mixed, test)
    interval = compute_interval(right, np.ones(len(right)), speakers, config.num_resamples, config.seed)
    owners = np.array(speakers)
    each = {name: 100 * float(right[owners == name].mean()) for name in sorted(set(speakers))}
    return Figures(100 * float(right.mean()), layers, mixed.weights.tolist(), interval, each)


def _verify(
    config: ProbeConfig, fit: Callable[[FloatArray], SpeakerProbe], pooled: Pooled, trials: Trials, speakers: list[str]
) -> Figures:
    train, test = standardise(*pooled)
    states = track(range(train.shape[1]), "probe", unit="layers")
    layers = [compute_eer(score_trials(test[:, s], trials), trials.same) for s in states]
    train, test = standardise(*pooled, alike=True)
    mixed = fit(train)
    scores = score_trials(mixed.combine(torch.from_numpy(test)).numpy(), trials)
    interval = compute_eer_interval(scores, trials, speakers, config.num_resamples, config.seed)
    owners = np.array(speakers)
    each = {}
    for name in sorted(set(speakers)):
        part = (owners[trials.first] == name) | (owners[trials.second] == name)
        if trials.same[part].any() and not trials.same[part].all():
            each[name] = compute_eer(scores[part], trials.same[part])
    return Figures(compute_eer(scores, trials.same), layers, mixed.weights.tolist(), interval, each)
