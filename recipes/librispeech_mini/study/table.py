"""The study's table in Markdown, from the records of its steps, written between two lines of a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from recipes.librispeech_mini.study.cells import ALL, FEW, FEWEST, list_arms
from recipes.librispeech_mini.study.figures import (
    Records,
    Row,
    collect_rates,
    collect_speakers,
    compare_by_seed,
    compare_by_speaker,
    list_problems,
    list_rows,
    select,
)
from recipes.librispeech_mini.study.paired import Estimate, compute_relative
from recipes.librispeech_mini.study.records import DONE, Record, read_all
from speechssl.errors import DataError

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"

EMPTY = "No cell has been run."

TESTS = ("test", "test-other")
BASELINE = "scratch"
LABELS = (FEW, ALL, FEWEST)

_ANCHORS = (
    ("Kaldi, Mini LibriSpeech recipe, GMM (tri3b)", "5 h", "0", "16.8 % WER on dev-clean"),
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


def update_page(page: Path, results: Path) -> None:
    """Write the table of all results between the marker lines of a page.

    Raises:
        DataError: the page is not there or has no such lines.
    """
    if not page.is_file():
        raise DataError(f"`page` must be a file with the lines {BEGIN} and {END}, but {page} is not there")
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"`page` must have the lines {BEGIN} and {END}, but {page} has not")
    page.write_text(f"{before}{BEGIN}\n\n{build_table(read_all(results))}\n{END}{after}", encoding="utf-8")


def build_table(records: Records) -> str:
    """Build all the tables."""
    rows = list_rows(records)
    if not rows:
        return f"{EMPTY}\n\n{_build_anchors()}"
    parts = [
        _build_cells([row for row in rows if row.kind != "trial"]),
        _build_comparison(rows),
        *(_build_speakers(rows, labels) for labels in LABELS),
        _build_probes(records, "verification", "eer", "Verification, equal error rate in %"),
        _build_probes(records, "digits", "accuracy", "Digits by unseen speakers, accuracy in %"),
        _build_trials(rows),
        _build_problems(records),
        _build_anchors(),
        _build_machines(records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tabulate(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _format_rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1f}"


def _build_cells(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    tests = [(test, name) for test in TESTS for name in ("cer", "wer", "4-gram")]
    header = ["cell", "labels", "hours seen", "PFLOP", "wall h", *(f"{test} {name}" for test, name in tests), "note"]
    lines = []
    for row in sorted(rows, key=_sort_key):
        figures = [_format_rate(_find_figure(row, test, name)) for test, name in tests]
        cost = [f"{row.hours_seen:.1f}", f"{row.flop / 1e15:.1f}", f"{row.wall_s / 3600:.2f}"]
        lines.append([row.cell, row.labels, *cost, *figures, row.problem])
    title = "Every cell: characters and words wrong with greedy decoding, words wrong with the 4-gram, in %."
    return f"{title}\n\n{_tabulate(header, lines)}"


def _find_figure(row: Row, test: str, name: str) -> float | None:
    if name == "4-gram":
        return row.find_rate(f"{test}/beam", "wer")
    return row.find_rate(f"{test}/greedy", name)


def _sort_key(row: Row) -> tuple[str, int, int, int]:
    arms = list(list_arms())
    labels = LABELS.index(row.labels) if row.labels in LABELS else len(LABELS)
    return (row.kind, labels, arms.index(row.arm) if row.arm in arms else len(arms), row.seed)


def _build_comparison(rows: Sequence[Row]) -> str:
    header = ["arm", "labels", "test", "rate", "seeds", "mean", "minus scratch, by seed", "relative", "by speaker"]
    kinds = sorted({row.kind for row in rows} - {"trial"}, key=lambda kind: (kind != "main", kind))
    lines = []
    for labels in LABELS:
        lines += [line for kind in kinds for arm in list_arms() for line in _compare_arm(rows, arm, labels, kind)]
    if not lines:
        return ""
    title = (
        "Arms: means over seeds, and differences from scratch with the same total compute, in points, paired by seed "
        f"(Student's 95 % interval) and by speaker of {' and '.join(TESTS)} (bootstrap)."
    )
    return f"{title}\n\n{_tabulate(header, lines)}"


def _compare_arm(rows: Sequence[Row], arm: str, labels: str, kind: str) -> list[list[str]]:
    own, other = select(rows, arm, labels, kind), select(rows, BASELINE, labels, kind)
    title = f"{list_arms()[arm].title}{'' if kind == 'main' else f', {kind}'}"
    lines = []
    for test in TESTS:
        for name in ("cer", "wer"):
            rates = collect_rates(own, f"{test}/greedy", name)
            if not rates:
                continue
            by_seed = by_speaker = None
            if arm != BASELINE:
                by_seed = compare_by_seed(other, own, f"{test}/greedy", name)
                by_speaker = compare_by_speaker(other, own, TESTS, name) if test == TESTS[0] else None
            line = [title, labels, test, name.upper(), str(len(rates)), f"{mean(rates.values()):.1f}"]
            lines.append([*line, _say(by_seed), _say_relative(own, other, test, name, by_seed), _say(by_speaker)])
    return lines


def _say(estimate: Estimate | None) -> str:
    return "" if estimate is None else str(estimate)


def _say_relative(own: dict[int, Row], other: dict[int, Row], test: str, name: str, by_seed: Estimate | None) -> str:
    """Say the difference in percent of the baseline's rate, over the seeds that both arms have."""
    if by_seed is None:
        return ""
    base = collect_rates({seed: row for seed, row in other.items() if seed in own}, f"{test}/greedy", name)
    return f"{compute_relative(mean(base.values()), mean(base.values()) + by_seed.mean):+.0f} %"


def _build_speakers(rows: Sequence[Row], labels: str) -> str:
    by_arm = {arm: collect_speakers(select(rows, arm, labels), TESTS, "cer") for arm in list_arms()}
    by_arm = {arm: rates for arm, rates in by_arm.items() if rates}
    if not by_arm:
        return ""
    speakers = sorted({name for rates in by_arm.values() for name in rates}, key=lambda name: (len(name), name))
    titles = {name: arm.title for name, arm in list_arms().items()}
    lines = [[titles[arm], *(_format_rate(rates.get(name)) for name in speakers)] for arm, rates in by_arm.items()]
    title = f"Characters wrong by speaker of {' and '.join(TESTS)}, {labels} of labels, means over seeds, in %."
    return f"{title}\n\n{_tabulate(['arm', *speakers], lines)}"


def _build_probes(records: Records, step: str, name: str, title: str) -> str:
    found = {cell: steps[step] for cell, steps in records.items() if step in steps and steps[step]["status"] == DONE}
    if not found:
        return ""
    results = {cell: record["metrics"][step] for cell, record in found.items()}
    num_layers = max(len(result["layers"]) for result in results.values())
    header = [
        "cell",
        *(f"layer {layer}" for layer in range(num_layers)),
        "mixed or best",
        "log-mel statistics",
        "untrained",
    ]
    lines = []
    for cell, result in results.items():
        layers = [_format_rate(item[name]) for item in result["layers"]]
        log_mel = result["log_mel"] if step == "digits" else result["baselines"]["log_mel"][name]
        untrained = None if step == "digits" else result["baselines"]["untrained"][name]
        figures = [_format_rate(figure) for figure in (result[name], log_mel, untrained)]
        lines.append([cell, *layers, *[""] * (num_layers - len(layers)), *figures])
    speakers = next(iter(results.values()))["num_speakers"]
    return f"{title}: {speakers} speakers, who were in no training.\n\n{_tabulate(header, lines)}"


def _build_trials(rows: Sequence[Row]) -> str:
    trials = [row for row in rows if row.kind == "trial"]
    if not trials:
        return ""
    first_test = min((row.date for row in rows if row.kind != "trial" and row.date), default="")
    lines = []
    for row in sorted(trials, key=lambda row: (row.arm, row.trial)):
        note = row.problem
        if first_test and row.date > first_test:
            note = f"{note} run after `test` was first read".strip()
        rates = [_format_rate(row.find_rate("dev/greedy", name)) for name in ("cer", "wer")]
        lines.append([row.arm, row.trial, f"{row.updates:,}", *rates, note])
    title = f"Trials on `dev`, {FEW} of labels, greedy decoding, in %."
    return f"{title}\n\n{_tabulate(['arm', 'trial', 'updates', 'CER', 'WER', 'note'], lines)}"


def _build_problems(records: Records) -> str:
    problems = list_problems(records)
    return "\n".join(["Probes without figures:", "", *(f"- {problem}" for problem in problems)]) if problems else ""


def _build_anchors() -> str:
    title = "Published anchors, on other test sets than these (sources stand above the table)."
    return f"{title}\n\n{_tabulate(['system', 'labels', 'hours seen in pretraining', 'figure'], _ANCHORS)}"


def _build_machines(records: Records) -> str:
    every = [record for steps in records.values() for record in steps.values()]
    machines = [f"{item['name']}, {item['cores']} cores, {item['threads']} threads" for item in _list(every, "machine")]
    versions = [str(packages["torch"]) for packages in _list(every, "packages")]
    dates = sorted(_list(every, "date"))
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
