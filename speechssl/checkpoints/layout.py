"""The names of the files in a run folder, said once."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG, ENVIRONMENT, RESULT, REPORT = "config.yaml", "environment.json", "result.json", "report.html"
DET = "det.json"

METRICS, SKIPPED = "metrics.jsonl", "skipped.jsonl"

DAMAGED = "damaged-"
"""Before the name of a log that was cut at its damage: as it was found, for a look at it."""

LEFT_OUT, DATA, TRACKERS = "left_out.tsv", "data.parquet", "trackers.json"

CHECKPOINTS = "checkpoints"

DECODING = "decoding.json"
"""Weights of a language model that `tune` found for the recogniser in this folder."""


def name_sums(path: Path) -> Path:
    """Name the list of checksums that lies beside a log."""
    return path.with_suffix(".crc32")


LOGS = tuple(name for log in (METRICS, SKIPPED) for name in (log, name_sums(Path(log)).name, DAMAGED + log))
"""Files of a run folder that hold its logs, or belong to them."""


def list_published(folder: Path) -> list[Path]:
    """List the checkpoints of a folder by rising update, whole or not."""
    found = [path for path in folder.glob("update-*") if re.fullmatch(r"update-\d+", path.name) and path.is_dir()]
    return sorted(found, key=read_update)


def list_damaged(folder: Path) -> list[Path]:
    """List the checkpoints that were found damaged and set aside."""
    return sorted(folder.glob("damaged-update-*"))


def read_update(checkpoint: Path) -> int:
    """Read off its name which update a checkpoint is of."""
    return int(checkpoint.name.removeprefix("update-"))
