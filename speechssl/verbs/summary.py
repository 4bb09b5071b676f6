"""The short table that a verb ends with on stderr: its main figures, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechssl.bench.table import format_table as format_bench
from speechssl.checkpoints.layout import REPORT
from speechssl.demo.table import format_table as format_demo
from speechssl.evaluation.statistics import Interval
from speechssl.printable import format_columns

HELD_OUT = {
    "wer": ("WER", 1.0, "%"),
    "cer": ("CER", 1.0, "%"),
    "loss": ("loss", 1.0, ""),
    "accuracy": ("accuracy", 100.0, "%"),
}
"""Figures of a validation that a training's table shows: what they are called, and from which factor and unit."""

Row = tuple[str, str, str]


def format_summary(verb: str, result: Mapping[str, Any]) -> str:
    """Lay out the main figures of a result, the path of its report or file last.

    Args:
        verb: name of the verb.
        result: the dict of its JSON line.
    """
    match verb:
        case "bench":
            return format_bench(result)
        case "demo":
            return format_demo(result)
        case "doctor":  # its log is a table already
            return ""
        case "pretrain" | "finetune":
            rows = _list_training(result)
        case "prepare":
            rows = _list_manifests(result)
        case "evaluate":
            rows = [_make_rate(name.upper(), name, result) for name in ("wer", "cer")]
            rows += [("utterances", str(result["num_utterances"]), ""), ("out", result["out"], "")]
        case "probe":
            rows = _list_probe(result)
        case "transcribe":
            rows = [("utterances", str(result["num_utterances"]), _count_left_out(result))]
            rows += [("texts", result["texts"], "")] if result["texts"] else []
        case "embed":
            rows = [("utterances", str(result["num_utterances"]), _count_left_out(result))]
            rows += [("embeddings", f"{result['num_rows']} × {result['dim']}", f"layers {', '.join(result['layers'])}")]
            rows += [("out", result["out"], "")]
        case "convert":
            rows = [
                (result["kind"], result["model"], f"{result['parameters']:,} parameters"),
                ("out", result["out"], ""),
            ]
        case _:
            rows = [("page", result["out"], "open it in a browser")]
    return format_columns(rows)


def _list_training(result: Mapping[str, Any]) -> list[Row]:
    valid = result["valid"] or {}
    report = Path(result["out"]) / REPORT
    return [
        ("updates", str(result["updates"]), f"best: {result['best_update']}"),
        ("speech seen", f"{result['hours_seen']:.2f} h", ""),
        *(
            (f"{label}, held out", f"{factor * valid[name]:.4g} {unit}".strip(), "")
            for name, (label, factor, unit) in HELD_OUT.items()
            if valid.get(name) is not None
        ),
        ("report", str(report), "open it in a browser"),
    ]


def _list_manifests(result: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, part in result["manifests"].items():
        what = f"{part['num_utterances']} utterances, {part['num_speakers']} speakers, {part['num_transcribed']} texts"
        rows.append((name, f"{part['hours']:.2f} h", f"{what}: {part['path']}"))
    left_out = result["num_unreadable"]
    return [*rows, *([("left out", str(left_out), "files that cannot be used")] if left_out else [])]


def _list_probe(result: Mapping[str, Any]) -> list[Row]:
    name = "accuracy" if result["task"] == "identification" else "eer"
    label = "speaker accuracy" if name == "accuracy" else "EER"
    rows = [_make_rate(f"{label}, this model", name, result)]
    for key, baseline in result["baselines"].items():
        rows.append(_make_rate(f"{label}, {key.replace('_', '-')}", name, baseline, key in result["saturated"]))
    return [*rows, ("out", result["out"], "")]


def _make_rate(label: str, name: str, figures: Mapping[str, Any], is_saturated: bool = False) -> Row:
    """Make the row of a rate in percent and its interval."""
    note = f"95 %: {Interval(**figures[f'{name}_interval'])}{' (saturated)' if is_saturated else ''}"
    return label, f"{figures[name]:.2f} %", note


def _count_left_out(result: Mapping[str, Any]) -> str:
    return f"{result['num_left_out']} left out" if result["num_left_out"] else ""
