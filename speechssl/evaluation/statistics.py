"""How sure a figure is: bootstrap intervals of ratios of sums, such as word errors over words.

What is resampled is the unit that is independent: the speaker where speakers are known, since one speaker's
utterances succeed or fail together, and the utterance otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from speechssl.seeds import make_rng

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
        unit: what was resampled: `speaker`, another column's groups, or `utterance`.
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
    numerators, denominators = np.asarray(errors, dtype=np.float64), np.asarray(totals, dtype=np.float64)
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
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def compute_interval(
    errors: ArrayLike,
    totals: ArrayLike,
    speakers: Sequence[str | None] | None,
    num_resamples: int,
    seed: int,
    name: str = "speaker",
) -> Interval:
    """Compute the 95 % bootstrap interval, in percent, of a ratio of sums over utterances.

    Args:
        errors: (n,) numerator of each utterance.
        totals: (n,) denominator of each utterance.
        speakers: n speakers. Where the list, or any of them, is missing, utterances are resampled instead.
        num_resamples, seed: as `bootstrap_ratio_interval`.
        name: what the units are, where they are other groups than speakers.
    """
    numerators, denominators = np.asarray(errors, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    unit, owners = "utterance", np.arange(len(numerators))
    if speakers and all(speakers):
        unit, owners = name, np.unique([str(speaker) for speaker in speakers], return_inverse=True)[1]
    numerators = np.bincount(owners, weights=numerators).astype(np.float64)
    denominators = np.bincount(owners, weights=denominators).astype(np.float64)
    count = len(numerators)
    if count < 2:
        return Interval(None, None, unit, count, False)
    low, high = bootstrap_ratio_interval(numerators, denominators, num_resamples, seed)
    if math.isnan(low):
        return Interval(None, None, unit, count, False)
    return Interval(100 * low, 100 * high, unit, count, count >= RELIABLE_UNITS)
