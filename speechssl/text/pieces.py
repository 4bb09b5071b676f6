"""Sentencepiece models: trained, read from bytes that anybody may have written, and used to cut words into pieces.

The library gets no foreign bytes. A file is read here, field by field, and what it says of its pieces is written anew:
without the tables by which other models normalise texts, since texts are folded before (`text.spelling`).
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple

import sentencepiece

from speechssl.errors import ConfigError

WORD_START = "▁"
"""What stands for the space before a word, at the start of its first piece or alone."""

KINDS = {"unigram": 1, "bpe": 2, "char": 4}
"""How a model cuts words, and the number that its file has for it (`sentencepiece_model.proto`)."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""What a piece is, by the numbers of the file; 6 is a byte."""

MAX_BYTES = 16 << 20
"""Most bytes of a model. One of 256,000 pieces takes 5 MB."""

MAX_PIECES, MAX_PIECE = 1 << 17, 512
"""Most pieces of a model, and the most bytes of one."""

NUM_SPECIALS = 2
"""Pieces of our own models that write nothing: the blank `<s>` and `<unk>`."""

_TOO_HIGH = re.compile(r"value <= (\d+)")


class Piece(NamedTuple):
    """One piece: its text, how likely or how early it is, and what it is."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Pieces:
    """A sentencepiece model.

    Attributes:
        kind: `unigram`, `bpe` or `char`.
        pieces: V of them, by index.
        starts_words: the first word of a text begins with `▁` as all others do.

    Raises:
        ValueError: a piece comes twice or is empty, or there is not one for what is unknown.
    """

    kind: str
    pieces: tuple[Piece, ...]
    starts_words: bool = True

    def __post_init__(self) -> None:
        if not 2 < len(self.pieces) <= MAX_PIECES:
            raise ValueError(f"it has {len(self.pieces):,} pieces")
        if len({piece.text for piece in self.pieces}) < len(self.pieces) or not all(p.text for p in self.pieces):
            raise ValueError("a piece is empty or comes twice")
        if sum(piece.kind == UNKNOWN for piece in self.pieces) != 1:
            raise ValueError("it must have one piece for what is unknown")
        if not all(isfinite(piece.score) and NORMAL <= piece.kind <= UNUSED for piece in self.pieces):
            raise ValueError("a piece is a byte, or has no score")

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Texts of the pieces by index."""
        return tuple(piece.text for piece in self.pieces)

    @cached_property
    def written(self) -> frozenset[int]:
        """Indices of the pieces that write something."""
        return frozenset(k for k, piece in enumerate(self.pieces) if piece.kind in (NORMAL, USER_DEFINED))

    @cached_property
    def _processor(self) -> Any:
        return sentencepiece.SentencePieceProcessor(model_proto=self.to_bytes())

    def encode(self, text: str) -> list[int]:
        """Cut a text into pieces and give their indices, without what the model does not know."""
        return [k for k in self._processor.encode(text) if k in self.written]

    def to_bytes(self) -> bytes:
        """Write the file that sentencepiece reads."""
        pieces = (
            _write_bytes(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + _write_int(3, piece.kind)
            for piece in self.pieces
        )
        rules = _write_bytes(1, b"identity") + _write_int(3, self.starts_words) + _write_int(4, 1) + _write_int(5, 1)
        trainer = _write_int(3, KINDS[self.kind]) + _write_int(4, len(self.pieces))
        return b"".join(_write_bytes(1, piece) for piece in pieces) + _write_bytes(2, trainer) + _write_bytes(3, rules)

    @classmethod
    def from_bytes(cls, content: bytes) -> Pieces:
        """Read what sentencepiece, or `to_bytes`, wrote; call it within `parsing`.

        Raises:
            ValueError: it is no such file, or a model of another kind.
        """
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        pieces: list[Piece] = []
        trainer, rules = dict[int, int | bytes](), dict[int, int | bytes]()
        for number, value in _read_fields(content):
            match number, value:
                case 1, bytes() if len(pieces) < MAX_PIECES:
                    pieces.append(_read_piece(value))
                case 2, bytes():
                    trainer |= dict(_read_fields(value))
                case 3, bytes():
                    rules |= dict(_read_fields(value))
        kind = next((name for name, number in KINDS.items() if number == trainer.get(3, 1)), None)
        if kind is None or trainer.get(24) or not rules.get(5, 1):
            raise ValueError("it is no model of unigrams, byte pairs or characters with '▁' before words")
        return cls(kind, tuple(pieces), bool(rules.get(3, 1)))


def train_pieces(texts: Iterable[str], kind: str, num_pieces: int, letters: Iterable[str]) -> Pieces:
    """Train a model on texts; the same texts give the same model.

    Args:
        texts: normalised.
        kind: `bpe` or `unigram`.
        num_pieces: in all, the blank and `<unk>` among them.
        letters: all that can come up; each is a piece.

    Raises:
        ConfigError: so many pieces cannot be made of these texts.
    """
    letters = "".join(sorted(letters))
    least = NUM_SPECIALS + 1 + len(letters)
    if num_pieces < least:
        raise ConfigError(
            f"`text.num_pieces` must be at least {least}, with a piece for each of the {len(letters)} letters, but is "
            f"{num_pieces}"
        )
    out = io.BytesIO()
    try:
        # One thread, and no sentence left out for its length, so that all ranks make one model.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text for text in texts if text), model_writer=out, model_type=kind,
            vocab_size=num_pieces, normalization_rule_name="identity", character_coverage=1.0, required_chars=letters,
            bos_id=0, bos_piece="<s>", unk_id=1, unk_piece="<unk>", eos_id=-1, pad_id=-1,
            max_sentence_length=1 << 24, num_threads=1, minloglevel=3,
        )  # fmt: skip
    except RuntimeError as error:
        most = _TOO_HIGH.search(str(error))
        must = f"between {least} and {most[1]}" if most else "a number of pieces that these texts give"
        raise ConfigError(
            f"`text.num_pieces` must be {must} for the texts of data.train, but is {num_pieces}"
        ) from error
    return Pieces.from_bytes(out.getvalue())


def _read_piece(content: bytes) -> Piece:
    fields = dict(_read_fields(content))
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0" * 4), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("a piece is of another form")
    if len(text) > MAX_PIECE:
        raise ValueError(f"a piece has more than {MAX_PIECE} bytes")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _read_fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Read the fields of a message of Protocol Buffers: numbers, and bytes of what has a length."""
    at = 0
    while at < len(content):
        tag, at = _read_varint(content, at)
        wire = tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _read_varint(content, at)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                size, at = _read_varint(content, at)
            value, at = content[at : at + size], at + size
        else:
            raise ValueError(f"a field of kind {wire}")
        if at > len(content):
            raise ValueError("it is cut off")
        yield tag >> 3, value


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it is cut off")
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
    raise ValueError("a number without an end")


def _write_int(number: int, value: int) -> bytes:
    return bytes([number << 3]) + _write_varint(value)


def _write_bytes(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _write_varint(len(value)) + value


def _write_varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
