"""Files of weights and of facts, read without executing anything in them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from speechssl.errors import CheckpointError
from speechssl.interop.inert_pickle import StoredTensor
from speechssl.interop.torch_file import look_into, reading
from speechssl.parsing import parse_json, read_bytes

MAX_JSON, MAX_HEADER = 4 << 20, 4 << 20
"""Most bytes of a JSON file, and of the JSON at the start of a safetensors file. That of 48 blocks takes 100 kB."""


def read_json(path: Path, key: str) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Args:
        path: of the file.
        key: the key that errors name.

    Raises:
        CheckpointError: the file is missing, no JSON, no mapping, or larger than `MAX_JSON`.
    """
    with reading(path, key):
        return parse_json(read_bytes(path, MAX_JSON))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a mapping as JSON, one key a line, as people read it."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_safetensors(path: Path) -> bool:
    """Say whether a file begins as a safetensors file does: eight bytes of length, then a JSON mapping."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def check_header(path: Path) -> None:
    """Look at how long the header of a safetensors file says to be; call it within `reading`.

    Raises:
        ValueError: longer than `MAX_HEADER`, which would be taken apart before anything else is looked at.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER:,}")


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """Read a file that holds nothing but named tensors: safetensors, or a torch file of tensors alone.

    Args:
        path: of the file.
        key: the key that errors name.

    Returns:
        The tensors by name, in float32 (integers too: a checkpoint of weights has none), on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something other than tensors.
    """
    with reading(path, key, "a whole file of tensors"):
        if is_safetensors(path):
            check_header(path)
            return {name: value.float() for name, value in safetensors.torch.load_file(path).items()}
    return _read_torch_file(path, key)


def _read_torch_file(path: Path, key: str) -> dict[str, Tensor]:
    stored = look_into(path, key)
    content = stored.content
    if not isinstance(content, dict) or not all(isinstance(value, StoredTensor) for value in content.values()):
        raise CheckpointError(f"`{key}` must be a file of tensors, but {path} holds more, which is never unpickled")
    return stored.read({str(name): value for name, value in content.items()}, key)


def write_tensors(path: Path, weights: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, each with its own storage, in float32."""
    safetensors.torch.save_file(detach(weights), path, metadata={"format": "pt"})


def detach(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors as a file holds them: contiguous float32 copies on the CPU that share nothing."""
    return {name: value.detach().cpu().float().clone().contiguous() for name, value in weights.items()}
