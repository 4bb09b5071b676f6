"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from speechssl.evaluation import statistics
from speechssl.evaluation.statistics import bootstrap_ratio_interval, compute_interval


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
