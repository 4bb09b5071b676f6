"""Stopping on request: signals and the time limit set a flag that the trainer reads between two updates."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LATE_UPDATES, LATE_SHARE = 20, 0.1
"""A run's speed is known after so many updates and so large a share of its time."""

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}


class StopFlag:
    """Says whether the run should save its state and stop, and with which exit code.

    Args:
        max_hours: time limit; 0 for none.
        since: `time.monotonic()` that the limit counts from; None: now.
        when_late: stop as soon as the updates so far say that the limit will not do.

    Attributes:
        has_moved: whether this call has made an update; before that the limit stops nothing, so that a run whose
            setting up takes longer than its limit comes to its end all the same, an update a call.
    """

    def __init__(self, max_hours: float = 0.0, since: float | None = None, when_late: bool = False) -> None:
        start = time.monotonic() if since is None else since
        self.when_late, self.is_late = when_late, False
        self.judged_s = LATE_SHARE * 3600 * max_hours
        self.first: tuple[int, float] | None = None
        self.deadline = start + 3600 * max_hours if max_hours > 0 else None
        self.signal: int | None = None
        self.has_moved = False

    @property
    def _is_out_of_time(self) -> bool:
        return self.deadline is not None and self.has_moved and (self.is_late or time.monotonic() >= self.deadline)

    def note_update(self, update: int, last: int) -> None:
        """Take note of an update that was made, and judge by the time since the first one when `last` will be."""
        if not self.when_late or self.deadline is None:
            return
        now = time.monotonic()
        self.first = self.first or (update, now)
        made, passed = update - self.first[0], now - self.first[1]
        is_judged = made >= LATE_UPDATES and passed >= self.judged_s
        self.is_late = is_judged and now + passed / made * (last - update) > self.deadline

    @property
    def is_requested(self) -> bool:
        """Whether to stop: read often, between the forwards of an update and inside a validation."""
        return self.signal is not None or self._is_out_of_time

    def check(self) -> tuple[str, int] | None:
        """Return why to stop and the exit code, or None."""
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            return f"stopped by {name}", EXIT_CODES[signal.Signals(self.signal)]
        if self._is_out_of_time:
            return "stopped by training.max_hours", 75
        return None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGUSR1 while inside; a second SIGINT interrupts at once."""
        before = {number: signal.getsignal(number) for number in EXIT_CODES}

        def note(number: int, _: FrameType | None) -> None:
            if self.signal == signal.SIGINT == number:
                raise KeyboardInterrupt
            self.signal = number

        for number in EXIT_CODES:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
