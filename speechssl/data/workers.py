"""What the processes of a loader deliver, taken in such a way that a request to stop and a death are always noticed."""

from __future__ import annotations

import errno
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from speechssl.errors import ConfigError, DataError

POLL_S, SLOW_S, STALLED_S = 0.2, 60.0, 300.0
"""How often a request to stop is looked for; after how long without a batch there is a warning, and an end."""

DEATH_S = 0.2
"""How long a worker may take to be dead for the system, once its socket is."""

NO_HANDLES = (errno.EMFILE, errno.ENFILE)

SHARED_MEMORY = Path("/dev/shm")

_END = object()

_logger = logging.getLogger("speechssl")


def receive(loader: DataLoader[Any], must_stop: Callable[[], bool]) -> Iterator[Any]:
    """Yield what the workers of a loader deliver, in its order, and end them when nothing more is asked for.

    A thread waits for the workers, since a wait for a process that is stopped or half dead may have no end; this one
    looks around meanwhile.

    Args:
        loader: with at least one worker.
        must_stop: asked while waiting; where it says so, nothing more comes.

    Raises:
        ConfigError: the workers cannot be started, lack handles, or were killed.
        DataError: none has delivered anything for `STALLED_S`.
    """
    batches = _start(loader)
    wanted: SimpleQueue[bool] = SimpleQueue()
    arrived: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_forward, args=(batches, wanted, arrived), daemon=True).start()
    wanted.put(True)
    try:
        while True:
            item = _wait(arrived, must_stop, loader.num_workers)
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise _explain(item, batches) from item
            wanted.put(True)
            yield item
    finally:
        wanted.put(False)
        _end(batches)


def _start(loader: DataLoader[Any]) -> _MultiProcessingDataLoaderIter:
    """Start the workers; here, since they end with the thread that started them."""
    try:
        batches = iter(loader)
    except OSError as error:
        if error.errno in NO_HANDLES:
            raise _refuse_handles(loader.num_workers) from error
        raise ConfigError(
            f"`data.num_workers` must be as many processes as the system lets start, but is {loader.num_workers} "
            f"({error.strerror}; 0 reads in the main process)"
        ) from error
    assert isinstance(batches, _MultiProcessingDataLoaderIter), "a loader with workers"
    # Or torch would raise in whatever this process does at the moment of a worker's death, such as a save. The thread
    # that waits for the worker finds out too.
    signal_handling._remove_worker_pids(id(batches))  # type: ignore[attr-defined]
    batches._worker_pids_set = False
    # Torch's own way to end workers waits for locks that one which is stopped or was killed may hold; see `_end`.
    batches._shutdown_workers = lambda: None  # type: ignore[method-assign]
    return batches


def _forward(batches: Iterator[Any], wanted: SimpleQueue[bool], arrived: SimpleQueue[Any]) -> None:
    """Take from the workers what is wanted, until nothing is any more."""
    while wanted.get():
        try:
            arrived.put(next(batches))
        except StopIteration:
            arrived.put(_END)
            return
        except BaseException as error:  # noqa: BLE001  # the main thread raises it
            arrived.put(error)
            return


def _wait(arrived: SimpleQueue[Any], must_stop: Callable[[], bool], num_workers: int) -> Any:
    start, is_warned = time.monotonic(), False
    while True:
        with suppress(Empty):
            return arrived.get(timeout=POLL_S)
        if must_stop():
            return _END
        waited = time.monotonic() - start
        if waited > STALLED_S:
            raise DataError(
                f"`data.num_workers` must be processes that deliver, but none of the {num_workers} has delivered "
                f"anything for {STALLED_S:g} s: they are stopped, or wait for a disk or network that does not answer "
                "(the same command goes on from the last checkpoint)"
            )
        if waited > SLOW_S and not is_warned:
            is_warned = True
            _logger.warning("no audio for %g s: the processes that read it are slow, or stopped", SLOW_S)


def _explain(error: BaseException, batches: _MultiProcessingDataLoaderIter) -> BaseException:
    """Say in one sentence what became of the workers; an error of any other kind stays what it is."""
    num_workers = len(batches._workers)
    if (isinstance(error, OSError) and error.errno in NO_HANDLES) or "ancdata" in str(error):
        return _refuse_handles(num_workers)
    # What a worker has sent is fetched from it, and so fails in several ways once it is dead.
    if not isinstance(error, OSError | EOFError) and "DataLoader worker" not in str(error):
        return error
    for worker in batches._workers:
        worker.join(DEATH_S)
    codes = [code for worker in batches._workers if (code := worker.exitcode)]
    if not codes:
        return error
    if codes[0] == -signal.SIGBUS:
        return ConfigError(describe_no_room(num_workers, "SIGBUS"))
    how = f"killed by {signal.Signals(-codes[0]).name}" if codes[0] < 0 else f"ended with exit code {codes[0]}"
    why = " (as Linux does where memory runs out)" if codes[0] == -signal.SIGKILL else ""
    return ConfigError(
        f"`data.num_workers` must be processes that the machine can keep, but one of the {num_workers} was {how}{why}: "
        "fewer need less memory, and 0 reads in the main process; the same command goes on from the last checkpoint"
    )


def _refuse_handles(num_workers: int) -> ConfigError:
    return ConfigError(
        f"`data.num_workers` must be as many as the limit of open files allows, but is {num_workers} (ulimit -n 4096 "
        "raises it; 0 reads in the main process)"
    )


def describe_no_room(num_workers: int, reason: str) -> str:
    """Say that workers cannot hand their batches over."""
    size = ""
    with suppress(OSError):
        size = f" ({shutil.disk_usage(SHARED_MEMORY).total / 2**20:.0f} MiB)"
    return (
        f"`data.num_workers` must be 0 where {SHARED_MEMORY}{size} has no room for what workers hand over, but is "
        f"{num_workers} ({reason.partition(chr(10))[0][:200]}; docker run --shm-size=2g makes room)"
    )


def _end(batches: _MultiProcessingDataLoaderIter) -> None:
    """End the workers at once, whatever they do: they only read, ignore SIGTERM, and one that is stopped stays so."""
    if batches._pin_memory:
        batches._pin_memory_thread_done_event.set()
    for worker in batches._workers:
        worker.kill()
    for worker in batches._workers:
        worker.join()
    for queue in batches._index_queues:
        queue.cancel_join_thread()
        queue.close()
