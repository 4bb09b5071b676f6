"""The study's tables in Markdown, from the records of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recipes.librispeech_mini.study.cells import FEW, list_arms
from recipes.librispeech_mini.study.comparison import build_comparison
from recipes.librispeech_mini.study.figures import (
    RATES,
    Records,
    Row,
    find_first_reading,
    list_problems,
    list_rows,
    rank_kind,
    select,
)
from recipes.librispeech_mini.study.markdown import LABELS, format_rate, tabulate
from recipes.librispeech_mini.study.plan import TEST_SPLITS
from recipes.librispeech_mini.study.records import Record, read_all
from recipes.librispeech_mini.study.speakers import build_digits, build_speakers, build_verification
from recipes.librispeech_mini.study.summary import EMPTY, build_summary

HEAD = (
    "# Tables of the study\n\nWritten by `recipes/librispeech_mini/study/run table` from the records in this folder; "
    "do not edit. What the arms are: [README](../../README.md)."
)

TERA = 1e12

CELLS_NOTE = (
    "Labels: 1h is an hour, 10m ten minutes and all 4.47 h, each of all 19 speakers. Hours heard, TFLOP and wall h are "
    "of pretraining and fine-tuning together: validation is in wall h, evaluation is not. Cells ran two at a time with "
    "one thread each on two cores, and side by side on the H200: nine in turns in the first run, fifteen parts at the "
    "same time in the second. So wall h compares only within a machine and run. Blank is unknown; ≥ stands where a "
    "part is unknown."
)

_ANCHORS = (
    ("Kaldi, Mini LibriSpeech recipe, GMM (tri3b), small language model", "5 h", "0", "16.8 % WER on dev-clean"),
    ("Kaldi, Mini LibriSpeech recipe, CNN-TDNN, small language model", "5 h", "0", "9.8 % WER on dev-clean-2"),
    ("wav2vec 2.0 BASE's network, from scratch, no language model", "100 h", "0", "69.0 % WER on test-clean"),
    ("wav2vec 2.0 BASE, no language model", "10 min", "2,400", "98 % WER on test-clean"),
    ("wav2vec 2.0 BASE, no language model", "100 h", "2,400", "34.1 % WER on test-clean"),
    ("wav2vec 2.0 BASE, no language model", "10 min", "16,700", "72 to 74 % WER on test-clean"),
    ("wav2vec 2.0 BASE, no language model", "1 h", "16,700", "53 % WER on test-clean"),
    ("wav2vec 2.0 BASE, no language model", "100 h", "16,700", "16.5 to 16.9 % WER on test-clean"),
    ("wav2vec 2.0 BASE, no language model", "10 min", "267,000", "42 to 46 % WER on test-clean"),
    ("wav2vec 2.0 BASE, no language model", "1 h", "267,000", "23.3 % WER on test-clean"),
    ("wav2vec 2.0 BASE, no language model", "100 h", "267,000", "6.3 % WER on test-clean"),
)
"""Published figures: what five hours give without pretraining, and what hours seen buy. Other test sets than here."""


def write_tables(results: Path) -> Path:
    """Write the summary and all tables as `tables.md` beside the results that they come from."""
    records, page = read_all(results), results / "tables.md"
    results.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{HEAD}\n\n{build_summary(records)}\n{build_table(records)}", encoding="utf-8")
    return page


def build_table(records: Records) -> str:
    """Build all the tables."""
    rows = list_rows(records)
    if not rows:
        return f"{EMPTY}\n\n{_build_anchors()}"
    parts = [
        _build_cells([row for row in rows if row.kind != "trial"]),
        build_comparison(rows),
        build_speakers(rows),
        build_verification(records, rows),
        build_digits(records),
        _build_trials(rows, find_first_reading(records)),
        _build_problems(records),
        _build_anchors(),
        _build_machines(records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _build_cells(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    tests = [(split, rate) for split in TEST_SPLITS for rate in RATES]
    figures = [f"{split} {rate.title}" for split, rate in tests]
    lines = []
    for row in sorted(rows, key=_sort_key):
        cost = [row.hours_seen.format(1), row.flop.format(0, TERA), row.wall_s.format(2, 3600)]
        rates = [format_rate(row.find_rate((split,), rate)) for split, rate in tests]
        lines.append([row.cell, row.labels, *cost, *rates, row.note])
    header = ["cell", "labels", "hours heard", "TFLOP", "wall h", *figures, "note"]
    title = "Every cell: characters (CER) and words (WER) wrong, greedy and with the 4-gram, in %."
    parts = [title, _describe_deletions(rows), tabulate(header, lines), CELLS_NOTE]
    return "\n\n".join(part for part in parts if part)


def _describe_deletions(rows: Sequence[Row]) -> str:
    """Say what share of the words the 4-gram leaves out, by arm, with an hour of labels."""
    shares = {arm: [_count_deletions(rows, arm, decoding) for decoding in ("beam", "greedy")] for arm in list_arms()}
    known = {arm: (beam, greedy) for arm, (beam, greedy) in shares.items() if beam is not None and greedy is not None}
    if not known:
        return ""
    ends = [f"{min(column):.0f} to {max(column):.0f} %" for column in zip(*known.values(), strict=True)]
    each = "; ".join(f"`{arm}` {beam:.0f} ({greedy:.0f})" for arm, (beam, greedy) in known.items())
    return (
        "The 4-gram's weights are fairseq's, tuned in no arm, and it deletes most words of weak recognisers: with "
        f"{LABELS[FEW]} {ends[0]} of the words of both test sets, where greedy decoding deletes {ends[1]} ({each}). "
        "So its columns compare confidence as much as recognition."
    )


def _count_deletions(rows: Sequence[Row], arm: str, decoding: str) -> float | None:
    results = [
        row.metrics.get(f"{split}/{decoding}", {}) for row in select(rows, arm, FEW).values() for split in TEST_SPLITS
    ]
    counted = [result for result in results if "deletions" in result]
    words = sum(result["num_words"] for result in counted)
    return 100 * sum(result["deletions"] for result in counted) / words if words else None


def _sort_key(row: Row) -> tuple[tuple[int, str], int, int, int]:
    arms, sets = list(list_arms()), list(LABELS)
    labels = sets.index(row.labels) if row.labels in sets else len(sets)
    return (rank_kind(row.kind), labels, arms.index(row.arm) if row.arm in arms else len(arms), row.seed)


def _build_trials(rows: Sequence[Row], first_reading: str) -> str:
    trials = [row for row in rows if row.kind == "trial"]
    if not trials:
        return ""
    lines = []
    for row in sorted(trials, key=lambda row: (row.arm, row.trial)):
        late = "run after `test` was first read" if first_reading and row.date > first_reading else ""
        note = "; ".join(part for part in (row.note, late) if part)
        cost = ["" if row.updates is None else f"{row.updates:,}", row.hours_seen.format(1), row.flop.format(0, TERA)]
        rates = [format_rate(row.find_rate(("dev",), rate)) for rate in RATES[:2]]
        lines.append([row.arm, row.trial, *cost, row.precision, *rates, note])
    counts = [
        f"`{name}` {sum(row.arm == name and not row.problem for row in trials)} of {len(arm.trials)}"
        for name, arm in list_arms().items()
        if arm.trials
    ]
    title = (
        f"Trials on `dev`, {LABELS[FEW]}, greedy decoding, in %; hours heard and TFLOP with the pretraining. Run "
        f"so far of each arm's trials: {', '.join(counts)}. An arm without trials uses the preset, which is then an "
        "assumption, not a choice."
    )
    header = ["arm", "trial", "updates", "hours heard", "TFLOP", "precision", "CER", "WER", "note"]
    return f"{title}\n\n{tabulate(header, lines)}"


def _build_problems(records: Records) -> str:
    problems = list_problems(records)
    return "\n".join(["Probes without figures:", "", *(f"- {problem}" for problem in problems)]) if problems else ""


def _build_anchors() -> str:
    title = (
        "Published anchors, on other test sets than these: Kaldi's from its recipe for Mini LibriSpeech, wav2vec 2.0's "
        "from a replication at many batch sizes (arXiv 2402.13723)."
    )
    return f"{title}\n\n{tabulate(['system', 'labels', 'hours seen in pretraining', 'figure'], _ANCHORS)}"


def _build_machines(records: Records) -> str:
    every = [record for steps in records.values() for record in steps.values()]
    machines = [f"{item['name']}, {item['cores']} cores, {item['threads']} threads" for item in _list(every, "machine")]
    versions = [str(packages["torch"]) for packages in _list(every, "packages")]
    dates = sorted([*_list(every, "date"), *_list(every, "first_date")])
    lines = [
        f"- machine: {_join(machines)}",
        f"- precision of trainings: {_join(_list(every, 'precision'))}",
        f"- torch {_join(versions)}, revisions {_join(map(str, _list(every, 'revision')))}",
        f"- run from {dates[0]} to {dates[-1]}",
    ]
    return "\n".join(["What it ran on:", "", *lines])


def _list(records: Sequence[Record], name: str) -> list[Any]:
    return [record[name] for record in records if name in record]


def _join(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))
