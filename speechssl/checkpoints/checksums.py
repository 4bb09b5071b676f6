"""Checksums of a checkpoint's files: size and SHA-256 of each, written last, so that damage is seen before it is used.

Neither safetensors nor torch notices a flipped bit: of 200, 197 loaded silently with another value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechssl.errors import CheckpointError

CHECKSUMS = "checksums.json"
VERSION = 1


def write_checksums(folder: Path) -> None:
    """Write `checksums.json` for the files that lie in a folder."""
    files = {path.name: _describe(path) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps({"version": VERSION, "files": files}, indent=2) + "\n", encoding="utf-8")


def has_checksums(folder: Path) -> bool:
    """Say whether a folder came with checksums: those of earlier versions, and of `convert`, do not."""
    return (folder / CHECKSUMS).exists()


def find_damage(folder: Path, names: Sequence[str] = (), is_quick: bool = False, is_partial: bool = False) -> str:
    """Compare a folder with its checksums.

    Args:
        folder: with `checksums.json`.
        names: files that must be listed, beside those that are.
        is_quick: compare sizes only; finds what was cut off, not what was changed.
        is_partial: compare the files of `names` alone.

    Returns:
        What is damaged, as "x/model.safetensors has 10 of 99 bytes"; empty where everything is as it was written.
    """
    path = folder / CHECKSUMS
    try:
        stored = json.loads(path.read_bytes())
        if stored["version"] != VERSION:
            return f"{path} is of version {stored['version']}, and this speechssl reads {VERSION}"
        listed: dict[str, Any] = stored["files"]
        compared = names if is_partial else dict.fromkeys((*names, *listed))
        found = (_compare(folder / name, listed[name], is_quick) for name in compared)
        return next(filter(None, found), "" if listed else f"{path} lists no file")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"{path} does not read ({type(error).__name__}: {str(error)[:80]})"


def check_whole(folder: Path, names: Sequence[str], key: str) -> None:
    """Make sure that files of a checkpoint are what was written, where it came with checksums.

    Args:
        folder: of the checkpoint.
        names: the files that are going to be read.
        key: the key that the error names.

    Raises:
        CheckpointError: one is damaged.
    """
    damage = find_damage(folder, names, is_partial=True) if has_checksums(folder) else ""
    if damage:
        raise CheckpointError(f"`{key}` must be a whole checkpoint, but {damage}")


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _compare(path: Path, stored: dict[str, Any], is_quick: bool) -> str:
    """Say what is wrong with one file; a damaged list raises one of the errors that `find_damage` takes."""
    size, digest = stored["size"], stored["sha256"]
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != size:
        return f"{path} has {path.stat().st_size} of {size} bytes"
    if not is_quick and _describe(path)["sha256"] != digest:
        return f"{path} is not what was written (its SHA-256 differs)"
    return ""
