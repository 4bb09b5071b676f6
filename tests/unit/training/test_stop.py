"""Signals and the time limit set a flag; a second Ctrl-C interrupts."""

from __future__ import annotations

import os
import signal
import time

import pytest

from speechssl.training.stop import StopFlag


def test_a_signal_is_noted_with_its_code_and_the_handlers_before_come_back() -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)):
        before, stop = signal.getsignal(number), StopFlag()
        with stop.listen():
            assert signal.getsignal(number) is not before
            assert not stop.is_requested and stop.check() is None
            os.kill(os.getpid(), number)
            assert stop.is_requested
        assert stop.check() == (f"stopped by {number.name}", code)
        assert signal.getsignal(number) is before


def test_a_second_interrupt_does_not_wait() -> None:
    with StopFlag().listen():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_time_limit() -> None:
    stop = StopFlag(max_hours=1e-15)
    assert not stop.is_requested and stop.check() is None, "before the first update it stops nothing"
    stop.has_moved = True
    assert stop.is_requested
    assert stop.check() == ("stopped by training.max_hours", 75)
    for passed_s, is_over in ((0, False), (3500, False), (3700, True)):
        stop = StopFlag(max_hours=1.0, since=time.monotonic() - passed_s)
        stop.has_moved = True
        assert stop.is_requested == is_over


def test_a_run_that_will_be_late_stops_before_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred updates in a hundred seconds, at a second each and then at `slow_s`."""
    for slow_after, slow_s, when_late, stopped_at in (
        (100, 1.0, True, None), (100, 1.0, False, None), (5, 2.0, True, 21), (5, 2.0, False, 53), (60, 2.0, True, 61),
    ):  # fmt: skip
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda clock=clock: clock[0])
        stop = StopFlag(max_hours=100 / 3600, since=0.0, when_late=when_late)
        stop.has_moved, seen = True, None
        for update in range(1, 101):
            clock[0] += 0.99 if update <= slow_after else slow_s
            stop.note_update(update, 100)
            seen = seen or (update if stop.check() else None)
        assert seen == stopped_at, (slow_after, slow_s, when_late)
