"""Charts that are not curves, as inline SVG: code use, layers, weights, counts, and points in a plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechssl.report.html import escape, format_number, format_percent
from speechssl.report.svg import (
    Frame,
    Level,
    draw_box,
    draw_levels,
    draw_line,
    draw_text,
    draw_value_axis,
    wrap_svg,
)

FloatArray = npt.NDArray[np.float64]
NUM_COLOURS = 5
SHAPES = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z",
    "M-3.6-3.6H3.6V3.6H-3.6Z",
    "M0-4.8L4.4 3.2H-4.4Z",
    "M0-5L4.6 0L0 5L-4.6 0Z",
    "M-1.4-4.4H1.4V-1.4H4.4V1.4H1.4V4.4H-1.4V1.4H-4.4V-1.4H-1.4Z",
)
"""Circle, square, triangle, diamond, cross: a group is told by shape and colour together."""


@dataclass(frozen=True)
class Point:
    """A measured value, with its interval where there is one."""

    x: str
    y: float
    low: float | None = None
    high: float | None = None


def draw_use(shares: FloatArray, style: str, name: str) -> str:
    """Draw how often each code is chosen, the busiest first, with the line that equal use would draw.

    Args:
        shares: (V,) share of the frames, 0 to 1.
        style: CSS class of the colour.
        name: what the chart is called in its description.
    """
    ordered = np.sort(shares)[::-1]
    count = len(ordered)
    frame = Frame(400, 180, (0.0, float(count)), (0.0, float(max(ordered[0] * 1.1, 1.5 / count))), top=14)
    step = frame.x(1) - frame.x(0)
    gap = 1.0 if step > 3 else 0.0
    parts = [draw_value_axis(frame, format_percent, 4)]
    for k, share in enumerate(ordered.tolist()):
        place = frame.x(k), frame.y(share), step - gap, frame.bottom - frame.y(share)
        parts.append(draw_box(*place, f"fill {style}", f"rank {k + 1}: {format_percent(share)}") if share else "")
    parts.append(draw_text(frame.left, 173, "busiest code") + draw_text(frame.right, 173, f"rank {count}", "tick end"))
    parts.append(draw_levels(frame, [Level(1 / count, "equal use")]))
    used, top = int((shares > 0).sum()), format_percent(float(ordered[0]))
    label = f"{name}: {used} of {count} codes used, the busiest for {top} of the frames"
    return wrap_svg(frame.width, frame.height, "".join(parts), label)


def draw_layers(
    series: Sequence[tuple[str, str, Sequence[Point]]],
    levels: Sequence[Level],
    describe: Callable[[float], str],
    name: str,
) -> str:
    """Draw a value for each layer as dots with whiskers, beside lines to compare with.

    Args:
        series: label, CSS class and points; all series have the same places in the same order.
        levels: lines.
        describe: writes a value.
        name: what is measured, for the description.
    """
    places = [point.x for point in series[0][2]]
    values = [v for _, _, points in series for p in points for v in (p.y, p.low, p.high) if v is not None]
    values += [level.value for level in levels]
    low, high = min(values), max(values)
    pad = 0.1 * (high - low) or 1.0
    frame = Frame(400, 230, (-0.6, len(places) - 0.4), (max(low - pad, 0.0), high + pad), top=16)
    parts = [draw_value_axis(frame, describe, 5)]
    every = 1 if len(places) <= 14 else 2
    parts += [draw_text(frame.x(k), 223, text, "tick mid") for k, text in enumerate(places) if k % every == 0]
    parts.append(draw_levels(frame, list(levels)))
    parts += [_draw_points(frame, style, points, describe) for _, style, points in series]
    keys = "".join(f'<span class="key {style}">{escape(label)}</span>' for label, style, _ in series)
    said = [f"{label}, layer {p.x}: {describe(p.y)}" for label, _, points in series for p in points]
    said += [f"{level.label}: {describe(level.value)}" for level in levels]
    legend = f'<p class="legend">{keys}</p>' if len(series) > 1 else ""
    return legend + wrap_svg(frame.width, frame.height, "".join(parts), f"{name}; " + "; ".join(said))


def draw_weights(weights: Sequence[float], name: str) -> str:
    """Draw the share of each layer in a learned mix as bars, with the line of an equal mix."""
    frame = Frame(400, 230, (-0.6, len(weights) - 0.4), (0.0, max(*weights, 1 / len(weights)) * 1.15), top=14)
    width = (frame.x(1) - frame.x(0)) * 0.62
    every = 1 if len(weights) <= 14 else 2
    parts = [draw_value_axis(frame, format_percent, 4)]
    for k, weight in enumerate(weights):
        place = frame.x(k) - width / 2, frame.y(weight), width, frame.bottom - frame.y(weight)
        parts.append(draw_box(*place, "fill c1", f"layer {k}: {format_percent(weight)}"))
        parts.append(draw_text(frame.x(k), 223, str(k), "tick mid") if k % every == 0 else "")
    parts.append(draw_levels(frame, [Level(1 / len(weights), "equal mix")]))
    said = ", ".join(f"layer {k} {format_percent(weight)}" for k, weight in enumerate(weights))
    return wrap_svg(frame.width, frame.height, "".join(parts), f"{name}: {said}")


def draw_points(points: FloatArray, groups: Sequence[str], name: str) -> str:
    """Draw points in a plane, each group with its own shape and colour and its name at its middle.

    Args:
        points: (n, 2).
        groups: n names.
        name: for the description.
    """
    low, high = points.min(0), points.max(0)
    span = np.maximum(high - low, 1e-9)
    places = 22 + (points - low) / span * np.array([356.0, 296.0])
    names = sorted(set(groups))
    marks, labels = [], []
    taken: list[tuple[float, float]] = []
    for number, group in enumerate(names):
        own = places[[k for k, g in enumerate(groups) if g == group]]
        shape = SHAPES[(number // NUM_COLOURS + number) % len(SHAPES)]
        style = f"c{number % NUM_COLOURS + 1}"
        marks += [_draw_mark(shape, style, x, y, group) for x, y in own.tolist()]
        middle = np.median(own, axis=0)
        x, y = _find_free(float(middle[0]), float(middle[1]), taken)
        labels.append(draw_text(x, y, group, f"name {style}"))
    text = f"{name}: {len(points)} points in {len(names)} groups: {', '.join(names)}"
    return wrap_svg(400, 340, "".join(marks + labels), text)


def draw_counts(rows: Sequence[tuple[str, int]], name: str) -> str:
    """Draw counts as bars that lie under one another, as an HTML list. The labels are HTML."""
    top = max((count for _, count in rows), default=1)
    items = "".join(
        f'<li><span class="what">{label}</span><span class="bar" style="--share:{count / top:.3f}"></span>'
        f'<span class="count">{format_number(count)}</span></li>'
        for label, count in rows
    )
    return f'<ol class="counts" aria-label="{escape(name)}">{items}</ol>'


def _find_free(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """Find a place near (x, y) that is not on a name which stands already, and take it."""
    for shift in (0, 14, -14, 28, -28, 42, -42):
        place = (float(np.clip(x, 30, 370)), float(np.clip(y + shift + 4, 14, 332)))
        if all(abs(place[0] - a) > 46 or abs(place[1] - b) > 12 for a, b in taken):
            break
    taken.append(place)
    return place


def _draw_mark(shape: str, style: str, x: float, y: float, title: str) -> str:
    place = f'transform="translate({x:.1f} {y:.1f})"'
    return f'<path class="mark {style}" d="{shape}" {place}><title>{escape(title)}</title></path>'


def _draw_points(frame: Frame, style: str, points: Sequence[Point], describe: Callable[[float], str]) -> str:
    parts = []
    for k, point in enumerate(points):
        x, y = frame.x(k), frame.y(point.y)
        if point.low is not None and point.high is not None:
            parts.append(draw_line(x, x, frame.y(point.low), frame.y(point.high), f"whisker {style}"))
        title = f"<title>layer {escape(point.x)}: {escape(describe(point.y))}</title>"
        parts.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{title}</circle>')
    return "".join(parts)
