"""One run folder, one run: a second one is refused at once, and a dead one holds nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from speechssl.config.knobs import MISSING
from speechssl.durable import open_own, writing
from speechssl.errors import ConfigError

LOCK = ".lock"

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What filesystems answer that have no locks (some network ones)."""

RETRY_S = 0.1
"""A folder that is held is tried once more after this, before the run is refused."""

_logger = logging.getLogger("speechssl")
_held: set[int] = set()


def find_rank() -> int:
    """Find which of several processes this is, as torchrun says; 0 of one."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def hold_run(out: str) -> Iterator[None]:
    """Make the folder of a run and hold it while inside; what was made and not written to goes again.

    Of several processes the first one holds it for all.

    Raises:
        ConfigError: it is not given, is a file, cannot be written, or another run is using it.
    """
    if find_rank() != 0:
        yield
        return
    if out in ("", MISSING):
        raise ConfigError("`out` must be given (run folder to write), but is missing")
    folder = Path(out)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ConfigError(f"`out` must be a folder, but {folder} is a file")
    with writing(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        stack.enter_context(hold_folder(folder))
        if made:
            # While it is held still: another run that comes in between has a lock of its own.
            stack.callback(_remove_lone_lock, folder)
        yield


def _remove_lone_lock(folder: Path) -> None:
    with suppress(OSError):  # somebody has deleted the folder
        if os.listdir(folder) == [LOCK]:
            (folder / LOCK).unlink()


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it holds a run
            folder.rmdir()


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder while inside. The system lets go of it when the process ends, however it ends.

    Args:
        folder: exists, and can be written.

    Raises:
        ConfigError: another process holds it; or `.lock` cannot be written, or is a link.
    """
    with writing(folder / LOCK):
        handle = open_own(folder / LOCK, os.O_RDWR)
    _held.add(handle)
    try:
        _lock(handle, folder)
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A report that asks whether a run holds the folder holds it too, for less than a millisecond.
            time.sleep(RETRY_S)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"`out` must be a folder that no other run is using, but {folder} is in use by {_read_holder(handle)}"
        ) from error
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _logger.warning("%s cannot be locked here (%s): start no second run in it", folder, error.strerror)
    with writing(folder / LOCK):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n", 0)


def _read_holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, LookupError, TypeError, RecursionError):
        # It has the lock and has not yet written who it is.
        return "another process"


def _let_go_in_child() -> None:
    """Close the locks in a forked loader worker: it would hold the folder for seconds after the run was killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
