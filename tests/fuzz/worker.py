"""Damages files of one kind, one after the other, in a process of its own: a reader that dies takes no test along.

    python -m tests.fuzz.worker KIND SEED FIRST SECONDS FOLDER

FOLDER/now holds the number of the case that runs, FOLDER/failures.jsonl what failed.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from speechssl.errors import SpeechSSLError
from tests.fuzz.kinds import KINDS
from tests.fuzz.mutator import mutate

LIMIT_S = 5.0
"""A small file that takes more time of a core than this is a bomb."""

LIMIT_BYTES = 2**30
"""So much more memory than before, too."""

ROOM_BYTES = 2**32
"""Beyond this the system refuses."""


class Stuck(BaseException):
    """A case took too long; no `except Exception` takes it for the fault of a file."""


class Worker:
    """The cases of one kind, numbered; a case is decided by kind, seed and number alone."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        self.name, self.kind, self.seed, self.folder = kind, KINDS[kind], seed, folder / "files"
        self.folder.mkdir()
        self.kind.make(self.folder)
        files = sorted({path for pattern in self.kind.targets for path in self.folder.glob(pattern)})
        self.whole = {path: path.read_bytes() for path in files if path.is_file()}
        assert self.whole, "a kind makes files, and its targets match some"
        for path in self.whole:
            self.kind.use(self.folder, path)

    def run_case(self, number: int) -> dict[str, Any] | None:
        """Damage a file and read it; what went wrong, or None."""
        rng = random.Random(f"{self.name}/{self.seed}/{number}")
        file = rng.choice(list(self.whole))
        content = mutate(self.whole[file], file.name, rng)
        write(file, content)
        try:
            fault = self._use(file, content)
        finally:
            write(file, self.whole[file])
        return fault and {"kind": self.name, "seed": self.seed, "number": number, "file": file.name, **fault}

    def show_case(self, number: int) -> None:
        """Damage a file as `run_case` does, and let what goes wrong come through."""
        rng = random.Random(f"{self.name}/{self.seed}/{number}")
        file = rng.choice(list(self.whole))
        write(file, mutate(self.whole[file], file.name, rng))
        self.kind.use(self.folder, file)

    def _use(self, file: Path, content: bytes) -> dict[str, str] | None:
        before = measure_peak()
        try:
            with limiting_time():
                self.kind.use(self.folder, file)
        except SpeechSSLError:
            pass
        except Stuck as error:
            return {"what": f"takes more than {LIMIT_S:.0f} s", "where": find_place(error)}
        except BaseException as error:  # noqa: BLE001
            return {"what": f"{type(error).__name__}: {str(error)[:200]}", "where": find_place(error)}
        else:
            if file.name in self.kind.covered and content != self.whole[file]:
                return {"what": "changed, and accepted without a word", "where": file.name}
        grown = measure_peak() - before
        return {"what": f"takes {grown >> 20} MiB", "where": file.suffix} if grown > LIMIT_BYTES else None


def write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@contextmanager
def limiting_time() -> Iterator[None]:
    """Raise `Stuck` after `LIMIT_S` of this process's own time: other work on the machine does not count."""
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def stop(_: int, __: FrameType | None) -> None:
    raise Stuck


def find_place(error: BaseException) -> str:
    """Name the innermost line of ours that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "speechssl" in frame.filename.split(os.sep)]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


def measure_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))


def main(kind: str, seed: int, first: int, seconds: float, folder: Path) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("speechssl").addHandler(logging.NullHandler())
    logging.getLogger("speechssl").propagate = False
    worker = Worker(kind, seed, folder)
    limit_memory()
    with (folder / "now").open("r+b") as file, (folder / "failures.jsonl").open("a") as failures:
        now = mmap.mmap(file.fileno(), 8)
        number, end = first, time.monotonic() + seconds
        while time.monotonic() < end:
            now[:] = number.to_bytes(8, "little")
            fault = worker.run_case(number)
            if fault:
                failures.write(json.dumps(fault) + "\n")
                failures.flush()
            number += 1
        now[:] = number.to_bytes(8, "little")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
