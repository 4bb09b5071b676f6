"""Saving beside the training: the snapshot is copied, then written by a thread while updates go on."""

from __future__ import annotations

from threading import Thread
from types import TracebackType

from speechssl.checkpoints.snapshot import Snapshot
from speechssl.checkpoints.store import CheckpointStore
from speechssl.errors import SpeechSSLError


class Saver:
    """Writes one checkpoint at a time, off the training thread.

    As a context it waits at the end for the save in flight, except after a second Ctrl-C: publication is one step,
    so a save that is cut off leaves the checkpoint before it in place.

    Args:
        store: where checkpoints go; None keeps none.
    """

    def __init__(self, store: CheckpointStore | None) -> None:
        self.store = store
        self._thread: Thread | None = None
        self._failure: Exception | None = None

    def save(self, snapshot: Snapshot, is_best: bool) -> None:
        """Copy a snapshot to CPU memory and start to write it; waits first for the one before.

        When this returns the copy is complete: what updates do to the live tensors no longer reaches it.

        Raises:
            CheckpointError: the save before failed.
        """
        self.wait()
        if self.store is not None:
            self._thread = Thread(target=self._write, args=(self.store, snapshot.copy(), is_best), daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raise what made a finished save fail; never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in flight.

        Raises:
            CheckpointError: it failed.
        """
        self._join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif not issubclass(kind, KeyboardInterrupt):
            self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, store: CheckpointStore, snapshot: Snapshot, is_best: bool) -> None:
        try:
            store.save(snapshot, is_best)
        except (SpeechSSLError, OSError, RuntimeError, ValueError, MemoryError) as error:
            self._failure = error
