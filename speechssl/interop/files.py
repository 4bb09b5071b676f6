"""Files of weights and of facts, read without executing anything in them."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from speechssl.errors import CheckpointError

DAMAGE = (
    OSError, EOFError, SafetensorError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, MemoryError, struct.error,
)  # fmt: skip
"""What readers of binary files raise for bytes that are no such file: their unpickler is a small machine that trips
over its own stack, index and types."""


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
        stored = safetensors.torch.load_file(path) if is_safetensors(path) else load_pickle(path)
    except pickle.UnpicklingError as error:
        problem = f"{path} holds more than tensors, and nothing else is ever unpickled"
        raise CheckpointError(f"`{key}` must be a file of tensors, but {problem}") from error
    except DAMAGE as error:
        problem = f"{path} does not load ({first_line(error)})"
        raise CheckpointError(f"`{key}` must be a whole file of tensors, but {problem}") from error
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise CheckpointError(f"`{key}` must be a file of named tensors, but {path} holds something else")
    return {str(name): value.float() for name, value in stored.items()}


def load_pickle(path: Path) -> Any:
    """Load a torch file with torch's restricted unpickler, which builds tensors and plain containers only.

    Raises:
        pickle.UnpicklingError: it holds anything else, or is no torch file.
    """
    return torch.load(path, map_location="cpu", weights_only=True)


def write_tensors(path: Path, weights: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, each with its own storage, in float32."""
    safetensors.torch.save_file(detach(weights), path, metadata={"format": "pt"})


def detach(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors as a file holds them: contiguous float32 copies on the CPU that share nothing."""
    return {name: value.detach().cpu().float().clone().contiguous() for name, value in weights.items()}


def first_line(error: Exception) -> str:
    """Give the first line of an error's message, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
