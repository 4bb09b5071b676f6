"""Text of others made safe for a line of ours: on a terminal, in a log, in a table."""

from __future__ import annotations

import unicodedata

UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that a line never holds: controls (escapes, newlines, tabs), lone surrogates, line separators."""

DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of what follows, and so can make a line read as another one."""


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


def _is_unsafe(character: str) -> bool:
    return character in DIRECTIONS or unicodedata.category(character) in UNSAFE


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
