"""Beam search in processes, while the model computes the next logits in this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from speechssl.config.decoding import DecodingConfig
from speechssl.errors import ConfigError
from speechssl.inference.decoding.beam import BeamSearch
from speechssl.inference.decoding.hypotheses import FloatArray, Hypothesis

MOST_CHOSEN = 8
"""What `decoding.num_workers=-1` comes to at most: a search takes a hundredth of the audio's length."""

AHEAD = 4
"""Utterances for each process that may be waiting or done."""


class Submit(Protocol):
    """Begins a search."""

    def __call__(
        self, log_probs: FloatArray, number: int, config: DecodingConfig | None = None
    ) -> Future[list[Hypothesis]]:
        """Begin to look for the best texts of (T, V) ln of probabilities, with other weights where some are given."""


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Begun(Protocol[T_co]):
    """What has begun, as a future."""

    def done(self) -> bool:
        """Say whether the result is there."""

    def result(self) -> T_co:
        """Wait for the result."""


_searches: list[BeamSearch] = []
"""In a worker: its search, inherited when it was forked, so that the language model is there once for all."""


def choose_workers(num_workers: int, num_utterances: int) -> int:
    """Choose the number of processes: the one given, or for -1 by the cores to spare.

    Raises:
        ConfigError: some are asked for where processes cannot be forked.
    """
    can_fork = sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()
    if num_workers > 0 and not can_fork:
        raise ConfigError(f"`decoding.num_workers` must be 0 on this system, which forks none, but is {num_workers}")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    chosen = min(MOST_CHOSEN, cores - 1) if num_workers < 0 else num_workers
    return min(chosen, num_utterances) if can_fork and num_utterances > 1 else 0


@contextmanager
def searching(search: BeamSearch, num_workers: int) -> Iterator[Submit]:
    """Give the function that begins a search, in one of the processes, or at once in this one where there are none.

    The processes end with the block. Where that ends by an error, a Ctrl-C too, they are killed whatever they do; and
    they end by themselves where this process is killed.

    Raises:
        ConfigError: one of the processes was killed, as Linux does where memory runs out.
    """
    if not num_workers:
        own = [search]
        yield lambda log_probs, number, config=None: _finish(_search_with(own, log_probs, number, config))
        return
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork"), _begin, (search,))
    is_whole = False
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads in a process that forks. The children call nothing that takes a lock of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            pool.submit(os.getpid)
        yield lambda log_probs, number, config=None: pool.submit(_search, log_probs, number, config)
        is_whole = True
    except BrokenProcessPool as error:
        raise ConfigError(
            f"`decoding.num_workers` must be processes that the machine can keep, but one of the {num_workers} was "
            "killed (0 searches in the main process)"
        ) from error
    finally:
        for process in [] if is_whole else list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=not is_whole)


def settle(rows: Iterable[tuple[int, Begun[T]]], num_workers: int) -> Iterator[tuple[int, T]]:
    """Yield what was begun, in its order, while the processes have more to do."""
    begun: deque[tuple[int, Begun[T]]] = deque()
    for row in rows:
        begun.append(row)
        while begun and (begun[0][1].done() or len(begun) > AHEAD * num_workers):
            index, future = begun.popleft()
            yield index, future.result()
    for index, future in begun:
        yield index, future.result()


def _finish(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _begin(search: BeamSearch) -> None:
    """Begin a worker: a Ctrl-C is the main process's to answer, and without that process it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    _searches[:] = [search]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    with suppress(OSError):
        parent.join()
    os._exit(1)


def _search(log_probs: FloatArray, number: int, config: DecodingConfig | None) -> list[Hypothesis]:
    return _search_with(_searches, log_probs, number, config)


def _search_with(
    searches: list[BeamSearch], log_probs: FloatArray, number: int, config: DecodingConfig | None
) -> list[Hypothesis]:
    """Search; the last weights are kept, since many utterances in a row have the same."""
    if config is not None and searches[0].config != config:
        searches[0] = searches[0].reweigh(config)
    return searches[0].list_best(log_probs, number)
