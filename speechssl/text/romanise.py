"""Texts of any script in Latin letters, by uroman (extra `romanise`), whose spellings MMS's aligner was trained on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from speechssl.errors import ConfigError


def require_romaniser() -> None:
    """Make sure that uroman can be used.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("uroman") is None:
        raise ConfigError(
            "`romanise` must be false unless uroman is installed, but is true (pip install 'speechssl[romanise]')"
        )


def load_romaniser(language: str = "") -> Callable[[str], str]:
    """Load uroman, some seconds of work.

    Args:
        language: ISO 639-3 code, for the letters that languages read differently; empty: none in particular.

    Returns:
        What spells a word in Latin letters.

    Raises:
        ConfigError: it is not installed.
    """
    require_romaniser()
    tables = import_module("uroman").Uroman()
    return cache(lambda word: str(tables.romanize_string(word, lcode=language or None)))
