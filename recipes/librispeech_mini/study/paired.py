"""What the table says of chance: differences paired by seed and by speaker, with their intervals. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from speechssl.evaluation.statistics import RELIABLE_UNITS, bootstrap_ratio_interval


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
        mean: of the units.
        low, high: ends; None where there is one unit, which says nothing about others.
        count: how many units.
        unit: `seed` or `speaker`.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    unit: str

    @property
    def is_reliable(self) -> bool:
        """Whether an interval over these units means it; over speakers from `RELIABLE_UNITS` on."""
        return self.low is not None and (self.unit != "speaker" or self.count >= RELIABLE_UNITS)

    @property
    def chance(self) -> str:
        """The interval as in "(-5.0 to -1.2, 3 seeds)"."""
        units = f"{self.count} {self.unit}{'' if self.count == 1 else 's'}"
        if self.low is None or self.high is None:
            return f"(no interval from {units})"
        return f"({self.low:+.1f} to {self.high:+.1f}, {units}{'' if self.is_reliable else ', unreliable'})"

    def __str__(self) -> str:
        """Say it as in "-3.1 (-5.0 to -1.2, 3 seeds)"."""
        return f"{self.mean:+.1f} {self.chance}"


def compute_t_interval(values: Sequence[float], unit: str = "seed", confidence: float = 0.95) -> Estimate:
    """Give the mean of a few independent values with Student's interval.

    Args:
        values: one a seed, such as the difference of two arms with that seed.
        unit: what one value stands for.
        confidence: share of such intervals that hold the true mean.
    """
    assert len(values) > 0, "no values"
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, None, None, count, unit)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return Estimate(mean, mean - half, mean + half, count, unit)


def compute_speaker_interval(
    differences: Mapping[str, float], weights: Mapping[str, float], num_resamples: int = 1000, seed: int = 1
) -> Estimate:
    """Give the weighted mean of each speaker's difference, with a bootstrap interval over speakers.

    Args:
        differences: by speaker, averaged over seeds.
        weights: by speaker, such as the words that the speaker says.
        num_resamples: resamples.
        seed: of the resampling.
    """
    names = sorted(differences)
    assert names, "no speakers"
    totals = np.array([weights[name] for name in names])
    sums = np.array([differences[name] for name in names]) * totals
    mean = float(sums.sum() / totals.sum())
    if len(names) < 2:
        return Estimate(mean, None, None, len(names), "speaker")
    low, high = bootstrap_ratio_interval(sums, totals, num_resamples, seed)
    return Estimate(mean, low, high, len(names), "speaker")


def pair(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Give second minus first for each seed that both have, in order of the seeds."""
    return [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]


def compute_relative(first: float, second: float) -> float:
    """Say by how many percent the second figure differs from the first."""
    return 100 * (second - first) / first
