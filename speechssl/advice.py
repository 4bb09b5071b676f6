"""What a sentence tells the user to type: `key=value` as a shell and the command line's grammar take it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

CONDITION = re.compile(r"[\w.-]+=[\w. -]*", re.ASCII)
"""A value such as `speaker=19`, which the command line takes without quotes though it has a `=`."""

_BARE = re.compile(r"([A-Za-z_/]|\.\.?/)[\w./-]*", re.ASCII)
"""Text that the grammar reads as itself without quotes: no number, no list, no function."""

_MEANS_ELSE = frozenset({"true", "false", "null", "nan", "inf"})


def spell(key: str, value: Any) -> str:
    """Spell `key=value` so that it can be pasted into bash or zsh, and the command line reads this very value.

    Args:
        key: a dotted name.
        value: text, a number, a truth, None, or lists and mappings of these.
    """
    if isinstance(value, str) and (value == "" or CONDITION.fullmatch(value)):
        return quote_for_shell(f"{key}={value}")
    return quote_for_shell(f"{key}={_spell_value(value)}")


def quote_for_shell(text: str) -> str:
    """Quote one word for bash and zsh, on one line of printable characters.

    What is not printable is given byte by byte, since bash reads a code such as a backslash and u200c by the locale.
    """
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(_spell_character(character) for character in text)}'"


def escape_interpolations(text: str) -> str:
    """Escape `${`, which the configuration would take for the value of another key."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def _spell_value(value: Any) -> str:
    if isinstance(value, str):
        return _spell_text(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_spell_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_spell_value(item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _spell_text(text: str) -> str:
    if _BARE.fullmatch(text) and text.lower() not in _MEANS_ELSE:
        return text
    escaped = escape_interpolations(text)
    # Backslashes count for the grammar only where a quote follows them, and those at the end are before one.
    return '"' + re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), escaped) + '"'


def _spell_character(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
