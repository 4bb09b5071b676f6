"""Which checkpoints stay: the best one and the newest whole ones."""

from __future__ import annotations

import os
import re
from pathlib import Path

from speechssl import durable
from speechssl.checkpoints.crash_point import crash_point
from speechssl.checkpoints.header import read_header
from speechssl.checkpoints.validity import STATE, find_problem
from speechssl.errors import CheckpointError

_PUBLISHED = re.compile(r"update-(\d+)")


def list_published(folder: Path) -> list[Path]:
    """List the checkpoints of a folder by rising update, whole or not."""
    found = {path: _PUBLISHED.fullmatch(path.name) for path in folder.glob("update-*") if path.is_dir()}
    return sorted((path for path, name in found.items() if name), key=lambda path: int(path.name[len("update-") :]))


def list_damaged(folder: Path) -> list[Path]:
    """List the checkpoints that were found damaged and set aside."""
    return sorted(folder.glob("damaged-update-*"))


def restore_links(folder: Path) -> None:
    """Give up copies that stand where `best` and `last` are links, as `cp -rL` leaves them.

    A copy whose checkpoint is gone takes its place, to be verified as any other; one that does not say which it is
    stays under another name.
    """
    for copy in (folder / name for name in ("best", "last")):
        if copy.is_symlink() or not os.path.lexists(copy):
            continue
        place = folder / _name_itself(copy)
        if place.is_dir() and find_problem(place) and not find_problem(copy):
            set_aside(place)
        if os.path.lexists(place):
            durable.remove(copy)
        else:
            copy.rename(place)


def _name_itself(checkpoint: Path) -> str:
    """Name a checkpoint by the update that its header tells."""
    try:
        return f"update-{read_header(checkpoint / STATE).progress.update:07d}"
    except (CheckpointError, OSError, ValueError, TypeError, LookupError, RecursionError):
        return f"damaged-update-{checkpoint.name}"


def set_aside(checkpoint: Path) -> None:
    """Take a damaged checkpoint out of the row; it stays for a look until the next one is published."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    durable.remove(aside)
    checkpoint.rename(aside)


def rotate(folder: Path, keep: int, kept: set[Path]) -> None:
    """Delete the checkpoints that are older than the `keep` newest whole ones, and the damaged ones set aside.

    Args:
        folder: of the checkpoints.
        keep: how many whole ones stay; one that is cut off is not counted, and goes with the old ones.
        kept: further ones that stay, such as the best.
    """
    published = list_published(folder)
    whole = [path for path in published if looks_whole(path)][-keep:]
    old = published[: published.index(whole[0])] if whole else []
    for checkpoint in [*(path for path in old if path not in kept), *list_damaged(folder)]:
        crash_point("rotation")
        remove(checkpoint)


def looks_whole(checkpoint: Path) -> bool:
    """Say cheaply whether a checkpoint is whole."""
    try:
        return not find_problem(checkpoint, is_quick=True)
    except CheckpointError:
        # Of a later version: whole, and not ours to judge.
        return True


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: out of sight in one step first, so that half of one is never found."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.part")
    durable.remove(hidden)
    checkpoint.rename(hidden)
    durable.remove(hidden)
