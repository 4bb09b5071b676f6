"""From the records of steps to the figures that the table shows. Pure functions of what `records.read_all` gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.librispeech_mini.study.paired import Estimate, compute_speaker_interval, compute_t_interval, pair
from recipes.librispeech_mini.study.records import DONE, FAILED, Record

Records = Mapping[str, Mapping[str, Record]]
"""Cell → step → record."""

Rates = Mapping[int, "Row"]
"""Seed → row of an arm with one set of labels."""


@dataclass(frozen=True)
class Row:
    """One cell with one set of labels.

    Attributes:
        cell, arm, seed, kind, trial: which cell; see `cells.Cell`.
        labels: set of labels; empty where the cell did not come so far.
        updates: of fine-tuning.
        hours_seen: of speech, over pretraining and fine-tuning.
        flop: operations, the same.
        wall_s: time of pretraining and fine-tuning, validation included; of tries that were killed the updates' alone.
        metrics: `split/decoding` → result of `evaluate`.
        problem: why there are no figures; empty where there are.
        date: of the evaluation.
    """

    cell: str
    arm: str
    seed: int
    kind: str
    trial: str
    labels: str
    updates: int = 0
    hours_seen: float = 0.0
    flop: float = 0.0
    wall_s: float = 0.0
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problem: str = ""
    date: str = ""

    def find_rate(self, test: str, name: str) -> float | None:
        """Find `wer` or `cer` of a `split/decoding`, in percent; None where it was not measured."""
        rate: float | None = self.metrics.get(test, {}).get(name)
        return rate


def list_rows(records: Records) -> list[Row]:
    """List every cell that was run, with a row for each set of labels; a cell that failed before has one too."""
    rows = []
    for cell, steps in records.items():
        labels = [record["labels"] for name, record in steps.items() if name.startswith("finetune-")]
        rows += [_make_row(cell, steps, name) for name in labels or [""]]
    return rows


def _make_row(cell: str, steps: Mapping[str, Record], labels: str) -> Row:
    pretrainings = [record for name, record in steps.items() if name.startswith("pretrain")]
    tuning, evaluation = steps.get(f"finetune-{labels}"), steps.get(f"evaluate-{labels}")
    trainings = [*pretrainings, *([tuning] if tuning else [])]
    any_record = next(iter(steps.values()))
    return Row(
        cell,
        any_record["arm"],
        any_record["seed"],
        any_record["kind"],
        any_record["trial"],
        labels,
        updates=tuning.get("updates", 0) if tuning else 0,
        hours_seen=sum(record.get("hours_seen", 0.0) for record in trainings),
        flop=sum(record.get("flop", 0.0) for record in trainings),
        wall_s=sum(max(record["wall_s"], record.get("updates_s", 0.0)) for record in trainings),
        metrics=evaluation["metrics"] if evaluation and evaluation["status"] == DONE else {},
        problem=_find_problem([*trainings, *([evaluation] if evaluation else [])], evaluation is not None),
        date=evaluation["date"] if evaluation else "",
    )


def _find_problem(records: Iterable[Record], is_evaluated: bool) -> str:
    for record in records:
        if record["status"] == FAILED:
            return f"failed in {record['step']}: {record['error']}"
        if record["status"] != DONE:
            return f"{record['step']} is {record['status']}"
    return "" if is_evaluated else "not evaluated yet"


def list_problems(records: Records) -> list[str]:
    """List the probes that failed or did not end: those of trainings stand in their rows."""
    probes = ("verification", "digits")
    return [
        f"{cell}: {problem}"
        for cell, steps in records.items()
        for name in probes
        if name in steps and (problem := _find_problem([steps[name]], True))
    ]


def select(rows: Iterable[Row], arm: str, labels: str, kind: str = "main") -> dict[int, Row]:
    """Select the rows of an arm with one set of labels that have figures, by seed."""
    return {
        row.seed: row
        for row in rows
        if (row.arm, row.labels, row.kind) == (arm, labels, kind) and not row.problem and row.metrics
    }


def collect_rates(rows: Rates, test: str, name: str) -> dict[int, float]:
    """Collect a rate by seed, where it was measured."""
    found = {seed: row.find_rate(test, name) for seed, row in rows.items()}
    return {seed: rate for seed, rate in found.items() if rate is not None}


def compare_by_seed(first: Rates, second: Rates, test: str, name: str) -> Estimate | None:
    """Compare two arms: second minus first, paired by seed; None where no seed is in both."""
    differences = pair(collect_rates(first, test, name), collect_rates(second, test, name))
    return compute_t_interval(differences) if differences else None


def collect_speakers(rows: Rates, splits: Iterable[str], name: str) -> dict[str, float]:
    """Collect each speaker's rate with greedy decoding, averaged over seeds."""
    rates: dict[str, list[float]] = {}
    for row in rows.values():
        for speaker in _list_speakers(row, splits):
            rates.setdefault(speaker["speaker"], []).append(speaker[name])
    return {speaker: sum(values) / len(values) for speaker, values in rates.items()}


def compare_by_speaker(first: Rates, second: Rates, splits: tuple[str, ...], name: str) -> Estimate | None:
    """Compare two arms over the seeds that both have: second minus first, with an interval over speakers."""
    seeds = first.keys() & second.keys()
    before, after = (collect_speakers({seed: rows[seed] for seed in seeds}, splits, name) for rows in (first, second))
    names = before.keys() & after.keys()
    if not names:
        return None
    words = {
        speaker["speaker"]: float(speaker["num_words"])
        for row in first.values()
        for speaker in _list_speakers(row, splits)
    }
    return compute_speaker_interval({speaker: after[speaker] - before[speaker] for speaker in names}, words)


def _list_speakers(row: Row, splits: Iterable[str]) -> list[Mapping[str, Any]]:
    speakers = [item for split in splits for item in row.metrics.get(f"{split}/greedy", {}).get("speakers", [])]
    return [item for item in speakers if item["wer"] is not None and item["cer"] is not None]
