"""Curves over updates as inline SVG: a line for each series, lines to compare with, and data for the pointer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from speechssl.report.html import escape, format_number, format_percent
from speechssl.report.svg import (
    Frame,
    Level,
    choose_log_ticks,
    choose_ticks,
    draw_levels,
    draw_text,
    draw_value_axis,
    format_tick,
    wrap_svg,
)

FloatArray = npt.NDArray[np.float64]
MAX_POINTS = 240
"""Points that a curve keeps: more than a chart has pixels to show would only make the page heavy."""


@dataclass(frozen=True)
class Curve:
    """One series.

    Attributes:
        label: what the legend calls it.
        style: CSS class that gives colour and line: `train`, `valid`, `c1` … `c5`.
        x, y: the points, x rising.
        low, high: band around y that holds the middle 80 % of the values; empty without a band.
    """

    label: str
    style: str
    x: FloatArray
    y: FloatArray
    low: FloatArray = field(default_factory=lambda: np.empty(0))
    high: FloatArray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Mark:
    """A point to compare with, as a diamond with a label above it."""

    x: float
    y: float
    label: str


def make_curve(
    label: str, style: str, x: Sequence[float], y: Sequence[float], smooth: bool = False, band: bool = True
) -> Curve | None:
    """Make a curve of the finite points; None without any.

    Args:
        label: what the legend calls it.
        style: CSS class.
        x, y: points, x rising.
        smooth: draw the mean over about 1/20 of the run.
        band: draw the middle 80 % of the values that the mean covers as a band around it.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if not len(xs):
        return None
    if not smooth or len(xs) < 12:
        keep = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), MAX_POINTS)).round().astype(int))
        return Curve(label, style, xs[keep], ys[keep])
    curve = _smooth(label, style, xs, ys)
    return curve if band else Curve(label, style, curve.x, curve.y)


def draw_curves(
    curves: Sequence[Curve | None],
    levels: Sequence[Level] = (),
    small: bool = False,
    from_zero: bool = False,
    describe: Callable[[float], str] = format_number,
    x_name: str = "update",
    log_x: bool = False,
    marks: Sequence[Mark] = (),
) -> str:
    """Draw curves with axes and a legend; '' where no curve has a point.

    Args:
        curves: series; None is left out.
        levels: lines to compare with.
        small: a quarter of the page's width instead of a third.
        from_zero: let the vertical axis start at 0.
        describe: writes a value of the vertical axis.
        x_name: what the pointer's label calls the horizontal axis.
        log_x: let equal steps to the right multiply, over the whole width of the page; every x must be positive.
        marks: points to compare with.
    """
    present = [curve for curve in curves if curve is not None]
    if not present:
        return ""
    width, height = (900.0, 280.0) if log_x else (290.0, 150.0) if small else (400.0, 230.0)
    x_range, y_range = _find_x_range(present, marks, log_x), _find_y_range(present, levels, marks, from_zero)
    frame = Frame(width, height, x_range, y_range, log_x=log_x)
    parts = [draw_value_axis(frame, describe, 4 if small else 5), _draw_update_axis(frame)]
    parts += [_draw_curve(frame, curve) for curve in present]
    parts += [draw_levels(frame, list(levels)), *(_draw_mark(frame, mark) for mark in marks)]
    parts.append('<line class="cursor" y1="0" y2="0"/>')
    data = escape(json.dumps(_collect_data(frame, present, x_name, describe is format_percent), separators=(",", ":")))
    text = _describe_curves(present, levels, marks, describe)
    svg = wrap_svg(width, height, "".join(parts), text, f' data-chart="{data}"')
    return f'{_make_legend(present)}<div class="chart">{svg}</div>'


def make_path(points: Sequence[tuple[float, float]]) -> str:
    """Write points as the `d` of an SVG path."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _smooth(label: str, style: str, x: FloatArray, y: FloatArray) -> Curve:
    """Average a moving window at `MAX_POINTS` places; the band holds the middle 80 % of the window's values."""
    ends = np.unique(np.linspace(1, len(x), min(len(x), MAX_POINTS)).round().astype(int))
    reach = max(len(x) // 40, 1)
    windows = [y[max(end - 1 - reach, 0) : end + reach] for end in ends]
    mean = np.array([window.mean() for window in windows])
    low, high = (np.array([np.percentile(window, share) for window in windows]) for share in (10, 90))
    return Curve(label, style, x[ends - 1], mean, low, high)


def _find_x_range(curves: Sequence[Curve], marks: Sequence[Mark], log_x: bool) -> tuple[float, float]:
    """Span the points from 0 on; on a logarithmic axis with room for their labels on either side."""
    places = [float(place) for curve in curves for place in (curve.x[0], curve.x[-1])] + [mark.x for mark in marks]
    return (min(places) / 1.25, max(places) * 2) if log_x else (0.0, max(*places, 1.0))


def _find_y_range(
    curves: Sequence[Curve], levels: Sequence[Level], marks: Sequence[Mark], from_zero: bool
) -> tuple[float, float]:
    """Span the lines, the levels and the bulk of the bands: a few outliers may leave the chart."""
    values = np.concatenate([curve.y for curve in curves])
    bands = np.concatenate([np.concatenate([curve.low, curve.high]) for curve in curves])
    ends = [float(values.min()), float(values.max()), *(level.value for level in levels), *(mark.y for mark in marks)]
    if len(bands):
        ends += [float(np.percentile(bands, 3)), float(np.percentile(bands, 97))]
    low, high = min(ends), max(ends)
    if from_zero:
        low = min(low, 0.0)
    if high - low < 1e-12 + 1e-6 * abs(high):
        pad = abs(high) * 0.1 or 1.0
        return low - (0.0 if from_zero and low == 0 else pad), high + pad
    pad = 0.06 * (high - low)
    return (low if from_zero and low == 0 else low - pad), high + pad


def _draw_update_axis(frame: Frame) -> str:
    parts = []
    for value in choose_log_ticks(*frame.x_range) if frame.log_x else choose_ticks(*frame.x_range, 5):
        x = frame.x(value)
        if x > frame.right - 14:
            parts.append(
                draw_text(min(x + 4, frame.width), frame.height - 7, format_tick(value, format_number), "tick end")
            )
        else:
            parts.append(draw_text(x, frame.height - 7, format_tick(value, format_number), "tick mid"))
    return "".join(parts)


def _draw_curve(frame: Frame, curve: Curve) -> str:
    points = [(frame.x(x), frame.y(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    parts = []
    if len(curve.low):
        low, high = frame.y_range
        upper = [(frame.x(x), frame.y(min(y, high))) for x, y in zip(curve.x, curve.high, strict=True)]
        lower = [(frame.x(x), frame.y(max(y, low))) for x, y in zip(curve.x, curve.low, strict=True)]
        parts.append(f'<path class="band {curve.style}" d="{make_path(upper + lower[::-1])}Z"/>')
    parts.append(f'<path class="line {curve.style}" d="{make_path(points)}"/>')
    if len(points) <= 30:
        parts += [f'<circle class="dot {curve.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points]
    return "".join(parts)


def _draw_mark(frame: Frame, mark: Mark) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    diamond = f'<path class="mark ref" d="M0-5L4.6 0L0 5L-4.6 0Z" transform="translate({x:.1f} {y:.1f})"/>'
    return diamond + draw_text(x, y - 10, mark.label, "level mid")


def _make_legend(curves: Sequence[Curve]) -> str:
    """Name the series, unless there is only one and the figure's title names it."""
    if len(curves) == 1:
        return ""
    keys = "".join(f'<span class="key {curve.style}">{escape(curve.label)}</span>' for curve in curves)
    return f'<p class="legend">{keys}</p>'


def _collect_data(frame: Frame, curves: Sequence[Curve], x_name: str, percent: bool) -> dict[str, object]:
    """Collect what the page's script needs to label the place under the pointer."""
    plot = [frame.left, frame.top, frame.right, frame.bottom]
    rows = [{"label": c.label, "style": c.style, "x": _round(c.x, 6), "y": _round(c.y, 4)} for c in curves]
    axes = {"plot": plot, "x": frame.x_range, "log": frame.log_x, "y": frame.y_range}
    return {"name": x_name, "percent": percent, **axes, "curves": rows}


def _round(values: FloatArray, digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


def _describe_curves(
    curves: Sequence[Curve], levels: Sequence[Level], marks: Sequence[Mark], describe: Callable[[float], str]
) -> str:
    """Say in words where each curve starts and ends."""
    parts = [
        f"{c.label}: from {describe(float(c.y[0]))} at {format_number(float(c.x[0]))} "
        f"to {describe(float(c.y[-1]))} at {format_number(float(c.x[-1]))}"
        for c in curves
    ]
    parts += [f"{level.label}: {describe(level.value)}" for level in levels]
    return "; ".join([*parts, *(f"{m.label}: {describe(m.y)} at {format_number(m.x)}" for m in marks)])
