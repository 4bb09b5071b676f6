"""Files of weights and of facts, read without executing anything in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from speechssl.errors import CheckpointError
from speechssl.interop.damage import DAMAGE, first_line
from speechssl.interop.inert_pickle import StoredTensor
from speechssl.interop.torch_file import look_into


def read_json(path: Path, key: str) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Args:
        path: of the file.
        key: the key that errors name.

    Raises:
        CheckpointError: the file is missing, no JSON, or no mapping.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"`{key}` must be a whole checkpoint, but {path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"`{key}` must be a whole checkpoint, but {path} is no JSON ({error})") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"`{key}` must be a whole checkpoint, but {path} holds no mapping")
    return stored


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a mapping as JSON, one key a line, as people read it."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_safetensors(path: Path) -> bool:
    """Say whether a file begins as a safetensors file does: eight bytes of length, then a JSON mapping."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


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
    try:
        if is_safetensors(path):
            return {name: value.float() for name, value in safetensors.torch.load_file(path).items()}
    except DAMAGE as error:
        problem = f"{path} does not load ({first_line(error)})"
        raise CheckpointError(f"`{key}` must be a whole file of tensors, but {problem}") from error
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
