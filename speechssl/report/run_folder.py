"""What a run folder holds, read as it is: no file but the one that tells its kind has to be there."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechssl.checkpoints.layout import CONFIG, DET, ENVIRONMENT, METRICS, RESULT, SKIPPED
from speechssl.config.objective import drop_other_objectives
from speechssl.errors import ConfigError, DataError
from speechssl.parsing import read_json, read_text, read_yaml
from speechssl.training.records import MAX_LOG_BYTES, read_log
from speechssl.training.run_folder import check_sum

_logger = logging.getLogger("speechssl")

Row = dict[str, Any]

KINDS = {
    "pretrain": "Pretraining",
    "finetune": "Fine-tuning",
    "evaluate": "Evaluation",
    "tune": "Weights of a language model",
    "probe": "Probe",
    "analyse": "Layers",
}
"""What the page calls each kind of folder."""

MAX_CONFIG_BYTES = 2**18
"""Longest configuration: 256 KiB, fifty times what one has; PyYAML reads some hundred kilobytes a second."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one folder; what is not there is empty.

    Attributes:
        problems: what is damaged in metrics.jsonl and skipped.jsonl, which are read up to there; a sentence each.
        result: the verb's JSON line.
        utterances: rows of utterances.tsv: of the folder itself, or of `evaluation/` inside a training run.
        confusions: rows of confusions.tsv, from the same place.
        test_sets: manifests that these two are of.
        det: DET curves of a probe.
    """

    path: Path
    kind: str
    config: Row = field(default_factory=dict)
    environment: Row = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    result: Row = field(default_factory=dict)
    utterances: list[dict[str, str]] = field(default_factory=list)
    confusions: list[dict[str, str]] = field(default_factory=list)
    test_sets: list[str] = field(default_factory=list)
    det: Row = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def num_updates(self) -> int:
        """The last update that was logged; 0 before the first."""
        return max((int(row["update"]) for row in self.metrics if row.get("split") == "train"), default=0)

    def get_config(self, path: str, default: Any = None) -> Any:
        """Look up a dotted key of the configuration."""
        node: Any = self.config
        for part in path.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node

    def holds(self, named: Any) -> bool:
        """Say whether a checkpoint, named as it was typed, is this run's; a relative one is looked for from here."""
        if not isinstance(named, str) or not Path(named).exists():
            return False
        path = Path(named).resolve()
        return self.path.resolve() in (path, *path.parents)

    def select(self, split: str) -> list[Row]:
        """Give the metrics lines of one split, in the order of their updates."""
        return sorted((row for row in self.metrics if row.get("split") == split), key=lambda row: int(row["update"]))

    def last(self, split: str, name: str) -> Any:
        """Give the last value of a metric in a split; None where there is none."""
        values = [row[name] for row in self.select(split) if row.get(name) is not None]
        return values[-1] if values else None


def load_run(path: Path) -> RunFolder:
    """Read the folder of a `pretrain`, `finetune`, `evaluate`, `tune`, `probe` or `analyse`.

    Raises:
        ConfigError: there is no such folder.
        DataError: it is not a folder of one of these verbs, or one of its files is damaged.
    """
    if not path.is_dir():
        raise ConfigError(f"`run` must be a run folder, but {path} is {'a file' if path.exists() else 'not there'}")
    config: Row = {}
    if os.path.lexists(path / CONFIG):
        check_sum(path / CONFIG, DataError)
        config = drop_other_objectives(read_yaml(path / CONFIG, limit=MAX_CONFIG_BYTES))
    result = _load_json(path / RESULT)
    kind = _find_kind(path, config, result)
    tables = path if kind == "evaluate" else path / "evaluation"
    measured = _load_json(tables / RESULT)
    # `score` has a file of references, which may be the manifest.
    test_sets = measured.get("data", [measured.get("reference")])
    logs = {name: read_log(path / name) for name in (METRICS, SKIPPED)}
    problems = [
        f"{name} is damaged, and left out from there on: {log.problem}." for name, log in logs.items() if log.problem
    ]
    for problem in problems:
        _logger.warning(problem)
    return RunFolder(
        path=path,
        kind=kind,
        config=config,
        environment=_load_json(path / ENVIRONMENT),
        metrics=logs[METRICS].records,
        skipped=logs[SKIPPED].records,
        problems=problems,
        result=result,
        utterances=load_table(tables / "utterances.tsv"),
        confusions=load_table(tables / "confusions.tsv"),
        test_sets=[item for item in test_sets if isinstance(item, str)] if isinstance(test_sets, list) else [],
        det=_load_json(path / DET),
    )


def load_table(path: Path) -> list[dict[str, str]]:
    """Read a tab-separated table with a header line, without quoting; [] where there is no such file.

    Raises:
        DataError: it does not read, or a line has other columns than its header.
    """
    if not os.path.lexists(path):
        return []
    lines = [line.split("\t") for line in read_text(path, "a table", limit=MAX_LOG_BYTES).split("\n")]
    header, body = lines[0], lines[1:-1] if lines[-1] == [""] else lines[1:]
    for number, fields in enumerate(body, 2):
        if len(fields) != len(header):
            raise DataError(f"{path} must have {len(header)} fields a line, but line {number} has {len(fields)}")
    return [dict(zip(header, fields, strict=True)) for fields in body]


def _find_kind(path: Path, config: Row, result: Row) -> str:
    """Tell what verb made a folder, by what only that verb writes."""
    if "training" in config and ("objective" in config or "text" in config):
        return "pretrain" if "objective" in config else "finetune"
    if (path / "utterances.tsv").is_file():
        return "evaluate"
    if "layers" in result and "cka" in result:
        return "analyse"
    if "layers" in result or "baselines" in result:
        return "probe"
    if "points" in result and "weights" in result:
        return "tune"
    raise DataError(
        "`run` must be the folder of a training run (config.yaml), of `evaluate` (utterances.tsv), of `tune`, "
        f"`probe` or `analyse` (result.json with its points or layers), but {path} is none of these"
    )


def _load_json(path: Path) -> Row:
    return read_json(path) if os.path.lexists(path) else {}
