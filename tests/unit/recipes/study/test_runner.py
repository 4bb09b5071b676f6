"""Where and how long a cell runs."""

from __future__ import annotations

import time

import pytest

from recipes.librispeech_mini.study.runner import OUT_OF_TIME, Settings, measure_updates
from speechssl.errors import StoppedOnRequest


def test_the_time_of_updates_is_their_audio_over_their_rate() -> None:
    rows = [
        {"split": "train", "hours_seen": 0.01, "audio_s_per_s": 18.0},
        {"split": "valid", "hours_seen": 0.01},
        {"split": "train", "hours_seen": 0.03, "audio_s_per_s": 36.0},
    ]
    assert measure_updates(rows) == pytest.approx(2.0 + 2.0)
    assert measure_updates([]) == 0.0


def test_a_deadline_bounds_trainings_and_stops_what_is_none() -> None:
    assert Settings().find_hours() == 0.0
    Settings().check_deadline("anything")
    late = Settings(deadline=time.monotonic() - 1.0)
    assert 0 < late.find_hours() < 1e-6
    with pytest.raises(StoppedOnRequest, match="time was up before test/greedy") as stop:
        late.check_deadline("test/greedy")
    assert stop.value.exit_code == OUT_OF_TIME
    early = Settings(max_hours=0.5, deadline=time.monotonic() + 7200)
    assert early.find_hours() == 0.5
