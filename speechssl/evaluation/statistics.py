"""How sure a figure is: bootstrap intervals of ratios of sums, such as word errors over words.

What is resampled is the unit that is independent: the speaker where speakers are known, since one speaker's
utterances succeed or fail together, and the utterance otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechssl.seeds import make_rng

FloatArray = NDArray[np.float64]

RELIABLE_UNITS = 20
"""Below so many units a bootstrap interval is too narrow to be relied on."""

_CELLS = 4_000_000
"""Resample counts held at a time (32 MB), whatever the number of units."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval in percent.

    Attributes:
        low: 2.5th percentile of the resamples; None where there are too few units to say anything about others.
        high: 97.5th percentile.
        unit: what was resampled: `speaker` or `utterance`.
        count: how many units there are.
        reliable: whether there are at least `RELIABLE_UNITS` of them.
    """

    low: float | None
    high: float | None
    unit: str
    count: int
    reliable: bool

    def to_dict(self) -> dict[str, float | str | int | bool | None]:
        """Give the form that results are stored in."""
        return asdict(self)

    def __str__(self) -> str:
        """Say it as in "12.1 to 15.9 % over 40 speakers"."""
        units = f"{self.count} {self.unit}{'' if self.count == 1 else 's'}"
        if self.low is None or self.high is None:
            return f"no interval from {units}"
        return f"{self.low:.1f} to {self.high:.1f} % over {units}{'' if self.reliable else ', unreliable'}"


def bootstrap_ratio_interval(
    errors: ArrayLike, totals: ArrayLike, num_resamples: int, seed: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of sum(errors) / sum(totals) over resampled units.

    Args:
        errors: (n,) numerator of each unit, such as its word errors.
        totals: (n,) denominator of each unit, 0 or more, not all 0.
        num_resamples: resamples; 1,000 is plenty for two decimals of a percentage.
        seed: of the resampling; the same seed gives the same interval.
        confidence: share of the resamples inside the interval.

    Returns:
        Low and high end, as ratios (not percent); NaN where no resample has a denominator.

    Source: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation".
    """
    ratios = _resample(np.asarray(errors, np.float64), np.asarray(totals, np.float64), num_resamples, seed)
    if not len(ratios):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def _resample(numerators: FloatArray, denominators: FloatArray, num_resamples: int, seed: int) -> FloatArray:
    """Draw the ratio of sums of `num_resamples` resamples of n units; those without a denominator are left out."""
    num_units = len(numerators)
    assert num_units == len(denominators) > 0, f"{num_units} numerators, {len(denominators)} denominators"
    assert num_resamples >= 1, f"{num_resamples} resamples"
    assert denominators.sum() > 0, "nothing to divide by"
    generator = make_rng(seed, "bootstrap")
    ratios = np.empty(num_resamples)
    rows = max(1, _CELLS // num_units)
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        draws = generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=size)
        # A resample may draw only units without a denominator; its ratio is unknown, and left out below.
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios[start : start + size] = (draws @ numerators) / (draws @ denominators)
    return ratios[np.isfinite(ratios)]


def compute_interval(
    errors: ArrayLike, totals: ArrayLike, speakers: Sequence[str | None] | None, num_resamples: int, seed: int
) -> Interval:
    """Compute the 95 % bootstrap interval, in percent, of a ratio of sums over utterances.

    Args:
        errors: (n,) numerator of each utterance.
        totals: (n,) denominator of each utterance.
        speakers: n speakers. Where the list, or any of them, is missing, utterances are resampled instead.
        num_resamples, seed: as `bootstrap_ratio_interval`.
    """
    unit, (numerators, denominators) = _sum_units(speakers, errors, totals)
    count = len(numerators)
    if count < 2 or not denominators.any():
        return Interval(None, None, unit, count, False)
    low, high = bootstrap_ratio_interval(numerators, denominators, num_resamples, seed)
    if math.isnan(low):
        return Interval(None, None, unit, count, False)
    return Interval(100 * low, 100 * high, unit, count, count >= RELIABLE_UNITS)


@dataclass(frozen=True)
class Difference:
    """How much larger one ratio of sums is than another of the same utterances.

    Attributes:
        value: the second minus the first, in percentage points.
        low, high: 2.5th and 97.5th percentile of the resamples; None where there are too few units.
        p: two-sided: twice the share of resamples on the other side of 0, each of them counted once more than it was
            seen; None as above.
        unit, count, reliable: as in `Interval`.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    unit: str
    count: int
    reliable: bool


def compute_difference(
    errors: ArrayLike,
    others: ArrayLike,
    totals: ArrayLike,
    speakers: Sequence[str | None] | None,
    num_resamples: int,
    seed: int,
) -> Difference:
    """Compare two systems on the same utterances by the paired bootstrap: each resample draws the same units for both.

    Args:
        errors: (n,) errors of the first system in each utterance, or (S, n) with S seeds of it, which are pooled:
            what is resampled is the test set, so the interval is about these seeds on other speakers.
        others: the same of the second.
        totals: (n,) denominator of each utterance, not all 0.
        speakers, num_resamples, seed: as `compute_interval`.

    Source: Bisani and Ney 2004; the p-value: Davison and Hinkley 1997, section 4.2.
    """
    first, second = np.atleast_2d(np.asarray(errors, np.float64)), np.atleast_2d(np.asarray(others, np.float64))
    assert first.shape == second.shape, f"{first.shape} errors, {second.shape} others"
    unit, (numerators, denominators) = _sum_units(speakers, (second - first).mean(0), totals)
    value, count = 100 * float(numerators.sum() / denominators.sum()), len(numerators)
    ratios = _resample(numerators, denominators, num_resamples, seed) if count > 1 else np.empty(0)
    if not len(ratios):
        return Difference(value, None, None, None, unit, count, False)
    low, high = np.quantile(ratios, [0.025, 0.975])
    rarer = min(int((ratios <= 0).sum()), int((ratios >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (len(ratios) + 1))
    return Difference(value, 100 * float(low), 100 * float(high), p, unit, count, count >= RELIABLE_UNITS)


@dataclass(frozen=True)
class MatchedPairs:
    """The matched-pairs test of two systems.

    Attributes:
        num_segments: segments in which either system has an error.
        mean: errors of the first minus those of the second, a segment; None without any.
        z: `mean` in standard errors; None where it has no spread to compare with.
        p: two-sided, of the normal distribution; None as `z`.
        reliable: whether there are at least `RELIABLE_UNITS` segments.
    """

    num_segments: int
    mean: float | None
    z: float | None
    p: float | None
    reliable: bool


def compute_matched_pairs(segments: ArrayLike) -> MatchedPairs:
    """Test whether two systems make equally many errors in segments whose errors are independent.

    Args:
        segments: (n, 2) errors of both systems, such as from `evaluation.matched_pairs`.

    Source: Gillick and Cox 1989, "Some statistical issues in the comparison of speech recognition algorithms".
    """
    errors = np.asarray(segments, np.float64).reshape(-1, 2)
    differences = errors[:, 0] - errors[:, 1]
    count = len(differences)
    mean = float(differences.mean()) if count else None
    spread = float(differences.std(ddof=1)) if count > 1 else 0.0
    if mean is None or spread == 0:
        return MatchedPairs(count, mean, None, None, False)
    z = mean / (spread / math.sqrt(count))
    return MatchedPairs(count, mean, z, math.erfc(abs(z) / math.sqrt(2)), count >= RELIABLE_UNITS)


@dataclass(frozen=True)
class Calibration:
    """How far confidences are from what they claim.

    Attributes:
        error: expected calibration error, in percentage points.
        bins: of each tenth of confidence that is not empty: mean confidence and share that is right, in percent, and
            its weight.
    """

    error: float
    bins: list[tuple[float, float, float]]


def compute_calibration(confidences: ArrayLike, shares: ArrayLike, weights: ArrayLike) -> Calibration:
    """Compare confidences with how often they are right, in ten bins of equal width.

    Args:
        confidences: (n,) between 0 and 1.
        shares: (n,) share of each that is right: 0 or 1 for a word, any share for a text.
        weights: (n,) what each counts, such as its letters; not all 0.

    Source: Guo et al. 2017, arXiv 1706.04599 section 2.
    """
    sure, right, size = (np.asarray(values, np.float64) for values in (confidences, shares, weights))
    places = np.minimum((10 * sure).astype(np.int64), 9)
    totals, sums, rights = (np.bincount(places, size * values, 10) for values in (1.0 + 0 * sure, sure, right))
    used = np.flatnonzero(totals)
    bins = [(100 * sums[k] / totals[k], 100 * rights[k] / totals[k], float(totals[k])) for k in used]
    error = 100 * float(np.abs(sums - rights).sum() / totals.sum())
    return Calibration(error, [(float(sure), float(right), weight) for sure, right, weight in bins])


def _sum_units(speakers: Sequence[str | None] | None, *values: ArrayLike) -> tuple[str, list[FloatArray]]:
    """Sum (n,) values of utterances over speakers, where all are known; name the unit."""
    rows = [np.asarray(value, np.float64) for value in values]
    if not speakers or not all(speakers):
        return "utterance", rows
    owners = np.unique([str(speaker) for speaker in speakers], return_inverse=True)[1]
    return "speaker", [np.bincount(owners, weights=row).astype(np.float64) for row in rows]
