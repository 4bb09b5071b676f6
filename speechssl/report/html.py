"""Small pieces of HTML: escaped text, numbers as people write them, tables, figures, sections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as _escape

MINUS = "\N{MINUS SIGN}"
THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"


def escape(text: object) -> str:
    """Escape anything for use in HTML text or in an attribute."""
    return _escape(str(text), quote=True)


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
        return f"{sign}{mantissa.removesuffix('.0')}×10{_raise(int(exponent))}"
    decimals = max(digits - 1 - math.floor(math.log10(rounded)), 0)
    return sign + f"{size:.{decimals}f}"


def format_percent(share: float, digits: int = 3) -> str:
    """Write a share (0 to 1) as a percentage."""
    return f"{format_number(100 * share, digits)}{THIN_SPACE}%"


def format_hours(hours: float) -> str:
    """Write a duration in the unit that suits it."""
    amount, unit = (hours, "hour") if hours >= 1 else (hours * 60, "minute")
    return f"{format_number(amount)} {unit}" + ("" if amount == 1 else "s")


def format_value(value: object) -> str:
    """Write a value of a configuration or a result."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "–"}[value]
    if isinstance(value, (int, float)):
        return format_number(value, 4)
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value) or "–"
    return str(value) or "–"


@dataclass(frozen=True)
class Stat:
    """One figure that a reader should see first: its value, what it is, and what to compare it with."""

    value: str
    name: str
    comparison: str = ""


def make_stats(stats: Sequence[Stat]) -> str:
    """Lay figures out in a row; '' without any."""
    if not stats:
        return ""
    cells = [
        f'<div class="stat"><dt>{escape(s.name)}</dt><dd>{escape(s.value)}</dd>'
        f'<dd class="against">{escape(s.comparison)}</dd></div>'
        for s in stats
    ]
    return f'<dl class="stats">{"".join(cells)}</dl>'


def make_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", numeric: Sequence[int] = ()
) -> str:
    """Make a table of text; the cells are escaped here.

    Args:
        head: column titles.
        rows: cells.
        caption: one line above.
        numeric: columns that are set flush right.
    """
    classes = [' class="num"' if column in numeric else "" for column in range(len(head))]
    top = "".join(f"<th scope=col{c}>{escape(title)}</th>" for title, c in zip(head, classes, strict=True))
    body = [
        "<tr>" + "".join(f"<td{c}>{escape(cell)}</td>" for cell, c in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    ]
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def make_quote(text: str | None) -> str:
    """Set what was said as a quotation, text in capitals as small ones; '' without text."""
    if not text:
        return ""
    style = "said capitals" if text.isupper() else "said"
    return f'<p class="{style}">“{escape(text)}”</p>'


def make_figure(title: str, picture: str, note: str = "", unit: str = "", kind: str = "") -> str:
    """Put a picture (HTML or SVG) under its title and over a sentence that says what it shows.

    Args:
        title: plain text.
        picture: HTML.
        note: HTML; what a reader sees.
        unit: plain text beside the title.
        kind: `wide` for the whole width, `small` for a quarter of it; else a third.
    """
    beside = f' <span class="unit">{escape(unit)}</span>' if unit else ""
    under = f'<p class="note">{note}</p>' if note else ""
    return f'<figure class="{escape(kind)}"><figcaption>{escape(title)}{beside}</figcaption>{picture}{under}</figure>'


def make_section(title: str, content: str, lead: str = "", css: str = "grid") -> str:
    """Give some figures a heading and a sentence; '' without content."""
    if not content:
        return ""
    under = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section><h3>{escape(title)}</h3>{under}<div class="{css}">{content}</div></section>'


def _raise(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
