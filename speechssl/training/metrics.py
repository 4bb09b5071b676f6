"""What a run logs: one JSON line an update or validation, figures of the machine, and a line for people."""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from speechssl.checkpoints.layout import DAMAGED, METRICS, name_sums
from speechssl.durable import Appender, clean, remove, write_in_one_step, writing
from speechssl.objectives.protocol import Metrics
from speechssl.training.records import Log, add_sum, read_log

_logger = logging.getLogger("speechssl")

MIB = 2**20
_STATM = Path("/proc/self/statm")

SHOWN = ("loss", "loss_contrastive", "accuracy", "hard_perplexity", "wer", "cer", "grad_norm", "lr", "audio_s_per_s")
"""What a line of progress shows: the metrics that a user looks at first."""

MEASURED = frozenset({"audio_s_per_s", "cpu_s", "loader_wait", "memory_mib", "gpu_memory_mib", "gpu_use"})
"""Metrics of the machine rather than of the run: all others are the same to the bit in a run that was resumed."""


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
        line = (json.dumps(clean(record)) + "\n").encode()
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


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run folder, up to where its log is damaged."""
    return read_log(folder / METRICS).records


def find_last_metrics(folder: Path, split: str) -> dict[str, Any] | None:
    """Find the last metrics of a split in a run folder, wherever the run was stopped and went on."""
    for record in reversed(read_metrics(folder)):
        if record.get("split") == split:
            return {name: value for name, value in record.items() if name not in ("update", "split")}
    return None


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


def format_progress(update: int, total: int, split: str, metrics: Metrics) -> str:
    """Write one plain line of progress."""

    def show(value: float | list[float]) -> str:
        if isinstance(value, list):
            return "+".join(f"{item:.0f}" for item in value)
        return f"{value:.2e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"

    parts = [f"{name} {show(metrics[name])}" for name in SHOWN if name in metrics]
    return f"{split} {update}/{total}  " + "  ".join(parts)
