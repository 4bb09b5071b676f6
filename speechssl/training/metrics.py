"""What a run logs: one JSON line an update or validation, and the same curves for TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol, TextIO

from speechssl.training.durable import write_in_one_step

NAME, SKIPPED = "metrics.jsonl", "skipped.jsonl"

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
        update: the update that the run goes on from; later records, and a half-written last line, are cut off.
        validated_update: the last validation that it goes on from; None is that of `update`.
        name: of the file.
    """

    def __init__(self, folder: Path, update: int, validated_update: int | None = None, name: str = NAME) -> None:
        self.path = folder / name
        self.file: TextIO | None = None
        if self.path.exists():
            last = {"train": update, "valid": update if validated_update is None else validated_update}
            records = [(json.loads(line), line) for line in read_lines(self.path)]
            kept = [line for record, line in records if record["update"] <= last[record.get("split", "train")]]
            write_in_one_step(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; NaN and infinities become null, which JSON has."""
        if self.file is None:
            self.file = self.path.open("a", encoding="utf-8")
        self.file.write(json.dumps({key: _clean(value) for key, value in record.items()}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


class TensorBoardWriter:
    """`tensorboard/` of a run folder.

    Args:
        folder: of the run.
        update: the update that the run goes on from; later points are hidden.
    """

    def __init__(self, folder: Path, update: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Add each number of a record."""
        for tag, value in name_numbers(record).items():
            self.writer.add_scalar(tag, value, record["update"])

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


def name_numbers(record: dict[str, Any]) -> dict[str, float]:
    """Name each number of a record `<split>/<name>`, as trackers want them; those of a list with their index behind."""
    named: dict[str, float] = {}
    for name, value in record.items():
        if name in ("update", "split"):
            continue
        tag = f"{record['split']}/{name}"
        named |= {f"{tag}_{k}": item for k, item in enumerate(value)} if isinstance(value, list) else {tag: value}
    return named


def read_lines(path: Path) -> list[str]:
    """Read the whole lines of a file of JSON lines; a last line without its end is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run folder."""
    return [json.loads(line) for line in read_lines(folder / NAME)]


def find_last_metrics(folder: Path, split: str) -> dict[str, Any] | None:
    """Find the last metrics of a split in a run folder, wherever the run was stopped and went on."""
    for record in reversed(read_metrics(folder)):
        if record["split"] == split:
            return {name: value for name, value in record.items() if name not in ("update", "split")}
    return None


def _clean(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value
