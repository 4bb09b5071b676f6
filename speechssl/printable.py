"""Text of others made safe for a line of ours: on a terminal, in a log, in a table."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Container, Sequence

UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that a line never holds: controls (escapes, newlines, tabs), lone surrogates, line separators."""

DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of what follows, and so can make a line read as another one."""


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def make_printable(text: str) -> str:
    r"""Spell what could move the cursor, end the line or turn its direction as an escape (`\n`, `\x1b`, `\u202e`).

    Args:
        text: a file name, an id, a transcript, a server's words.

    Returns:
        One line, the same for all other characters, a backslash included; made printable twice it stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _is_unsafe(c) else c for c in text)


def escape_field(text: str) -> str:
    """Write a text so that it can stand in a field of a tab-separated file, as manifests do, with backslashes."""
    return text.translate(_ESCAPES)


def make_json_printable(text: str) -> str:
    r"""Do the same to JSON, where it changes no value: what it holds is spelled as JSON does (`\u202e`)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"\\u{ord(c):04x}" if c not in "\n" and _is_unsafe(c) else c for c in text)


def is_storable(text: str) -> bool:
    """Say whether a path or a file in UTF-8 can hold a text: no NUL, and no bytes of a name in another encoding."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)


def abbreviate(text: str, limit: int = 100) -> str:
    """Cut a text that a sentence repeats."""
    return text if len(text) <= limit else f"{text[:limit]} …"


def log_lines(text: str, level: int = logging.INFO) -> None:
    """Log a table that we made, a record a line: within a record, a line break would be somebody else's."""
    for line in text.split("\n"):
        logging.getLogger("speechssl").log(level, "%s", line)


def format_columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> str:
    """Lay cells out in columns, each made printable.

    Args:
        rows: equally many cells each.
        right: columns that are flush right.
    """
    cells = [[make_printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        pairs = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(cell.rjust(width) if k in right else cell.ljust(width) for k, (cell, width) in pairs))
    return "\n".join(line.rstrip() for line in lines)


class OneLine(logging.Filter):
    """Makes each record one printable line, for whoever handles it: our handler, or that of a program which uses us."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record, and let it pass."""
        record.msg, record.args = make_printable(record.getMessage()), ()
        return True


def _is_unsafe(character: str) -> bool:
    return character in DIRECTIONS or unicodedata.category(character) in UNSAFE


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
