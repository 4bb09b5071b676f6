"""Files that survive a power cut, and files that are never seen half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP)
"""What filesystems answer that cannot flush a folder (some network ones)."""


def flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in CANNOT_FLUSH:
            raise
    finally:
        os.close(handle)


def flush_files(folder: Path) -> None:
    """Flush the files of a folder, and the folder."""
    for path in [*folder.iterdir(), folder]:
        flush(path)


def write_in_one_step(path: Path, text: str) -> None:
    """Write a text file so that a reader finds the old content or the new one, whenever the process dies.

    What a death leaves is overwritten the next time: the caller holds the folder, so there is no second writer.
    """
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text, encoding="utf-8")
    flush(scratch)
    scratch.replace(path)
