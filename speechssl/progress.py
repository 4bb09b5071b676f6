"""Progress on stderr: a bar on a terminal, an occasional plain line in a pipe."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from speechssl.printable import make_printable

T = TypeVar("T")

LINE_EVERY_S = 10.0
"""Seconds between two plain lines."""

_logger = logging.getLogger("speechssl")


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "items") -> Iterator[T]:
    """Yield the items and show how far they are.

    Args:
        items: what is worked through.
        description: a few words for the line or the bar.
        total: how many items come; their length where they have one.
        unit: what an item is called, in the plural.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        return _show_bar(items, description, total, unit)
    return _log_lines(items, description, total, unit)


def _show_bar(items: Iterable[T], description: str, total: int | None, unit: str) -> Iterator[T]:
    """Show a bar that disappears when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # stdout stays as it is: the JSON line and piped text must not go through the terminal's console.
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        yield from progress.track(items, total=total, description=make_printable(description))


def _log_lines(items: Iterable[T], description: str, total: int | None, unit: str) -> Iterator[T]:
    """Log a line every `LINE_EVERY_S` seconds, and one at the end where there was one before."""
    start = last = time.monotonic()
    done, has_logged = 0, False
    of_total = f" of {total}" if total is not None else ""
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            _logger.info("%s: %d%s %s in %.0f s", description, done, of_total, unit, now - start)
            last, has_logged = now, True
    if has_logged:
        _logger.info("%s: all %d %s in %.0f s", description, done, unit, time.monotonic() - start)
