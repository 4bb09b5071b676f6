"""Progress and logs on stderr: a bar on a terminal or in a notebook, a plain line now and then in a pipe."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self, TypeVar

from speechssl.printable import make_printable

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Display

T = TypeVar("T")

LINE_EVERY_S = 10.0
"""Seconds between two plain lines."""

_logger = logging.getLogger("speechssl")
_display: Display | None = None
"""What draws the bars while there are any: a validation inside a training has one below the training's."""


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "items") -> Iterator[T]:
    """Yield the items and show how many are done.

    Args:
        items: what is worked through.
        description: a few words for the line or the bar.
        total: how many items come; their length where they have one.
        unit: what an item is called, in the plural.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(description, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


class Progress:
    """How far some work is; use it in a `with` statement.

    Args:
        description: a few words for the line or the bar.
        total: how much there is to do; None where nobody knows. A float is told to two decimals, and with
            how much is done in a second.
        unit: what is counted, in the plural.
        done: how much was done earlier, as in a run that was resumed.
        has_bar: whether to draw a bar where one can be drawn.
        has_lines: whether to log a line now and then where there is no bar.
    """

    def __init__(
        self,
        description: str,
        total: float | None = None,
        unit: str = "items",
        done: float = 0,
        has_bar: bool = True,
        has_lines: bool = True,
    ) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self.has_bar, self.has_lines = has_bar and _has_screen(), has_lines
        self._values: dict[str, str] = {}
        self._task: Any = None
        self._has_logged = False
        self._first = done
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._start = self._last = time.monotonic()
        if self.has_bar:
            _show(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.has_bar:
            _hide(self)
        elif self._has_logged and kind is None:
            count = f"{_format_count(self.done)} {self.unit}"
            _logger.info("%s: all %s in %s%s", self.description, count, _format_time(self._elapsed_s), self._rate)

    def advance(self, n: float = 1, **values: float | str) -> None:
        """Count what was done.

        Args:
            n: how much of it.
            values: shown beside the count from now on: `loss=5.1, best="4.8 at update 500"`.
        """
        self.done += n
        self._values |= {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in values.items()}
        if self._task is not None and _display is not None:
            _display.update(self._task, completed=self.done, values=self._format_values())
        elif self.has_lines and time.monotonic() - self._last >= LINE_EVERY_S:
            self._log()

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def left(self) -> str:
        """How long the rest takes at the speed so far, as "12 min left"; empty where nobody knows."""
        if self.total is None or self.done <= self._first:
            return ""
        left_s = self._elapsed_s * (self.total - self.done) / (self.done - self._first)
        return f"{_format_time(left_s)} left"

    @property
    def _rate(self) -> str:
        """Say how much is done in a second, where parts of one are counted."""
        is_quick = isinstance(self.done, int) or self._elapsed_s <= 0
        return "" if is_quick else f" ({(self.done - self._first) / self._elapsed_s:.3g} a second)"

    def _log(self) -> None:
        self._last, self._has_logged = time.monotonic(), True
        left, values = f", {self.left}" if self.left else "", f"; {self._format_values()}" if self._values else ""
        of_total = f" of {_format_count(self.total)}" if left and self.total is not None else ""
        count = f"{_format_count(self.done)}{of_total} {self.unit}"
        took = f"{_format_time(self._elapsed_s)}{self._rate}"
        _logger.info("%s: %s in %s%s%s", self.description, count, took, left, values)

    def _format_values(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self._values.items())


def show_logs(always: bool = False) -> None:
    """Print the package's log to stderr, unless a program that uses the package has set up logging of its own.

    Args:
        always: whether or not it has, as the command line does.
    """
    if not any(isinstance(handler, _StderrHandler) for handler in _logger.handlers):
        if not always and _logger.hasHandlers():
            return
        handler = _StderrHandler()
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))
        _logger.addHandler(handler)
    _logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to what `sys.stderr` is at the time, so that lines go above a bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _has_screen() -> bool:
    """Say whether a bar can be drawn: on a terminal or in a notebook, and by one process of several."""
    is_notebook = "ipykernel" in sys.modules and find_spec("ipywidgets") is not None
    return os.environ.get("RANK", "0") == "0" and (sys.stderr.isatty() or is_notebook)


def _show(progress: Progress) -> None:
    """Add a bar to the display, and open the display for the first one: rich has one at a time."""
    global _display
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display
    from rich.table import Column
    from rich.text import Text

    class TimeLeft(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            return Text("") if task.total is None else super().render(task) + Text(" left")

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            total = "?" if task.total is None else _format_count(task.total)
            return Text(f"{_format_count(task.completed)}/{total}")

    if _display is None:
        # Where a terminal is narrow, the last values are cut, and no number or time.
        whole = Column(no_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False, table_column=whole),
            BarColumn(bar_width=12),
            Count(table_column=whole),
            TextColumn("{task.fields[unit]}", markup=False, table_column=whole),
            TimeLeft(table_column=whole),
            TextColumn("{task.fields[values]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        )
        # stdout goes through the terminal's console only where it is one: piped text must stay as it is.
        console = Console(stderr=True)
        is_shared = sys.stdout.isatty()
        _display = Display(*columns, console=console, transient=True, expand=True, redirect_stdout=is_shared)
        _display.start()
    name = make_printable(progress.description)
    progress._task = _display.add_task(name, total=progress.total, unit=progress.unit, values="")
    _display.update(progress._task, completed=progress.done)


def _hide(progress: Progress) -> None:
    """Remove a bar, and close the display behind the last one."""
    global _display
    assert _display is not None
    _display.remove_task(progress._task)
    if not _display.tasks:
        _display.stop()
        _display = None


def _format_count(count: float) -> str:
    return f"{count:.2f}" if isinstance(count, float) else str(count)


def _format_time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
