"""`key=value` in hydra's grammar: one word in, its value or the values of a sweep out, or one sentence."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

from speechssl.advice import CONDITION, spell
from speechssl.errors import ConfigError
from speechssl.parsing import parsing
from speechssl.printable import abbreviate, is_storable

MAX_JOBS = 1000
"""Most jobs of a sweep: more is a slip of the keyboard, and a range of a billion would take all memory."""

MAX_WORD = 10_000
"""Longest `key=value` in characters: the grammar takes seconds for more. A list of files may be one file with paths."""

ASSIGNMENT = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^\W\d]\w*(\.\w+)*)=(?P<value>.*)", re.DOTALL)
"""A word that sets a key; any other is bare."""

SEARCHPATH = "hydra.searchpath"
"""The one key of hydra's own that means something here outside sweeps: folders with more presets."""


def is_assignment(word: str) -> bool:
    """Say whether a word is `key=value`: whether an identifier path stands before the first `=`."""
    return ASSIGNMENT.fullmatch(word) is not None


def parse_override(word: str) -> Any:
    """Parse `key=value` as hydra's `Override`; None where it sets one of hydra's own keys.

    Raises:
        ConfigError: it cannot be parsed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    match = ASSIGNMENT.fullmatch(word)
    assert match is not None, word
    key, value = match["key"], match["value"]
    if key.split(".")[0] == "hydra":
        _check_own_key(key)
        return None
    if len(word) > MAX_WORD:
        raise ConfigError(f"`{abbreviate(key)}` must be at most {MAX_WORD} characters in all, but is {len(word)}")
    if not is_storable(value):
        raise ConfigError(f"`{key}` must be text in UTF-8 without NUL, but is {abbreviate(repr(value))}")
    if match["prefix"] == "~":
        raise ConfigError(f"`{key}` must be given a value, but {word!r} takes it away")
    with parsing(f"`{key}`", "a value of hydra's grammar", ConfigError):
        try:
            return OverridesParser.create().parse_override(f"{key}={_quote_equals(value)}")
        except HydraException as error:
            raise ConfigError(_explain_unparsable(key, value)) from error


def read_searchpath(word: str) -> str:
    """Check `hydra.searchpath=[…]`, and return it as it was.

    Raises:
        ConfigError: it is no list of folders or packages that are there.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    must = "a list of folders with presets, such as [file:///home/me/conf]"
    with parsing(f"`{SEARCHPATH}`", must, ConfigError):
        places = OverridesParser.create().parse_override(word).value()
    for place in places if isinstance(places, list) else [places]:
        folder = str(place).removeprefix("file://")
        if not isinstance(places, list) or not folder or not Path(folder).is_dir():
            raise ConfigError(f"`{SEARCHPATH}` must be {must}, but is {abbreviate(str(place))}")
    return word


def list_sweep(override: Any) -> list[str]:
    """List the values of a sweep as they would be typed, at most `MAX_JOBS`.

    Raises:
        ConfigError: it has none or too many, or cannot be listed.
    """
    from hydra.core.override_parser.types import ValueType

    key, word = override.key_or_group, abbreviate(override.input_line)
    must = "a list or a range of values, such as 1,2,3 or range(1,4)"
    if override.is_interval_sweep():
        raise ConfigError(f"`{key}` must be {must} (hydra/sweeper=optuna takes intervals), but is {word!r}")
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(f"`{key}` must be {must}, but is {word!r}")
    if getattr(override.value(), "shuffle", False):
        raise ConfigError(f"`{key}` must be {must}, in an order that stays (job n goes to out/n), but is {word!r}")
    with parsing(f"`{key}`", must, ConfigError):
        values = list(islice(override.sweep_string_iterator(), MAX_JOBS + 1))
    if not 1 <= len(values) <= MAX_JOBS:
        number = f"more than {MAX_JOBS}" if values else "none"
        raise ConfigError(f"`{key}` must be 1 to {MAX_JOBS} values, but {word} has {number}")
    return values


def _check_own_key(key: str) -> None:
    if key != SEARCHPATH:
        raise ConfigError(
            f"`{key}` must be {SEARCHPATH}, or with -m a key of hydra.launcher or hydra.sweeper, but is neither"
        )


def _quote_equals(value: str) -> str:
    """Quote a value such as `speaker=19` or `größe`, of which the grammar would refuse the `=` or the letters."""
    is_plain = CONDITION.fullmatch(value) or re.fullmatch(r"(?=.*[^\0-\x7f])[\w./-]+", value)
    return f"'{value}'" if is_plain else value


def _explain_unparsable(key: str, value: str) -> str:
    shown = abbreviate(value)
    if value.startswith("~"):
        return f"`{key}` must be a path without ~, which no shell replaces behind a =, but is {shown} (write $HOME)"
    advice = spell(key, value) if shown == value else f"'{key}=\"…\"'"
    return f"`{key}` must be a value of hydra's grammar, but is {shown}; if it is meant as text, type it as {advice}"
