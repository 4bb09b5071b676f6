"""Every speaker's figures: characters and words wrong, verification, digits; and the probes by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recipes.librispeech_mini.study.cells import list_arms
from recipes.librispeech_mini.study.figures import RATES, Rate, Records, Row, collect_speakers, select, sort_kinds
from recipes.librispeech_mini.study.markdown import LABELS, format_rate, tabulate, title_arm
from recipes.librispeech_mini.study.plan import TEST_SPLITS
from recipes.librispeech_mini.study.records import DONE, Record

ALL_SPLITS = ("dev", *TEST_SPLITS)

Results = Mapping[str, Record]
"""Cell → result of a probe."""


def build_speakers(rows: Sequence[Row]) -> str:
    """Build the tables of characters and of words by speaker, greedy, for each set of labels."""
    greedy = [rate for rate in RATES if rate.decoding == "greedy"]
    parts = [_build_rates(rows, labels, rate) for labels in LABELS for rate in greedy]
    return "\n\n".join(part for part in parts if part)


def _build_rates(rows: Sequence[Row], labels: str, rate: Rate) -> str:
    lines = {}
    for kind in sort_kinds(rows):
        for arm in list_arms():
            found = collect_speakers(select(rows, arm, labels, kind, in_part=True), TEST_SPLITS, rate)
            if found:
                lines[title_arm(arm, kind)] = found
    if not lines:
        return ""
    known = _find_speakers(rows)
    names = [name for name in known if any(name in found for found in lines.values())]
    header = ["arm", *(f"{known[name][0]}: {name} ({known[name][1]:,} words)" for name in names)]
    body = [[arm, *(format_rate(found.get(name)) for name in names)] for arm, found in lines.items()]
    return f"{rate.title} by speaker, greedy, {LABELS[labels]}, means over seeds, in %:\n\n{tabulate(header, body)}"


def _find_speakers(rows: Sequence[Row]) -> dict[str, tuple[str, int]]:
    """Find the split and the words of each speaker, split by split."""
    found: dict[str, tuple[str, int]] = {}
    for row in rows:
        for split in ALL_SPLITS:
            speakers = row.metrics.get(f"{split}/greedy", {}).get("speakers", [])
            found |= {item["speaker"]: (split, item["num_words"]) for item in speakers}
    order = sorted(found, key=lambda name: (ALL_SPLITS.index(found[name][0]), len(name), name))
    return {name: found[name] for name in order}


def build_verification(records: Records, rows: Sequence[Row]) -> str:
    """Build the tables of verification, by layer and by speaker."""
    results = _collect(records, "verification")
    if not results:
        return ""

    def describe(result: Record) -> list[str]:
        baselines = [result["baselines"][name] for name in ("log_mel", "untrained")]
        return [_say_error(item) for item in (result, *baselines)]

    header = ["learned mix of layers", "log-mel statistics", "untrained encoder, learned mix"]
    speakers = next(iter(results.values()))["num_speakers"]
    title = (
        f"Verification of {speakers} speakers who were in no training, equal error rate in % "
        "(95 % interval, bootstrap over speakers):"
    )
    parts = [f"{title}\n\n{_tabulate_layers(results, 'eer', header, describe)}"]
    by_speaker = {cell: result["speakers"] for cell, result in results.items() if "speakers" in result}
    known = _find_speakers(rows)
    names = [*known, *sorted({name for found in by_speaker.values() for name in found} - set(known))]
    titles = {name: f"{known[name][0]}: {name}" if name in known else name for name in names}
    title = "Equal error rate by speaker, over the trials that the speaker is in, learned mix of layers, in %:"
    return "\n\n".join([*parts, *_tabulate_speakers(title, by_speaker, titles)])


def build_digits(records: Records) -> str:
    """Build the tables of spoken digits, by layer and by speaker."""
    results = _collect(records, "digits")
    if not results:
        return ""

    def describe(result: Record) -> list[str]:
        untrained = result.get("untrained", {}).get("accuracy")
        return [format_rate(figure) for figure in (result["accuracy"], result["log_mel"], untrained)]

    header = [
        "best layer (chosen on these recordings)",
        "log-mel statistics",
        "untrained encoder, best layer (chosen likewise)",
    ]
    speakers = next(iter(results.values()))["num_speakers"]
    title = f"Digits by {speakers} speakers who were in no training, accuracy in %:"
    parts = [f"{title}\n\n{_tabulate_layers(results, 'accuracy', header, describe)}"]
    by_speaker: dict[str, Mapping[str, float]] = {}
    for cell, result in results.items():
        by_speaker[cell] = result.get("speakers", {})
        by_speaker[f"{cell}, untrained"] = result.get("untrained", {}).get("speakers", {})
        by_speaker[f"{cell}, log-mel"] = result.get("log_mel_speakers", {})
    names = sorted({name for found in by_speaker.values() for name in found})
    title = "Digits by speaker, best layer over all speakers, accuracy in %:"
    return "\n\n".join([*parts, *_tabulate_speakers(title, by_speaker, {name: name for name in names})])


def _collect(records: Records, step: str) -> Results:
    found = {cell: steps[step] for cell, steps in records.items() if step in steps and steps[step]["status"] == DONE}
    return {cell: record["metrics"][step] for cell, record in found.items()}


def _say_error(result: Mapping[str, Any]) -> str:
    """Say an equal error rate with its interval, where the record has one."""
    interval = result.get("eer_interval")
    if interval is None:
        return format_rate(result["eer"])
    note = "" if interval["reliable"] else ", unreliable"
    return f"{result['eer']:.1f} ({interval['low']:.1f} to {interval['high']:.1f}{note})"


def _tabulate_layers(
    results: Results, name: str, header: Sequence[str], describe: Callable[[Record], list[str]]
) -> str:
    num_layers = max(len(result["layers"]) for result in results.values())
    lines = []
    for cell, result in results.items():
        layers = [format_rate(item[name]) for item in result["layers"]]
        lines.append([cell, *layers, *[""] * (num_layers - len(layers)), *describe(result)])
    return tabulate(["cell", *(f"layer {layer}" for layer in range(num_layers)), *header], lines)


def _tabulate_speakers(title: str, found: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]) -> list[str]:
    """Write a line for whoever has figures; no table where nobody has."""
    shown = {cell: figures for cell, figures in found.items() if figures}
    names = [name for name in titles if any(name in figures for figures in shown.values())]
    lines = [[cell, *(format_rate(figures.get(name)) for name in names)] for cell, figures in shown.items()]
    return [f"{title}\n\n{tabulate(['cell', *(titles[name] for name in names)], lines)}"] if lines else []
