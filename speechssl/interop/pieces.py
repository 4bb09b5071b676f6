"""Sentencepiece models of others as labels of a head."""

from __future__ import annotations

from pathlib import Path

from speechssl.checkpoints.checks import reading
from speechssl.errors import CheckpointError, ConfigError
from speechssl.parsing import read_bytes, shorten
from speechssl.text.pieces import MAX_BYTES, Pieces
from speechssl.text.vocabulary import BLANK, Vocabulary, find_case


def read_pieces(path: Path, key: str) -> Vocabulary:
    """Read a sentencepiece model as the labels of a head, in its order; its first piece is the CTC blank.

    Raises:
        CheckpointError: it is no such model, or its first piece writes something.
    """
    with reading(path, key, "a model with sentencepieces for labels"):
        pieces = Pieces.from_bytes(read_bytes(path, MAX_BYTES))
    if BLANK in pieces.written:
        raise CheckpointError(f"`{key}` must have the blank as its first piece, but {path} has {pieces.symbols[0]!r}")
    try:
        return Vocabulary(pieces.symbols, find_case(pieces.symbols), pieces=pieces)
    except ConfigError as error:
        raise CheckpointError(f"`{key}` must have pieces of words, but in {path} {shorten(error)}") from error
