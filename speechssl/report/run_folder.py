"""What a run folder holds, read as it is: no file but the one that tells its kind has to be there."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from speechssl.errors import ConfigError, DataError

Row = dict[str, Any]

KINDS = {
    "pretrain": "Pretraining",
    "finetune": "Fine-tuning",
    "evaluate": "Evaluation",
    "probe": "Speaker probe",
}
"""What the page calls each kind of folder."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one folder; what is not there is empty.

    Attributes:
        path: the folder.
        kind: `pretrain`, `finetune`, `evaluate` or `probe`.
        config: the resolved configuration.
        environment: versions, device, command line.
        metrics: lines of metrics.jsonl, in order.
        skipped: lines of skipped.jsonl, in order.
        result: the verb's JSON line.
        utterances: rows of utterances.tsv: of the folder itself, or of `evaluation/` inside a training run.
        confusions: rows of confusions.tsv, from the same place.
    """

    path: Path
    kind: str
    config: Row = field(default_factory=dict)
    environment: Row = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)
    result: Row = field(default_factory=dict)
    utterances: list[dict[str, str]] = field(default_factory=list)
    confusions: list[dict[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    def get_config(self, path: str, default: Any = None) -> Any:
        """Look up a dotted key of the configuration."""
        node: Any = self.config
        for part in path.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node

    def select(self, split: str) -> list[Row]:
        """Give the metrics lines of one split, in the order of their updates."""
        rows = [row for row in self.metrics if row.get("split") == split and "update" in row]
        return sorted(rows, key=lambda row: int(row["update"]))

    def last(self, split: str, name: str) -> Any:
        """Give the last value of a metric in a split; None where there is none."""
        values = [row[name] for row in self.select(split) if row.get(name) is not None]
        return values[-1] if values else None


def load_run(path: Path) -> RunFolder:
    """Read a run folder.

    Args:
        path: folder of `pretrain`, `finetune`, `evaluate` or `probe`.

    Raises:
        ConfigError: there is no such folder.
        DataError: it is not a folder of one of these verbs, or one of its files is damaged.
    """
    if not path.is_dir():
        raise ConfigError(f"`run` must be a run folder, but {path} is {'a file' if path.exists() else 'not there'}")
    config = _load_yaml(path / "config.yaml")
    result = _load_json(path / "result.json")
    kind = _find_kind(path, config, result)
    tables = path if kind == "evaluate" else path / "evaluation"
    return RunFolder(
        path=path,
        kind=kind,
        config=config,
        environment=_load_json(path / "environment.json"),
        metrics=_load_lines(path / "metrics.jsonl"),
        skipped=_load_lines(path / "skipped.jsonl"),
        result=result,
        utterances=load_table(tables / "utterances.tsv"),
        confusions=load_table(tables / "confusions.tsv"),
    )


def load_table(path: Path) -> list[dict[str, str]]:
    """Read a tab-separated table with a header line, without quoting; [] where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = (line for line in file if not line.startswith("# "))
        return [dict(row) for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]


def _find_kind(path: Path, config: Row, result: Row) -> str:
    """Tell what verb made a folder, by what only that verb writes."""
    if "training" in config and "objective" in config:
        return "pretrain"
    if "training" in config and "text" in config:
        return "finetune"
    if (path / "utterances.tsv").is_file():
        return "evaluate"
    if "layers" in result or "baselines" in result:
        return "probe"
    raise DataError(
        "`run` must be the folder of a training run (config.yaml), of `evaluate` (utterances.tsv) or of `probe` "
        f"(result.json with its layers), but {path} is none of these"
    )


def _load_yaml(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path} must be YAML, but cannot be read: {error}") from error
    return loaded if isinstance(loaded, dict) else {}


def _load_json(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} must be JSON, but cannot be read: {error}") from error
    return loaded if isinstance(loaded, dict) else {}


def _load_lines(path: Path) -> list[Row]:
    """Read JSON lines; a last one without its newline is still being written, and is left out."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} must have one JSON object a line, but line {number} is damaged: {error}"
            ) from error
    return rows
