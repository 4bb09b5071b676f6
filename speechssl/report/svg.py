"""What all drawings share: SVG elements, the frame of a chart, axes with round numbers, lines to compare with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from speechssl.report.html import escape


def draw_text(x: float, y: float, content: str, style: str = "tick") -> str:
    """Write plain text at a place; `end` and `mid` in the style anchor it there."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def draw_line(x1: float, x2: float, y1: float, y2: float, style: str) -> str:
    """Draw a straight line."""
    return f'<line class="{style}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def draw_box(x: float, y: float, width: float, height: float, style: str, title: str = "") -> str:
    """Draw a rectangle; the pointer shows its title."""
    place = f'x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.0):.2f}" height="{max(height, 0.0):.2f}"'
    inside = f"><title>{escape(title)}</title></rect>" if title else "/>"
    return f'<rect class="{style}" {place}{inside}'


def wrap_svg(width: float, height: float, content: str, label: str, attributes: str = "") -> str:
    """Make a drawing of its elements, with a description for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}"{attributes}>{content}</svg>'
    )


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    value: float
    label: str


@dataclass(frozen=True)
class Frame:
    """Size of a chart and the numbers that its edges stand for; with `log_x`, equal steps to the right multiply."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = 44.0
    margin: float = 10.0
    top: float = 14.0
    base: float = 24.0
    log_x: bool = False

    @property
    def right(self) -> float:
        """Right edge of the plot."""
        return self.width - self.margin

    @property
    def bottom(self) -> float:
        """Lower edge of the plot."""
        return self.height - self.base

    def x(self, value: float) -> float:
        """Horizontal place of a value, in user units."""
        low, high = self.x_range
        if self.log_x:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Vertical place of a value, in user units."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def draw_value_axis(frame: Frame, describe: Callable[[float], str], count: int) -> str:
    """Draw about `count` rules across the plot, with their values on the left."""
    parts = []
    for value in choose_ticks(*frame.y_range, count):
        y = frame.y(value)
        parts.append(draw_line(frame.left, frame.right, y, y, "rule"))
        parts.append(draw_text(frame.left - 6, y + 3.5, format_tick(value, describe), "tick end"))
    return "".join(parts)


def draw_levels(frame: Frame, levels: list[Level]) -> str:
    """Draw lines to compare with, each with its label at the right end, above it or where there is no room below."""
    parts = []
    taken: list[float] = []
    for level in sorted(levels, key=lambda item: -item.value):
        y = frame.y(level.value)
        place = y + 13 if y < frame.top + 12 else y - 5
        if any(abs(place - other) < 12 for other in taken):
            place = y + 13
        taken.append(place)
        parts.append(draw_line(frame.left, frame.right, y, y, "level"))
        parts.append(draw_text(frame.right, place, level.label, "level end"))
    return "".join(parts)


def choose_ticks(low: float, high: float, count: int) -> list[float]:
    """Choose round numbers between two values: of the steps 1, 2 and 5, the one that gives nearest to `count`."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / count))
    choices = [_list_multiples(low, high, m * magnitude) for m in (1, 2, 5, 10)]
    return min(choices, key=lambda ticks: abs(len(ticks) - count))


def choose_log_ticks(low: float, high: float) -> list[float]:
    """Choose round numbers on a logarithmic axis: powers of ten, with 2 and 5 where they would be fewer than three."""
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    inside = [power for power in powers if low <= power <= high]
    if len(inside) >= 3:
        return inside
    return [m * power for power in powers for m in (1, 2, 5) if low <= m * power <= high] or [low, high]


def format_tick(value: float, describe: Callable[[float], str]) -> str:
    """Write a number beside an axis: without the zeros that end its decimals."""
    return re.sub(r"\.(\d*?)0+(?=\D|$)", lambda found: f".{found[1]}" if found[1] else "", describe(value))


def _list_multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]
