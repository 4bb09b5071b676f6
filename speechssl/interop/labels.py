"""The labels of a recogniser that somebody else wrote, and the sentences for those that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

from speechssl.config.model import MAX_WIDTH
from speechssl.errors import CheckpointError, ConfigError
from speechssl.parsing import shorten, show
from speechssl.text.vocabulary import WORD_BOUNDARY, Vocabulary, find_case


def make_vocabulary(symbols: Sequence[str], where: str, key: str) -> Vocabulary:
    """Make the vocabulary of a head.

    Args:
        symbols: label of each output; the first is the CTC blank.
        where: the file that they come from, for errors.
        key: the key that errors name.

    Raises:
        CheckpointError: there is no word boundary, or they are no labels of words.
    """
    _check(symbols, where, key)
    try:
        return Vocabulary(tuple(symbols), find_case(symbols))
    except ConfigError as error:
        raise CheckpointError(f"`{key}` must have labels of words, but in {where} {shorten(error)}") from error


def restore_vocabulary(stored: object, where: str, key: str) -> Vocabulary:
    """Read a vocabulary as our own files hold it; raises as `make_vocabulary`."""
    try:
        if not isinstance(stored, dict):
            raise CheckpointError("it is no mapping")
        vocabulary = Vocabulary.from_dict(stored)
    except (CheckpointError, ConfigError) as error:
        must = "hold a vocabulary of symbols, case and keep"
        raise CheckpointError(f"`{key}` must {must}, but in {where} it is {show(stored)}") from error
    _check(vocabulary.symbols, where, key)
    return vocabulary


def _check(symbols: Sequence[str], where: str, key: str) -> None:
    if len(symbols) > MAX_WIDTH:
        raise CheckpointError(f"`{key}` must have at most {MAX_WIDTH:,} labels, but {where} has {len(symbols):,}")
    if WORD_BOUNDARY not in symbols[1:]:
        raise CheckpointError(
            f"`{key}` must have the word boundary {WORD_BOUNDARY!r} among its labels, but {where} has "
            f"{len(symbols):,} labels without it: recognisers that write no spaces do not load yet"
        )
    # A lone half of a UTF-16 pair is text to Python and JSON, and can be written nowhere.
    if not all(symbol.isascii() or symbol.encode("utf-8", "replace").decode() == symbol for symbol in symbols):
        raise CheckpointError(f"`{key}` must have labels that are text, but {where} has others")
