"""Named normalisers of transcripts: what counts as the same text when errors are counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache

from speechssl.errors import ConfigError
from speechssl.text.spelling import fold, is_silent, join_words

Normalise = Callable[[str], str]


@cache
def find_normaliser(name: str, key: str = "normaliser") -> Normalise:
    """Find the function behind a name.

    Args:
        name: `none` joins words with single spaces, and leaves them as they are. `basic` spells in lower case without
            punctuation, in any script: one apostrophe, NFC, nothing unseen; punctuation separates words. `english` has
            the rules of Whisper (Radford et al. 2022, App. C) for numbers, contractions, titles, spelling and fillers,
            by the package whisper-normalizer.
        key: the key that the error names.

    Raises:
        ConfigError: `english` without its package, or another name.
    """
    match name:
        case "none":
            return lambda text: " ".join(text.split())
        case "basic":
            return _normalise_basic
        case "english":
            try:
                from whisper_normalizer.english import EnglishTextNormalizer
            except ImportError as error:
                remedy = "whisper-normalizer is installed (pip install 'speechssl[english]')"
                raise ConfigError(f"`{key}` must be none or basic unless {remedy}, but is english") from error
            normalise = EnglishTextNormalizer()
            return lambda text: str(normalise(text)).strip()
    raise ConfigError(f"`{key}` must be one of none, basic, english, but is {name!r}")


def _normalise_basic(text: str) -> str:
    # Python's own lower case keeps ı and i apart; that of İ is an i with a second dot.
    lower = unicodedata.normalize("NFC", fold(text, "keep").lower().replace("i\u0307", "i"))
    return join_words("".join(" " if is_silent(c) else c for c in lower))
