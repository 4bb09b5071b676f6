"""What a run logs: one JSON line an update or validation, and the same curves for TensorBoard."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import math
import os
import resource
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from speechssl.checkpoints.layout import DAMAGED, METRICS, name_sums
from speechssl.durable import Appender, remove, write_in_one_step, writing
from speechssl.objectives.protocol import Metrics
from speechssl.training.records import Log, add_sum, read_log

_logger = logging.getLogger("speechssl")

MEASURED = frozenset({"audio_s_per_s", "loader_wait", "memory_mib", "gpu_memory_mib", "gpu_use"})
"""Metrics of the machine rather than of the run: all others are the same to the bit in a run that was resumed."""


class MetricsWriter(Protocol):
    """Where metrics go."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record with `update` and `split`."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class JsonLinesWriter:
    """`metrics.jsonl` or `skipped.jsonl` of a run folder; the file is made with its first record.

    Args:
        folder: of the run.
        update: the update that the run goes on from; later records, and a half-written last line, are cut off. A
            damaged log is cut at the damage.
        validated_update: the last validation that it goes on from; None is that of `update`.
        name: of the file.

    Raises:
        ConfigError: it cannot be written.
        DataError: it cannot be read.
    """

    def __init__(self, folder: Path, update: int, validated_update: int | None = None, name: str = METRICS) -> None:
        self.path, self.total = folder / name, 0
        self.files: tuple[Appender, Appender] | None = None
        found = read_log(self.path)
        last = {"train": update, "valid": update if validated_update is None else validated_update}
        pairs = zip(found.records, found.lines, strict=True)
        kept = [(record, line) for record, line in pairs if record["update"] <= last[record.get("split", "train")]]
        self._tell_loss(found, update, kept[-1][0]["update"] if kept else 0)
        if os.path.lexists(self.path) or os.path.lexists(name_sums(self.path)):
            self._cut([line for _, line in kept])

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; NaN and infinities become null, which JSON has.

        Raises:
            ConfigError: it cannot be written; the log is as it was.
        """
        if self.files is None:
            self.files = Appender(name_sums(self.path)), Appender(self.path)
        line = (json.dumps({key: _clean(value) for key, value in record.items()}) + "\n").encode()
        self.total, own = add_sum(self.total, line)
        # The checksum first: a kill between the two leaves none without its line's, and one too many is no harm.
        for file, piece in zip(self.files, (own, line), strict=True):
            file.write(piece)

    def close(self) -> None:
        """Close the files."""
        for file in self.files or ():
            file.close()

    def _cut(self, lines: list[bytes]) -> None:
        """Let the log hold these lines alone. Either file may be the older one after a kill: they begin alike."""
        sums = []
        for line in lines:
            self.total, own = add_sum(self.total, line)
            sums.append(own)
        write_in_one_step(self.path, b"".join(lines).decode())
        write_in_one_step(name_sums(self.path), b"".join(sums).decode())

    def _tell_loss(self, found: Log, update: int, last: int) -> None:
        """Say what of the log is lost, and keep a damaged one for a look at it."""
        if found.problem:
            aside = self.path.with_name(DAMAGED + self.path.name)
            with writing(aside):
                remove(aside)
                shutil.copyfile(self.path, aside)
            _logger.warning("%s: %s; it is cut there, and lies whole in %s", self.path, found.problem, aside.name)
        if self.path.name == METRICS and last < update:
            _logger.warning("%s has no line of the updates %d to %d: they are lost", self.path, last + 1, update)


class TensorBoardWriter:
    """`tensorboard/` of a run folder: one file a process, written at once and by this thread.

    Torch's own writer works in a thread, whose traceback on a full disk nobody can catch.

    Args:
        folder: of the run.
        update: the update that the run goes on from; later points are hidden.

    Raises:
        ConfigError: it cannot be written, or `tensorboard` is a link.
    """

    def __init__(self, folder: Path, update: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = Event, Summary
        place = folder / "tensorboard"
        with writing(place):
            if place.is_symlink():
                raise OSError(errno.ELOOP, "it is a link", str(place))
            place.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.file = Appender(place / name, is_new=True)
        self.records = RecordWriter(self.file)
        for event in (Event(file_version="brain.Event:2"), Event(step=update + 1, session_log=SessionLog(status=1))):
            self._add(event)

    def write(self, record: dict[str, Any]) -> None:
        """Add each number of a record.

        Raises:
            ConfigError: it cannot be written.
        """
        named = name_numbers(record)
        values = [self.summary.Value(tag=tag, simple_value=value) for tag, value in named.items()]
        self._add(self.event(step=record["update"], summary=self.summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())


def name_numbers(record: dict[str, Any]) -> dict[str, float]:
    """Name each number of a record `<split>/<name>`, as trackers want them; those of a list with their index behind."""
    named: dict[str, float] = {}
    for name, value in record.items():
        if name in ("update", "split"):
            continue
        tag = f"{record['split']}/{name}"
        named |= {f"{tag}_{k}": item for k, item in enumerate(value)} if isinstance(value, list) else {tag: value}
    return named


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run folder, up to where its log is damaged."""
    return read_log(folder / METRICS).records


def find_last_metrics(folder: Path, split: str) -> dict[str, Any] | None:
    """Find the last metrics of a split in a run folder, wherever the run was stopped and went on."""
    for record in reversed(read_metrics(folder)):
        if record.get("split") == split:
            return {name: value for name, value in record.items() if name not in ("update", "split")}
    return None


def _clean(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


MIB = 2**20
_STATM = Path("/proc/self/statm")


def measure_system(device: torch.device) -> Metrics:
    """Measure what costs nothing to know: some microseconds, and no wait for the GPU.

    Args:
        device: that the run computes on.

    Returns:
        `memory_mib`: resident memory of this process, loader workers apart (where there is no /proc, its peak). On a
        GPU also `gpu_memory_mib`, the peak of its tensors, and `gpu_use`, the share of the last moments in which it
        worked, where the driver's Python package (nvidia-ml-py) is installed.
    """
    found: Metrics = {"memory_mib": read_resident_bytes() / MIB}
    if device.type == "cuda":
        found["gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) / MIB
        use = _read_gpu_use(device)
        found |= {} if use is None else {"gpu_use": use}
    return found


def _read_gpu_use(device: torch.device) -> float | None:
    """Read the share of the last moments in which a GPU worked; None where nobody says, as of a part of one (MIG)."""
    try:
        driver = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (driver.NVMLError, RuntimeError):
        return None


def read_resident_bytes() -> int:
    """Read how much memory this process holds."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
