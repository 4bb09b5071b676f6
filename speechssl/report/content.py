"""What page.html lays out, as plain data: stats, tables, figures, sections; and numbers as people write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

MINUS = "\N{MINUS SIGN}"
THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"


@dataclass(frozen=True)
class Stat:
    """One figure that a reader should see first: its value, what it is, and what to compare it with."""

    value: str
    name: str
    comparison: str = ""


@dataclass(frozen=True)
class Verdict:
    """An answer to "is my run healthy?": `good`, `doubt`, `bad` or `open`, in a few words, and why."""

    level: str
    title: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers under a head; numbers are written by `format_value` and set flush right."""

    macro: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    caption: str = ""


@dataclass(frozen=True)
class Bars:
    """Counts as bars under one another; a label is what was said and what was written."""

    macro: ClassVar[str] = "bars"
    rows: Sequence[tuple[tuple[str, str], int]]


@dataclass(frozen=True)
class Figure:
    """A picture (anything with the name of a macro of page.html), its title, and a sentence that says what it shows."""

    title: str
    content: Any
    note: str = ""
    unit: str = ""
    is_wide: bool = False


@dataclass(frozen=True)
class Section:
    """Some figures under a heading."""

    title: str
    figures: Sequence[Figure]
    lead: str = ""


def format_number(value: float, digits: int = 3) -> str:
    """Write a number for people: `digits` significant ones, thousands apart, powers of ten where very small.

    Args:
        value: any number; one that is not finite is written as an en dash.
        digits: significant digits below 1000; whole numbers above that.
    """
    if not math.isfinite(value):
        return "–"
    sign, size = (MINUS if value < 0 else ""), abs(value)
    rounded = float(f"{size:.{digits}g}")
    if size == 0:
        return "0"
    if rounded >= 1000 or (float(size).is_integer() and size >= 1):
        return sign + f"{size:,.0f}".replace(",", THIN_SPACE)
    if rounded < 1e-3:
        mantissa, exponent = f"{size:.1e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{sign}{mantissa.removesuffix('.0')}×10{raised}"
    return sign + f"{size:.{max(digits - 1 - math.floor(math.log10(rounded)), 0)}f}"


def format_percent(share: float, digits: int = 3) -> str:
    """Write a share (0 to 1) as a percentage."""
    return f"{format_number(100 * share, digits)}{THIN_SPACE}%"


def format_hours(hours: float) -> str:
    """Write a duration in the unit that suits it: hours, minutes or seconds."""
    units = ((1, "hour"), (1 / 60, "minute"), (0, "second"))
    size, unit = next((size, unit) for size, unit in units if hours >= size)
    amount = hours / (size or 1 / 3600)
    return f"{format_number(amount)} {unit}" + ("" if amount == 1 else "s")


def format_value(value: object) -> str:
    """Write a value of a configuration or a result."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "–"}[value]
    if isinstance(value, float) and 1e-4 <= abs(value) < 1e4:
        return f"{value:.4g}"
    if isinstance(value, (int, float)):
        return format_number(value, 4)
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value) or "–"
    return str(value) or "–"


def count(number: int, what: str) -> str:
    """Write a count with its noun: "1 update", "300 updates"."""
    return f"{format_number(number)} {what}" + ("" if number == 1 else "s")
