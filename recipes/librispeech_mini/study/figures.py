"""From the records of steps to the figures that the tables show. Pure functions of what `records.read_all` gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipes.librispeech_mini.study.paired import Estimate, compute_speaker_interval, compute_t_interval, pair
from recipes.librispeech_mini.study.records import DONE, FAILED, STARTED, Record, find_first_date

Records = Mapping[str, Mapping[str, Record]]
"""Cell → step → record."""

Rows = Mapping[int, "Row"]
"""Seed → row of an arm with one set of labels."""


@dataclass(frozen=True)
class Rate:
    """One kind of error rate.

    Attributes:
        title: what the tables call it.
        name: `cer` or `wer`.
        decoding: `greedy` or `beam`.
    """

    title: str
    name: str
    decoding: str


RATES = (
    Rate("CER", "cer", "greedy"),
    Rate("WER", "wer", "greedy"),
    Rate("CER, 4-gram", "cer", "beam"),
    Rate("WER, 4-gram", "wer", "beam"),
)


@dataclass(frozen=True)
class Total:
    """A sum over trainings.

    Attributes:
        known: of those that said what they came to.
        is_whole: whether all have.
    """

    known: float = 0.0
    is_whole: bool = True

    def format(self, digits: int, scale: float = 1.0) -> str:
        """Write it in units of `scale`: nothing where nothing is known, "≥" before it where something is missing."""
        if not self.is_whole and not self.known:
            return ""
        return f"{'' if self.is_whole else '≥ '}{self.known / scale:,.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One cell with one set of labels.

    Attributes:
        cell, arm, seed, kind, trial: which cell; see `cells.Cell`.
        labels: set of labels; empty where the cell did not come so far.
        updates: of fine-tuning; None where that is unknown.
        precision: of fine-tuning; empty where that is unknown.
        hours_seen: of speech, over pretraining and fine-tuning.
        flop: operations, the same.
        wall_s: time of pretraining and fine-tuning, validation included; of tries that were killed the updates' alone.
        metrics: `split/decoding` → result of `evaluate`, also of an evaluation that was stopped after it.
        problem: why it is not whole; empty where it is.
        tries: steps that took more than one, with how many.
        date: of the evaluation's last try.
    """

    cell: str
    arm: str
    seed: int
    kind: str
    trial: str
    labels: str
    updates: int | None = None
    precision: str = ""
    hours_seen: Total = Total()
    flop: Total = Total()
    wall_s: Total = Total()
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problem: str = ""
    tries: tuple[str, ...] = ()
    date: str = ""

    @property
    def note(self) -> str:
        """What the table says beside the figures."""
        return "; ".join(part for part in (self.problem, *self.tries) if part)

    def find_rate(self, splits: Sequence[str], rate: Rate) -> float | None:
        """Find a rate over all of some splits together, in percent; None where one of them was not measured."""
        results = [self.metrics.get(f"{split}/{rate.decoding}", {}) for split in splits]
        if any(result.get(rate.name) is None for result in results):
            return None
        units = [result["num_words" if rate.name == "wer" else "num_letters"] for result in results]
        wrong = sum(result[rate.name] * count for result, count in zip(results, units, strict=True))
        return float(wrong / sum(units))


def list_rows(records: Records) -> list[Row]:
    """List every cell that was run, with a row for each set of labels; a cell that failed before has one too."""
    rows = []
    for cell, steps in records.items():
        labels = [record["labels"] for name, record in steps.items() if name.startswith("finetune-")]
        first = next(iter(steps.values()))
        # A trial fine-tunes what the main cell of its arm and seed was pretrained to.
        owner = records.get(f"{first['arm']}-{first['seed']}", {}) if first["kind"] == "trial" else steps
        pretrainings = [record for name, record in owner.items() if name.startswith("pretrain")]
        rows += [_make_row(cell, steps, name, pretrainings) for name in labels or [""]]
    return rows


def _make_row(cell: str, steps: Mapping[str, Record], labels: str, pretrainings: list[Record]) -> Row:
    tuning, evaluation = steps.get(f"finetune-{labels}"), steps.get(f"evaluate-{labels}")
    trainings = [*pretrainings, *([tuning] if tuning else [])]
    all_steps = [*trainings, *([evaluation] if evaluation else [])]
    any_record = next(iter(steps.values()))
    return Row(
        cell,
        any_record["arm"],
        any_record["seed"],
        any_record["kind"],
        any_record["trial"],
        labels,
        updates=tuning.get("updates") if tuning else None,
        precision=tuning.get("precision", "") if tuning else "",
        hours_seen=_add(trainings, "hours_seen"),
        flop=_add(trainings, "flop"),
        wall_s=_add(trainings, "wall_s"),
        metrics=evaluation["metrics"] if evaluation else {},
        problem=_find_problem(all_steps, evaluation is not None),
        tries=tuple(f"{record['step']}: {record['tries']} tries" for record in all_steps if record["tries"] > 1),
        date=evaluation["date"] if evaluation else "",
    )


def _add(trainings: Sequence[Record], name: str) -> Total:
    """Add up a cost; one that runs, or was killed, has come further than its record says."""
    known = sum(record.get(name, 0.0) for record in trainings)
    if name == "wall_s":
        known = sum(max(record["wall_s"], record.get("updates_s", 0.0)) for record in trainings)
    return Total(known, all(name in record and record["status"] != STARTED for record in trainings))


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


def find_first_reading(records: Records) -> str:
    """Say when a `test` was first read, by the first tries of what reads one; empty where none was."""
    readers = [
        record
        for steps in records.values()
        for name, record in steps.items()
        if record["kind"] != "trial" and (name.startswith("evaluate") or name == "verification")
    ]
    return min((find_first_date(record) for record in readers), default="")


def sort_kinds(rows: Iterable[Row]) -> list[str]:
    """List the kinds of cells that rows are of: the study's first, then the long chain, then those on a GPU."""
    return sorted({row.kind for row in rows} - {"trial"}, key=rank_kind)


def rank_kind(kind: str) -> tuple[int, str]:
    """Say where a kind of cell stands among the others."""
    first = ("main", "long")
    return (first.index(kind) if kind in first else len(first), kind)


def select(rows: Iterable[Row], arm: str, labels: str, kind: str = "main", in_part: bool = False) -> dict[int, Row]:
    """Select the rows of an arm with one set of labels that have figures, by seed.

    Args:
        rows: of all cells.
        arm, labels, kind: what a row must be of.
        in_part: also those whose evaluation did not end.
    """
    return {
        row.seed: row
        for row in rows
        if (row.arm, row.labels, row.kind) == (arm, labels, kind) and row.metrics and (in_part or not row.problem)
    }


def collect_rates(rows: Rows, splits: Sequence[str], rate: Rate) -> dict[int, float]:
    """Collect a rate by seed, where it was measured."""
    found = {seed: row.find_rate(splits, rate) for seed, row in rows.items()}
    return {seed: figure for seed, figure in found.items() if figure is not None}


def compare_by_seed(first: Rows, second: Rows, splits: Sequence[str], rate: Rate) -> Estimate | None:
    """Compare two arms: second minus first, paired by seed; None where no seed is in both."""
    differences = pair(collect_rates(first, splits, rate), collect_rates(second, splits, rate))
    return compute_t_interval(differences) if differences else None


def collect_speakers(rows: Rows, splits: Sequence[str], rate: Rate) -> dict[str, float]:
    """Collect each speaker's rate, averaged over seeds."""
    rates: dict[str, list[float]] = {}
    for row in rows.values():
        for speaker in list_speakers(row, splits, rate):
            rates.setdefault(speaker["speaker"], []).append(speaker[rate.name])
    return {speaker: sum(values) / len(values) for speaker, values in rates.items()}


def compare_by_speaker(first: Rows, second: Rows, splits: Sequence[str], rate: Rate) -> Estimate | None:
    """Compare two arms over seeds that have the rate in both: second minus first, with an interval over speakers."""
    seeds = collect_rates(first, splits, rate).keys() & collect_rates(second, splits, rate).keys()
    before, after = (collect_speakers({seed: rows[seed] for seed in seeds}, splits, rate) for rows in (first, second))
    names = before.keys() & after.keys()
    if not names:
        return None
    # By words for characters too: the records have no letters of each speaker.
    words = {
        speaker["speaker"]: float(speaker["num_words"])
        for row in first.values()
        for speaker in list_speakers(row, splits, rate)
    }
    return compute_speaker_interval({speaker: after[speaker] - before[speaker] for speaker in names}, words)


def list_speakers(row: Row, splits: Sequence[str], rate: Rate) -> list[Mapping[str, Any]]:
    """List the speakers of some splits that have a rate, with `speaker`, `num_words`, `wer` and `cer`."""
    speakers = [
        item for split in splits for item in row.metrics.get(f"{split}/{rate.decoding}", {}).get("speakers", [])
    ]
    return [item for item in speakers if item[rate.name] is not None]
