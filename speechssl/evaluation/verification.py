"""Speaker verification: scores of trials, their normalisation and calibration, and the errors that they lead to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from speechssl.evaluation.statistics import RELIABLE_UNITS, Interval
from speechssl.evaluation.trials import Trials
from speechssl.seeds import make_rng

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MAX_POINTS = 200
"""Points of a DET curve that are kept at most."""

Rate = Callable[[FloatArray, FloatArray], float]
"""From misses and false alarms at every threshold, as `ErrorCurve` gives them, to one figure."""


def score_trials(embeddings: npt.NDArray[np.float32], trials: Trials) -> FloatArray:
    """Compute the cosine similarity of the two embeddings of each trial.

    Args:
        embeddings: (utterances, D).
        trials: n pairs of rows.

    Returns:
        (n,) float64 in [-1, 1].
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    scores: FloatArray = np.einsum("nd,nd->n", unit[trials.first], unit[trials.second]).astype(np.float64)
    return scores


class ErrorCurve:
    """Misses and false alarms at every threshold; trials with equal scores are accepted or rejected together.

    Args:
        scores: (n,) higher means more likely one speaker.
        same: (n,) truth; there must be trials of both kinds.
    """

    def __init__(self, scores: FloatArray, same: BoolArray) -> None:
        self._order = np.argsort(scores, kind="stable")
        self._ends = np.append(np.flatnonzero(np.diff(scores[self._order])), len(scores) - 1)
        self._same = same[self._order]

    def compute_rates(self, weights: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
        """Compute both rates, from a threshold below all scores to one above them.

        Args:
            weights: (n,) how often each trial counts, both kinds above 0; None counts each once.

        Returns:
            misses, rising from 0 to 1, and false alarms, falling from 1 to 0: (thresholds,) each.
        """
        weight = np.ones(len(self._order)) if weights is None else weights[self._order]
        target = np.where(self._same, weight, 0.0).cumsum()[self._ends]
        other = np.where(self._same, 0.0, weight).cumsum()[self._ends]
        return np.append(0.0, target / target[-1]), np.append(1.0, 1.0 - other / other[-1])


def find_eer(misses: FloatArray, alarms: FloatArray) -> float:
    """Find the equal error rate in percent, between the two thresholds around the crossing by a straight line.

    Source: Martin et al. 1997, "The DET curve in assessment of detection task performance".
    """
    crossing = int(np.argmax(misses >= alarms))
    gap_before, gap_after = alarms[crossing - 1] - misses[crossing - 1], alarms[crossing] - misses[crossing]
    share = gap_before / (gap_before - gap_after)
    return float(100 * (misses[crossing - 1] + share * (misses[crossing] - misses[crossing - 1])))


def find_min_dcf(
    misses: FloatArray, alarms: FloatArray, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Find the lowest detection cost of any threshold, 1 being what one gets without listening.

    Args:
        misses, alarms: as `ErrorCurve` gives them.
        p_target: how frequent trials of one speaker are taken to be.
        c_miss, c_fa: cost of a miss and of a false alarm.

    Source: NIST 2016 Speaker Recognition Evaluation Plan, section 3.1.
    """
    costs = c_miss * p_target * misses + c_fa * (1 - p_target) * alarms
    return float(costs.min() / min(c_miss * p_target, c_fa * (1 - p_target)))


def compute_eer(scores: FloatArray, same: BoolArray, weights: FloatArray | None = None) -> float:
    """Compute the equal error rate in percent: arguments as `ErrorCurve` and its `compute_rates`."""
    return find_eer(*ErrorCurve(scores, same).compute_rates(weights))


def bootstrap_trials(
    curves: Sequence[ErrorCurve],
    trials: Trials,
    speakers: Sequence[str],
    rates: Sequence[Rate],
    num_resamples: int,
    seed: int,
    unit: str = "speaker",
) -> list[Interval]:
    """Compute 95 % bootstrap intervals of error rates over resampled speakers, in the unit of each rate.

    A trial of one speaker counts as often as the speaker was drawn, one of two speakers as the product of both.

    Args:
        curves: of one system, or of several whose rates are averaged.
        trials: the n pairs.
        speakers: of each utterance; those in no trial do not count.
        rates: what is computed of each resample.
        num_resamples: resamples.
        seed: of the resampling.
        unit: what the speakers are, where they are something else.
    """
    known = np.array(speakers, dtype=object).astype(str)
    names, owners = np.unique(known[np.concatenate([trials.first, trials.second])], return_inverse=True)
    rng = make_rng(seed, "speaker bootstrap")
    one, two = np.split(owners, 2)
    found = []
    for _ in range(num_resamples):
        drawn = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)).astype(np.float64)
        weights = np.where(trials.same, drawn[one], drawn[one] * drawn[two])
        if weights[trials.same].sum() > 0 and weights[~trials.same].sum() > 0:
            errors = [curve.compute_rates(weights) for curve in curves]
            found.append([np.mean([rate(*each) for each in errors]) for rate in rates])
    # Of two speakers every resample with trials of both kinds is the same, which says nothing.
    if len(names) < 3 or len(found) < 2:
        return [Interval(None, None, unit, len(names), False)] * len(rates)
    ends = np.quantile(found, [0.025, 0.975], axis=0).T
    is_reliable = len(names) >= RELIABLE_UNITS
    return [Interval(float(low), float(high), unit, len(names), is_reliable) for low, high in ends]


def compute_eer_interval(
    scores: FloatArray, trials: Trials, speakers: Sequence[str], num_resamples: int, seed: int
) -> Interval:
    """Compute the interval of the equal error rate in percent: arguments as `bootstrap_trials`."""
    curve = ErrorCurve(scores, trials.same)
    return bootstrap_trials([curve], trials, speakers, [find_eer], num_resamples, seed)[0]


def normalise_scores(scores: FloatArray, trials: Trials, cohort: FloatArray, top: int) -> FloatArray:
    """Normalise scores by those that each side has with the nearest speakers of a cohort (adaptive s-norm).

    Args:
        scores: (n,) of the trials.
        trials: n pairs of rows.
        cohort: (rows, C) score of each row with each speaker of the cohort.
        top: how many of the highest count for each row; all where there are fewer.

    Returns:
        (n,): mean over both sides of how many deviations a score lies above that side's cohort.

    Source: Matějka et al. 2017, "Analysis of score normalization in multilingual speaker recognition", as-norm1.
    """
    highest = np.sort(cohort, axis=1)[:, -top:]
    middle, spread = highest.mean(1), np.maximum(highest.std(1), 1e-12)
    sides = [(scores - middle[side]) / spread[side] for side in (trials.first, trials.second)]
    normalised: FloatArray = 0.5 * (sides[0] + sides[1])
    return normalised


def calibrate(scores: FloatArray, same: BoolArray) -> tuple[float, float]:
    """Fit scale and offset that turn scores into log likelihood ratios in nats, by logistic regression.

    Both kinds of trials weigh alike, however many there are of each.

    Source: Brümmer and du Preez 2006, "Application-independent evaluation of speaker detection".
    """
    from sklearn.linear_model import LogisticRegression

    middle, spread = float(scores.mean()), float(scores.std()) or 1.0
    # Nearly no penalty: just enough that scores without any error do not ask for an infinite scale.
    model: Any = LogisticRegression(C=1e4, class_weight="balanced", max_iter=1000)
    model.fit(((scores - middle) / spread)[:, None], same)
    scale = float(model.coef_[0, 0]) / spread
    return scale, float(model.intercept_[0]) - scale * middle


def compute_cllr(ratios: FloatArray, same: BoolArray) -> float:
    """Compute the cost of log likelihood ratios (nats), in bits: 0 is perfect, 1 is what saying nothing costs.

    Source: Brümmer and du Preez 2006.
    """
    target, other = np.logaddexp(0, -ratios[same]).mean(), np.logaddexp(0, ratios[~same]).mean()
    return float((target + other) / (2 * np.log(2)))


def compute_dcf(ratios: FloatArray, same: BoolArray, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Compute the detection cost at the threshold that the costs ask for: arguments as `find_min_dcf`."""
    accepted = ratios > np.log(c_fa * (1 - p_target) / (c_miss * p_target))
    return find_min_dcf(
        np.array([(~accepted[same]).mean()]), np.array([accepted[~same].mean()]), p_target, c_miss, c_fa
    )


def thin_curve(misses: FloatArray, alarms: FloatArray) -> tuple[list[float], list[float]]:
    """Keep `MAX_POINTS` of a DET curve at most, in percent, without the ends where a rate is 0 or 1."""
    inside = np.flatnonzero((misses > 0) & (misses < 1) & (alarms > 0) & (alarms < 1))
    if not len(inside):
        return [], []
    # Evenly along what the drawing shows, where the logit stands for the probit: both stretch the ends.
    place = np.cumsum(np.abs(np.diff(np.log(alarms[inside] / (1 - alarms[inside])), prepend=0.0)))
    place += np.cumsum(np.abs(np.diff(np.log(misses[inside] / (1 - misses[inside])), prepend=0.0)))
    wanted = np.linspace(place[0], place[-1], MAX_POINTS)
    kept = inside[np.unique(np.searchsorted(place, wanted).clip(0, len(inside) - 1))]
    return (100 * misses[kept]).tolist(), (100 * alarms[kept]).tolist()
