"""Files that are not what they should be, said in one sentence that names the key and the file."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from speechssl.errors import CheckpointError
from speechssl.parsing import parsing


def reading(path: Path, key: str, must: str = "a whole checkpoint") -> AbstractContextManager[None]:
    """Turn whatever goes wrong while a file is read into a `CheckpointError`: "`key` must be …, but <path> is not".

    Args:
        path: of the file or folder.
        key: the key that the error names.
        must: what the value of the key must be.
    """
    return parsing(f"`{key}`", must, CheckpointError, str(path))
