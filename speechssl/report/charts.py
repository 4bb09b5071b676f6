"""Curves as data for uPlot: series over one common axis, smoothed and thinned, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from speechssl.report.content import Figure, format_number

FloatArray = npt.NDArray[np.float64]

MAX_POINTS = 240
"""Points that a curve keeps: a chart has no more pixels to show them, and the page stays small."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: what the legend calls it.
        style: CSS variable of its colour: `train`, `valid`, `ink`, `c1` … `c5`.
        x, y: the points, x rising.
        low, high: band around y; empty without one.
        kind: `line`, `thin` (dashed), `points` or `bars`.
        is_shown: False: it stands in the legend, and a click there draws it.
    """

    label: str
    style: str
    x: FloatArray
    y: FloatArray
    low: FloatArray = field(default_factory=lambda: np.empty(0))
    high: FloatArray = field(default_factory=lambda: np.empty(0))
    kind: str = "line"
    is_shown: bool = True


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
        """Give what page.js reads: one axis x with the points of all series, and each series over it, null between."""
        x = np.unique(np.concatenate([series.x for series in self.series]))
        rows = []
        for series in self.series:
            row: dict[str, Any] = {"label": series.label, "style": series.style, "kind": series.kind}
            row |= {"shown": series.is_shown, "y": _spread(x, series.x, series.y)}
            if len(series.low):
                row |= {name: _spread(x, series.x, getattr(series, name)) for name in ("low", "high")}
            rows.append(row)
        axes = {"x": _round(x, 7), "xLabel": self.x_label, "yLabel": self.y_label}
        return {**axes, "zero": self.from_zero, "logX": self.log_x, "small": self.is_small, "series": rows}

    def describe(self) -> list[str]:
        """Say in words where each series begins and ends, for those who see no picture."""
        words = []
        for series in self.series:
            first, last = (format_number(float(series.y[k])) for k in (0, -1))
            start, end = (format_number(float(series.x[k])) for k in (0, -1))
            words.append(f"{series.label}: " + (last if first == last else f"{first} at {start}, {last} at {end}"))
        return words


def plot(
    title: str,
    y_label: str,
    series: Sequence[Series | None],
    note: str = "",
    levels: Sequence[tuple[str, float]] = (),
    is_wide: bool = False,
    **options: Any,
) -> list[Figure]:
    """Make the figure of some series; [] where none has a point.

    Args:
        title: of the figure.
        y_label: what the vertical axis counts, with its unit.
        series: None is left out.
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
    return [Figure(title, Chart([*present, *lines], y_label, **options), note, is_wide=is_wide)]


def make_series(
    label: str, style: str, x: Sequence[float], y: Sequence[float], smooth: bool = False, band: bool = True, **options: Any
) -> Series | None:
    """Make a series of the finite points; None without any.

    Args:
        label: what the legend calls it.
        style: CSS variable of its colour.
        x: places, rising.
        y: values.
        smooth: draw the mean over about 1/20 of the run.
        band: draw the middle 80 % of the values that the mean covers as a band around it.
        options: of `Series`.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if not len(xs):
        return None
    places = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), MAX_POINTS)).round().astype(int))
    if not smooth or len(xs) < 12:
        return Series(label, style, xs[places], ys[places], **options)
    reach = max(len(xs) // 40, 1)
    windows = [ys[max(place - reach, 0) : place + reach + 1] for place in places]
    mean = np.array([window.mean() for window in windows])
    if not band:
        return Series(label, style, xs[places], mean, **options)
    low, high = (np.array([np.percentile(window, share) for window in windows]) for share in (10, 90))
    return Series(label, style, xs[places], mean, low, high, **options)


def choose_style(number: int) -> dict[str, str]:
    """Choose colour and kind of the n-th of several runs, so that ten can be told apart."""
    return {"style": f"c{number % 5 + 1}", "kind": "thin" if number % 10 >= 5 else "line"}


def _spread(x: FloatArray, places: FloatArray, values: FloatArray) -> list[float | None]:
    """Put values at their places on the common axis, None elsewhere."""
    known = dict(zip(places.tolist(), _round(values, 4), strict=True))
    return [known.get(place) for place in x.tolist()]


def _round(values: FloatArray, digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]
