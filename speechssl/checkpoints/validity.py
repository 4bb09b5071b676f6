"""Whether a checkpoint is what was written: thoroughly before it is used, cheaply before others are deleted."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from speechssl.checkpoints.checksums import find_damage, has_checksums
from speechssl.checkpoints.header import read_header
from speechssl.checkpoints.model_folder import CONFIG, WEIGHTS

STATE, TENSORS = "training.json", "training.safetensors"
FILES = (CONFIG, WEIGHTS, STATE, TENSORS)
"""What a checkpoint must hold."""


def find_problem(checkpoint: Path, is_quick: bool = False) -> str:
    """Check a checkpoint.

    Args:
        checkpoint: its folder.
        is_quick: compare the sizes of files instead of their SHA-256.

    Returns:
        What is wrong with it, as a clause; empty for one that is whole. One of version 1 has no checksums, so that
        only cuts are found in it.

    Raises:
        CheckpointError: it is whole, and of a later version.
    """
    if has_checksums(checkpoint):
        problem = find_damage(checkpoint, FILES, is_quick)
        return problem or ("" if is_quick else _try_header(checkpoint))
    return _find_cut(checkpoint)


def _try_header(checkpoint: Path) -> str:
    try:
        read_header(checkpoint / STATE)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        return f"{checkpoint / STATE} does not read ({error})"
    return ""


def _find_cut(checkpoint: Path) -> str:
    """Find what a look at the files' heads shows, for version 1; a later version without checksums lost them."""
    problem = _try_header(checkpoint)
    if problem:
        return problem
    if read_header(checkpoint / STATE).version > 1:
        return f"{checkpoint} has lost its checksums"
    for name in (WEIGHTS, TENSORS):
        try:
            with safe_open(checkpoint / name, framework="pt") as file:
                file.keys()
        except (OSError, SafetensorError) as error:
            return f"{checkpoint / name} does not read ({error})"
    return "" if (checkpoint / CONFIG).is_file() else f"{checkpoint / CONFIG} is missing"
