"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from speechssl.evaluation import statistics
from speechssl.evaluation.statistics import (
    bootstrap_ratio_interval,
    compute_calibration,
    compute_difference,
    compute_interval,
    compute_matched_pairs,
)


def test_interval_is_seeded_and_brackets_the_ratio() -> None:
    errors, totals = np.arange(50) % 7, np.full(50, 10)
    low, high = bootstrap_ratio_interval(errors, totals, 500, seed=1)
    assert low < errors.sum() / totals.sum() < high
    assert (low, high) == bootstrap_ratio_interval(errors, totals, 500, seed=1)
    assert (low, high) != bootstrap_ratio_interval(errors, totals, 500, seed=2)


def test_interval_has_the_width_of_the_normal_approximation() -> None:
    errors = np.random.default_rng(0).binomial(20, 0.3, size=400)
    low, high = bootstrap_ratio_interval(errors, np.full(400, 20), 2000, seed=1)
    assert high - low == pytest.approx(2 * 1.96 * (errors / 20).std() / 20, rel=0.1)


def test_no_spread_gives_no_width() -> None:
    assert bootstrap_ratio_interval([1, 2], [10, 20], 100, seed=1) == pytest.approx((0.1, 0.1))


def test_memory_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_ratio_interval(range(10), [9] * 10, 101, seed=3)
    monkeypatch.setattr(statistics, "_CELLS", 30)
    assert bootstrap_ratio_interval(range(10), [9] * 10, 101, seed=3) == whole


def test_units_without_a_denominator_are_no_trouble() -> None:
    low, high = bootstrap_ratio_interval([0, 1], [0, 2], 200, seed=1)
    assert np.isfinite([low, high]).all()


def test_speakers_are_the_unit_where_all_are_known() -> None:
    interval = compute_interval([1, 2, 3, 4], [5] * 4, ["a", "a", "b", "c"], 100, 1)
    assert (interval.unit, interval.count, interval.reliable) == ("speaker", 3, False)
    partly = compute_interval([1, 2, 3, 4], [5] * 4, ["a", None, "b", "c"], 100, 1)
    assert (partly.unit, partly.count) == ("utterance", 4)


def test_utterances_of_one_speaker_widen_the_interval() -> None:
    errors = np.repeat(np.arange(20) % 10, 10)
    speakers = [str(k) for k in np.repeat(np.arange(20), 10)]
    by_speaker = compute_interval(errors, np.full(200, 10), speakers, 500, 1)
    by_utterance = compute_interval(errors, np.full(200, 10), None, 500, 1)
    assert by_speaker.reliable
    assert by_utterance.reliable
    assert None not in (by_speaker.low, by_speaker.high, by_utterance.low, by_utterance.high)
    width = (by_speaker.high or 0) - (by_speaker.low or 0)
    assert width > 2 * ((by_utterance.high or 0) - (by_utterance.low or 0))


def test_a_resample_without_a_denominator_has_no_interval() -> None:
    # With this seed the one resample draws the speaker without words twice.
    intervals = [compute_interval([0, 1], [0, 2], ["a", "b"], num_resamples=1, seed=seed) for seed in range(20)]
    assert {interval.low for interval in intervals} == {None, 50.0}
    assert all((interval.low is None) == (interval.high is None) for interval in intervals)


def test_a_single_unit_has_no_interval() -> None:
    interval = compute_interval([1, 1], [2, 2], ["a", "a"], 100, 1)
    assert interval.to_dict() == {"low": None, "high": None, "unit": "speaker", "count": 1, "reliable": False}
    assert str(interval) == "no interval from 1 speaker"


def test_the_interval_is_that_of_an_independent_bootstrap() -> None:
    rng = np.random.default_rng(2)
    totals = rng.integers(5, 60, 60)
    errors = rng.binomial(totals, rng.beta(2, 8, 60))
    found = compute_interval(errors, totals, [str(k) for k in range(60)], 20_000, 1)
    other = bootstrap(errors, totals)
    assert (found.low, found.high) == pytest.approx((100 * other[0], 100 * other[1]), abs=0.3)


def test_the_paired_difference_is_that_of_an_independent_bootstrap() -> None:
    rng = np.random.default_rng(3)
    totals, hard = rng.integers(5, 60, 80), rng.beta(2, 6, 80)
    first, second = rng.binomial(totals, hard), rng.binomial(totals, 0.85 * hard)
    speakers = [str(k // 2) for k in range(80)]
    found = compute_difference(first, second, totals, speakers, 20_000, 1)
    gaps = (second - first).reshape(40, 2).sum(1), totals.reshape(40, 2).sum(1)
    low, high = bootstrap(*gaps)
    assert (found.unit, found.count, found.reliable) == ("speaker", 40, True)
    assert found.value == pytest.approx(100 * (second.sum() - first.sum()) / totals.sum())
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high), abs=0.15)
    # A ratio of sums is nearly normal, with the delta method's spread.
    spread = np.std(gaps[0] - found.value / 100 * gaps[1]) * np.sqrt(40) / totals.sum()
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.value) / 100 / spread), abs=0.01)
    # Apart, the two intervals hide what the pairs show.
    apart = [compute_interval(errors, totals, speakers, 2000, 1) for errors in (first, second)]
    assert found.high is not None
    assert found.high < 0
    assert (apart[1].high or 0) > (apart[0].low or 0)


def bootstrap(errors: np.ndarray, totals: np.ndarray) -> tuple[float, float]:
    """Let scipy compute the percentile interval."""

    def ratio(x: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(x.sum(axis) / n.sum(axis))

    found = stats.bootstrap(
        (errors, totals), ratio, n_resamples=20_000, paired=True, method="percentile", random_state=7
    ).confidence_interval
    return float(found.low), float(found.high)


def test_equal_systems_do_not_differ_and_swapped_ones_differ_as_much() -> None:
    rng = np.random.default_rng(4)
    totals = np.full(50, 20)
    first, second = rng.binomial(totals, 0.3), rng.binomial(totals, 0.25)
    assert compute_difference(first, first, totals, None, 500, 1).p == 1.0
    found, swapped = (compute_difference(*pair, totals, None, 500, 1) for pair in ((first, second), (second, first)))
    assert found.low is not None
    assert (swapped.value, swapped.high) == pytest.approx((-found.value, -found.low))
    assert swapped.p == found.p


def test_seeds_are_pooled() -> None:
    totals, first, second = [10] * 30, np.arange(30) % 5, np.arange(30) % 4
    seeds = compute_difference([first, first + 2], [second, second], totals, None, 500, 1)
    assert seeds.value == pytest.approx(100 * (second.sum() - (first + 1).sum()) / 300)
    assert seeds == compute_difference(first + 1, second, totals, None, 500, 1)


def test_too_few_units_say_nothing_and_few_are_unreliable() -> None:
    one = compute_difference([1, 2], [2, 2], [5, 5], ["s", "s"], 100, 1)
    assert (one.value, one.low, one.p, one.reliable) == (10.0, None, None, False)
    assert not compute_difference([1, 2], [2, 2], [5, 5], None, 100, 1).reliable
    assert compute_matched_pairs([]).mean is None
    assert compute_matched_pairs([(1, 0)] * 30).z is None
    assert not compute_matched_pairs([(1, 0), (0, 3)]).reliable


def test_units_without_any_denominator_have_no_interval() -> None:
    assert compute_interval([1, 0, 2], [0, 0, 0], None, 100, 1).low is None


def test_confidences_that_are_right_as_often_as_they_say_are_calibrated() -> None:
    rng = np.random.default_rng(5)
    sure = rng.random(200_000)
    found = compute_calibration(sure, rng.random(200_000) < sure, np.ones(200_000))
    assert found.error < 0.5
    assert len(found.bins) == 10
    # Those of whoever is always sure, and right in three of four.
    assert compute_calibration([1.0] * 4, [1, 1, 1, 0], [1] * 4).error == pytest.approx(25)
    # Weights are as many equal ones.
    weighted = compute_calibration([0.2, 0.25, 0.9], [0, 1, 0.5], [1, 2, 3])
    repeated = compute_calibration([0.2, 0.25, 0.25, 0.9, 0.9, 0.9], [0, 1, 1, 0.5, 0.5, 0.5], [1] * 6)
    assert weighted.error == pytest.approx(repeated.error)
    assert [row[2] for row in weighted.bins] == [3, 3]
