"""What page.html lays out, as plain data: stats, tables, curves, sections; and numbers as people write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MINUS = "\N{MINUS SIGN}"
THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"

MAX_POINTS = 240
"""Points that a curve keeps: a chart has no more pixels to show them, and the page stays small, with 30 runs too."""


class Stat(NamedTuple):
    """One figure that a reader should see first: its value, what it is, and what to compare it with."""

    value: str
    name: str
    comparison: str = ""


class Verdict(NamedTuple):
    """An answer to "is my run healthy?": `good`, `doubt`, `bad` or `open`, in a few words, and why."""

    level: str
    title: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers under a head; numbers are written by `format_value` and set flush right."""

    macro: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture (anything that names its macro of page.html), its title, and a sentence that says what it shows."""

    title: str
    content: Any
    note: str = ""
    is_wide: bool = False


class Section(NamedTuple):
    """Some figures under a heading."""

    title: str
    figures: Sequence[Figure]
    lead: str = ""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: what the legend calls it.
        style: CSS variable of its colour: `train`, `valid`, `ink`, `c1` … `c5`.
        x, y: the points, x rising.
        low, high: band around y; None without one.
        kind: `line`, `thin` (dashed), `points` or `bars`.
        is_shown: False: it stands in the legend, and a click there draws it.
        ends: the first and last value as they were logged, where y is smoothed.
    """

    label: str
    style: str
    x: FloatArray
    y: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None
    kind: str = "line"
    is_shown: bool = True
    ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """Some series, and what their axes are."""

    macro: ClassVar[str] = "chart"
    series: Sequence[Series]
    y_label: str
    x_label: str = "update"
    from_zero: bool = False
    log_x: bool = False
    is_small: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give what page.js reads: one axis x for all series; `at` says where on it a series has values, if not all."""
        x = np.unique(np.concatenate([series.x for series in self.series]))
        rows = []
        for series in self.series:
            columns = {"y": series.y, "low": series.low, "high": series.high}
            row: dict[str, Any] = {"label": series.label + (", smoothed" if series.ends else ""), "style": series.style}
            row |= {"kind": series.kind, "shown": series.is_shown}
            row |= {"at": np.searchsorted(x, series.x).tolist()} if len(series.x) < len(x) else {}
            row |= {name: [float(f"{v:.4g}") for v in values] for name, values in columns.items() if values is not None}
            rows.append(row)
        axes = {"x": [float(f"{place:.7g}") for place in x], "xLabel": self.x_label, "yLabel": self.y_label}
        return {**axes, "zero": self.from_zero, "logX": self.log_x, "small": self.is_small, "series": rows}

    def describe(self) -> list[str]:
        """Say in words where each series begins and ends, as logged, for those who see no picture."""
        words = []
        for series in self.series:
            first, last = map(format_value, series.ends or (series.y[0], series.y[-1]))
            start, end = (format_value(float(series.x[k])) for k in (0, -1))
            words.append(f"{series.label}: " + (last if first == last else f"{first} at {start}, {last} at {end}"))
        return [*words[:-1], f"{words[-1]} ({self.y_label})" if self.y_label else words[-1]]


def plot(
    title: str,
    y_label: str,
    series: Sequence[Series | None],
    note: str = "",
    levels: Sequence[tuple[str, float]] = (),
    is_wide: bool = False,
    **options: Any,
) -> list[Figure]:
    """Make the figure of some series (None is left out); [] where none has a point.

    Args:
        title: of the figure.
        y_label: what the vertical axis counts, with its unit.
        series: curves.
        note: a sentence under the chart.
        levels: values to compare with, drawn as dotted lines from end to end.
        is_wide: take both columns.
        options: of `Chart`.
    """
    present = [each for each in series if each is not None]
    if not present:
        return []
    ends = np.array(sorted({min(s.x[0] for s in present), max(s.x[-1] for s in present)}))
    lines = [Series(label, "ink", ends, np.full(len(ends), value), kind="thin") for label, value in levels]
    return [Figure(title, Chart([*present, *lines], y_label, **options), note, is_wide)]


def make_series(
    label: str,
    style: str,
    x: Sequence[float],
    y: Sequence[float],
    smooth: bool = False,
    band: bool = True,
    num_points: int = MAX_POINTS,
    **options: Any,
) -> Series | None:
    """Make a series of the finite points; None without any.

    Args:
        label: what the legend calls it.
        style: CSS variable of its colour.
        x: places, rising.
        y: values.
        smooth: draw the mean over about 1/20 of the run.
        band: draw the middle 80 % of the values that the mean covers as a band around it.
        num_points: that are kept at most.
        options: of `Series`.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if not len(xs):
        return None
    if not smooth or len(xs) < 12:
        places = _thin(ys, num_points)
        return Series(label, style, xs[places], ys[places], **options)
    places = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), num_points)).round().astype(int))
    reach = max(len(xs) // 40, 1)
    windows = [ys[max(place - reach, 0) : place + reach + 1] for place in places]
    if band:
        options |= {k: np.array([np.percentile(w, share) for w in windows]) for k, share in (("low", 10), ("high", 90))}
    means = np.array([window.mean() for window in windows])
    return Series(label, style, xs[places], means, ends=(float(ys[0]), float(ys[-1])), **options)


def choose_style(number: int) -> dict[str, Any]:
    """Choose colour and kind of the n-th of several runs, so that ten can be told apart."""
    return {"style": f"c{number % 5 + 1}", "kind": "thin" if number % 10 >= 5 else "line"}


def format_number(value: float, digits: int = 3) -> str:
    """Write a number for people: `digits` significant ones, thousands apart, powers of ten where very small.

    One that is not finite is written as an en dash, and whole numbers and those above 1000 without decimals.
    """
    if not math.isfinite(value):
        return "–"
    sign, size = (MINUS if value < 0 else ""), abs(value)
    rounded = float(f"{size:.{digits}g}")
    if size == 0 or rounded >= 1000 or (float(size).is_integer() and size >= 1):
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
    amount, unit = next((hours * n, unit) for n, unit in ((1, "hour"), (60, "minute"), (3600, "second"))
                        if hours * n >= 1 or n == 3600)  # fmt: skip
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


def is_number(value: Any) -> TypeGuard[float]:
    """Say whether a value of a stranger's file is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _thin(values: FloatArray, number: int) -> npt.NDArray[np.int_]:
    """Choose at most `number` places: the first, the last, and where each stretch is lowest and highest."""
    if len(values) <= number:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(len(values)), number // 2 - 1)
    extremes = [places[choose(values[places])] for places in stretches for choose in (np.argmin, np.argmax)]
    return np.unique([0, *extremes, len(values) - 1])
