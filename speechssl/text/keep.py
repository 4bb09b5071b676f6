"""`text.keep`: characters that become labels, how they are written on a command line, and how they are named."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from speechssl.advice import spell
from speechssl.errors import ConfigError
from speechssl.text.pieces import WORD_START

WORD_BOUNDARY = "|"
"""The symbol that stands for the space between words and, as in fairseq's labels, after the last one."""

_ESCAPE = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}")


def read_keep(keep: str) -> str:
    r"""Read `text.keep`, in which `\xHH`, `\uHHHH` and `\UHHHHHHHH` stand for one character, as in Python.

    Raises:
        ConfigError: there is no such character.
    """
    try:
        return _ESCAPE.sub(lambda match: chr(int(match[0][2:], 16)), keep)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"`text.keep` must be characters of Unicode, but is {keep[:80]}") from error


def write_keep(letters: Iterable[str]) -> str:
    r"""Write `text.keep=…` so that a shell and the grammar of overrides read it as these letters.

    What cannot be seen, or means something to one of the two, is an escape such as `\u200c`.
    """
    # A mark behind a letter would be one with it.
    ordered = sorted(letters, key=lambda c: not unicodedata.combining(c))
    return spell("text.keep", "".join(c if _is_plain(c) else _escape(c) for c in ordered))


def name_letters(counts: Mapping[str, int] | Iterable[str], most: int = 20) -> str:
    """List the first of some characters, with how often each was seen where that is given.

    What cannot be seen by itself is named by its number.
    """
    times = {c: f" {n} ×" for c, n in counts.items()} if isinstance(counts, Mapping) else dict.fromkeys(counts, "")
    named = [(f"{c!r}" if _is_plain(c) or c.isascii() else f"U+{ord(c):04X}") + n for c, n in times.items()]
    more = f" and {len(named) - most:,} others" if len(named) > most else ""
    return ", ".join(named[:most]) + more


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_plain(character: str) -> bool:
    """Say whether a character is seen by itself and means nothing to a shell or a grammar in double quotes."""
    return unicodedata.category(character)[0] in "LNSP" and character not in "'\"\\${}`!"


def read_label(character: str, spelling: str) -> str:
    """Check that a character of `text.keep` can be a label, and give how it is spelt."""
    if not spelling:
        code = f"U+{ord(character):04X}"
        raise ConfigError(f"`text.keep` must be what spells words, but {code} is left out of every text")
    if spelling.isspace() or spelling in (WORD_BOUNDARY, WORD_START) or unicodedata.category(character) == "Cs":
        raise ConfigError(f"`text.keep` must be characters other than spaces, '|' and '▁', but has {character!r}")
    return spelling
