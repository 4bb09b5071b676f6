"""Files of tensors, read without executing anything in them, and how the formats of others are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from speechssl.checkpoints.checks import check_header, reading
from speechssl.durable import save_tensors
from speechssl.errors import CheckpointError
from speechssl.interop.inert_pickle import StoredTensor
from speechssl.interop.torch_file import look_into


def list_tensors(path: Path, key: str) -> set[str] | None:
    """List the names in a file of tensors; None for a file that holds more, as fairseq's do.

    Args:
        path: of the file: safetensors, or one that torch has pickled.

    Raises:
        CheckpointError: the file is damaged, or neither.
    """
    with reading(path, key):
        if _is_safetensors(path):
            check_header(path)
            with safe_open(path, framework="pt") as file:
                return set(file.keys())
    content = look_into(path, key).content
    return {str(name) for name in content} if content and _is_flat(content) else None


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """Read a file that holds nothing but named tensors: safetensors, or a torch file of tensors alone.

    Returns:
        The tensors by name, in float32 (integers too: a checkpoint of weights has none), on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something other than tensors.
    """
    with reading(path, key, "a whole file of tensors"):
        if _is_safetensors(path):
            check_header(path)
            return {name: value.float() for name, value in safetensors.torch.load_file(path).items()}
    stored = look_into(path, key)
    if not _is_flat(stored.content):
        raise CheckpointError(f"`{key}` must be a file of tensors, but {path} holds more, which is never unpickled")
    return stored.read({str(name): value for name, value in stored.content.items()}, key)


def write_tensors(path: Path, weights: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, each with its own storage, in float32 (counts as they are)."""
    save_tensors(path, detach(weights), {"format": "pt"})


def detach(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors as a file holds them: contiguous float32 copies on the CPU that share nothing; counts are counts."""
    plain = {name: value.detach().cpu() for name, value in weights.items()}
    return {n: (x.float() if x.is_floating_point() else x).clone().contiguous() for n, x in plain.items()}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a mapping as JSON, one key a line, as people read it."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_safetensors(path: Path) -> bool:
    """Say whether a file begins as a safetensors file does: eight bytes of length, then a JSON mapping."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _is_flat(content: object) -> bool:
    return isinstance(content, dict) and all(isinstance(value, StoredTensor) for value in content.values())
