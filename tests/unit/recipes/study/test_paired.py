"""Differences paired by seed and by speaker, beside textbook values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recipes.librispeech_mini.study.paired import (
    Estimate,
    compute_relative,
    compute_speaker_interval,
    compute_t_interval,
    pair,
)


def test_students_interval_of_three_seeds() -> None:
    found = compute_t_interval([-3.0, -4.0, -5.0])
    # t(0.975, 2) = 4.3027; deviation 1, so the half width is 4.3027 / sqrt(3).
    assert (found.mean, found.count) == (-4.0, 3)
    assert found.high == pytest.approx(-4.0 + 2.4841, abs=1e-3)
    assert str(found) == "-4.0 (-6.5 to -1.5, 3 seeds)"


def test_students_interval_is_scipys_paired_one() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(50, 3, 5), rng.normal(45, 3, 5)
    low, high = stats.ttest_rel(second, first).confidence_interval(0.95)
    found = compute_t_interval((second - first).tolist())
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_seed_has_no_interval() -> None:
    assert str(compute_t_interval([2.0])) == "+2.0 (no interval from 1 seed)"
    assert not compute_t_interval([2.0]).is_reliable


def test_seeds_are_paired_where_both_have_them() -> None:
    assert pair({1: 50.0, 2: 60.0, 4: 1.0}, {2: 55.0, 1: 48.0, 3: 0.0}) == [-2.0, -5.0]


def test_speakers_weigh_as_their_words_and_few_are_unreliable() -> None:
    found = compute_speaker_interval({"a": -10.0, "b": 0.0}, {"a": 300.0, "b": 100.0})
    assert found.mean == pytest.approx(-7.5)
    assert (found.low, found.high) == (-10.0, 0.0)
    assert str(found) == "-7.5 (-10.0 to +0.0, 2 speakers, unreliable)"


def test_from_twenty_speakers_on_an_interval_means_it() -> None:
    names = [f"s{number}" for number in range(20)]
    found = compute_speaker_interval({name: -1.0 for name in names}, {name: 1.0 for name in names})
    assert found.is_reliable
    assert str(found) == "-1.0 (-1.0 to -1.0, 20 speakers)"


def test_one_speaker_has_no_interval() -> None:
    assert compute_speaker_interval({"a": 3.0}, {"a": 2.0}) == Estimate(3.0, None, None, 1, "speaker")


def test_relative_difference() -> None:
    assert compute_relative(50.0, 40.0) == pytest.approx(-20.0)
