"""How files are written: never through a link, never seen by half, and a disk that refuses is one sentence.

The counterpart of `speechssl.parsing`: what we write goes through here, as what others wrote goes through there.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from speechssl.errors import ConfigError
from speechssl.parsing import shorten
from speechssl.printable import make_json_printable

CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP)
"""What filesystems answer that cannot flush a folder (some network ones)."""

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What only writing can be answered with: no room, a quota, a limit on file sizes, a disk that is read-only."""


_UMASK = os.umask(0o077)
os.umask(_UMASK)  # It can only be read by setting it, which is safe while there is one thread.


@contextmanager
def writing(
    path: Path, key: str = "out", only: Container[int] | None = None, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn what a disk refuses into one sentence.

    Args:
        path: what is written; an error that names a file is believed.
        key: that says where.
        only: numbers of the errors that are meant; None is all of them.
        also: what libraries raise instead where they write.

    Raises:
        ConfigError: it could not be written; the message gives the system's reason.
    """
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        place, reason = error.filename or path, error.strerror or error
        raise ConfigError(
            f"`{key}` must be a place that can be written, but {os.fsdecode(place)} could not be ({reason})"
        ) from error
    except also as error:
        # The first of several is the cause.
        reason = shorten(error.__context__ or error)
        raise ConfigError(f"`{key}` must be a place that can be written, but {path} could not be ({reason})") from error


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


def remove(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link, but never what a link leads to; or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_own(path: Path, flags: int) -> int:
    """Open or make a regular file that belongs to this folder alone.

    Args:
        path: of the file.
        flags: of `os.open`, beside those that make it and keep it from following links and from waiting.

    Raises:
        OSError: it is a link, a pipe or a folder, or has a second name elsewhere: what is written would land there.
    """
    # A pipe without a reader would wait for one.
    always = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags | always, 0o666)
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return handle
    os.close(handle)
    reason = "it has a second name elsewhere" if stat.S_ISREG(found.st_mode) else "it is no regular file"
    raise OSError(errno.EINVAL, reason, os.fspath(path))


def write_in_one_step(path: Path, text: str | Iterable[str], suffix: str = ".part") -> None:
    """Write a text file so that a reader finds the old content or the new one, whenever the process dies.

    What a death leaves is deleted the next time: the caller holds the folder, so there is no second writer. Bytes of
    file names that are no UTF-8 are spelt as JSON and YAML spell them.

    Args:
        path: of the file.
        text: all of it, or in pieces.
        suffix: of the hidden file beside it that becomes it.

    Raises:
        ConfigError: as `writing`; the old content is still there.
    """
    scratch, pieces = path.with_name(f".{path.name}{suffix}"), [text] if isinstance(text, str) else text
    with writing(path):
        remove(scratch)
        try:
            with os.fdopen(open_own(scratch, os.O_WRONLY | os.O_EXCL), "wb") as file:
                file.writelines(piece.encode("utf-8", "backslashreplace") for piece in pieces)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except OSError:
            with suppress(OSError):
                remove(scratch)
            raise


def save_tensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, which by itself makes files that nobody but their owner can read."""
    from safetensors.torch import save_file

    save_file(tensors, path, metadata=metadata)
    path.chmod(0o666 & ~_UMASK)


class Appender:
    """A file that grows by whole pieces: one that the disk refuses leaves no half behind.

    Args:
        path: of the file; made if it is missing.
        is_new: whether it must be missing.

    Raises:
        ConfigError: as `writing`.
    """

    def __init__(self, path: Path, is_new: bool = False) -> None:
        self.path = path
        with writing(path):
            self.handle = open_own(path, os.O_WRONLY | os.O_APPEND | (os.O_EXCL if is_new else 0))
            self.size = os.fstat(self.handle).st_size

    def write(self, piece: bytes) -> None:
        """Append a piece.

        Raises:
            ConfigError: as `writing`; or the file is no longer in its folder.
        """
        with writing(self.path):
            if os.fstat(self.handle).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "it was deleted meanwhile", os.fspath(self.path))
            try:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self.handle, rest) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self.handle, self.size)
                raise
        self.size += len(piece)

    def flush(self) -> None:
        """Do nothing: no piece waits."""

    def close(self) -> None:
        """Close the file."""
        os.close(self.handle)


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Store a verb's result as `result.json`, in one step, so that a half-written one is never seen.

    Raises:
        ConfigError: it cannot be written.
    """
    text = make_json_printable(json.dumps(clean(result), ensure_ascii=False, indent=2))
    write_in_one_step(folder / "result.json", f"{text}\n")


def clean(value: Any) -> Any:
    """Turn a result into what JSON knows: paths become text, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
