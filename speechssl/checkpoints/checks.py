"""What every reader of checkpoints checks, ours and others': files, names and shapes of weights, labels.

`key` is always the key that errors name, and `where` the file or folder that they name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from speechssl.config.model import MAX_WIDTH
from speechssl.errors import CheckpointError, ConfigError
from speechssl.parsing import parse_json, parsing, read_bytes, show
from speechssl.text.vocabulary import Vocabulary

MAX_JSON, MAX_HEADER = 4 << 20, 4 << 20
"""Most bytes of a JSON file, and of the JSON at the start of a safetensors file. That of 48 blocks takes 100 kB."""

LISTED, MAX_NAME = 4, 100
"""An error lists this many names, of this many characters; the others are counted."""

SHARED = "pretraining.backbone."
"""Names under which the backbone appears a second time in the state of a model with pretraining heads."""


def reading(path: Path, key: str, must: str = "a whole checkpoint") -> AbstractContextManager[None]:
    """Turn whatever goes wrong while a file is read into a `CheckpointError`: "`key` must be …, but <path> is not".

    Args:
        path: of the file or folder.
        must: what the value of the key must be.
    """
    return parsing(f"`{key}`", must, CheckpointError, str(path))


def read_json(path: Path, key: str) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Raises:
        CheckpointError: the file is missing, no JSON, no mapping, or larger than `MAX_JSON`.
    """
    with reading(path, key):
        return parse_json(read_bytes(path, MAX_JSON))


def check_header(path: Path) -> None:
    """Check how long the header of a safetensors file claims to be; call it within `reading`.

    Raises:
        ValueError: longer than `MAX_HEADER`, and safetensors would parse it before looking at anything else.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER:,}")


def check_names(expected: Iterable[str], found: Iterable[str], key: str, where: str) -> None:
    """Compare the names of a network's weights with those that a file has.

    Args:
        expected: names of all weights, in the file's spelling.
        found: names in the file.

    Raises:
        CheckpointError: names are missing or left over.
    """
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"lacks {join(missing)}"] if missing else []
    parts += [f"has the unknown {join(unexpected)}"] if unexpected else []
    if parts:
        raise CheckpointError(
            f"`{key}` must have exactly the weights of its network, but {where} {' and '.join(parts)}"
        )


def check_shapes(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], key: str, where: str) -> None:
    """Compare the shapes of weights with those of their network.

    Args:
        expected: the network's weights.
        found: those of a file, of the same names.

    Raises:
        CheckpointError: some differ.
    """
    wrong = [
        f"{name} {tuple(found[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if found[name].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(f"`{key}` must have weights of its configuration's shapes, but {where} has {join(wrong)}")


def join(names: Iterable[str], listed: int = LISTED) -> str:
    """List a few names, each cut short, and count the others."""
    names = list(names)
    shown = [name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…" for name in names[:listed]]
    return ", ".join(shown) + (f" and {len(names) - listed} more" if len(names) > listed else "")


def restore_vocabulary(stored: object, where: str, key: str) -> Vocabulary:
    """Read a vocabulary as our own files hold it.

    Args:
        stored: the JSON value.

    Raises:
        CheckpointError: it is no vocabulary, or not one of words.
    """
    try:
        if not isinstance(stored, dict):
            raise CheckpointError("it is no mapping")
        vocabulary = Vocabulary.from_dict(stored)
    except (CheckpointError, ConfigError) as error:
        must = "hold a vocabulary of symbols, case and keep"
        raise CheckpointError(f"`{key}` must {must}, but in {where} it is {show(stored)}") from error
    check_labels(vocabulary.symbols, where, key)
    return vocabulary


def check_labels(symbols: Sequence[str], where: str, key: str) -> None:
    """Check the labels of a recogniser; arguments as `restore_vocabulary`.

    Raises:
        CheckpointError: they are too many, or not text.
    """
    if len(symbols) > MAX_WIDTH:
        raise CheckpointError(f"`{key}` must have at most {MAX_WIDTH:,} labels, but {where} has {len(symbols):,}")
    # A lone half of a UTF-16 pair is text to Python and JSON, and cannot be written anywhere.
    if not all(symbol.isascii() or symbol.encode("utf-8", "replace").decode() == symbol for symbol in symbols):
        raise CheckpointError(f"`{key}` must have labels that are text, but {where} has others")
