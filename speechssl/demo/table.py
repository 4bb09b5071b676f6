"""The table that the demo ends with: each figure beside its baselines, and whether it moved in the right direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speechssl.printable import format_columns, make_printable

SATURATED_SHARE = 95.0
"""A baseline that gets more than this percentage right leaves nothing to show."""

MARGIN = 2.0
"""Points by which a figure must differ to count; what is closer may be chance."""


def make_rows(
    results: Mapping[str, Mapping[str, Any]],
    untrained: Mapping[str, Any],
    updates: Mapping[str, tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """Collect the rows of the table.

    Args:
        results: result of each step, by its name in the demo's folder.
        untrained: the first validation of pretraining, before any update.
        updates: of each training those that it made, and those that it was begun with: fewer are said.
    """
    manifests = results["prepare"]["manifests"]
    pretrained, probe = results["pretrained"], results["probe"]
    made = {f"speech made, {name}": (60 * part["hours"], "min") for name, part in manifests.items()}
    seen = {
        "speech seen, pretraining": (pretrained["hours_seen"], "h"),
        "speech seen, fine-tuning": (results["finetuned"]["hours_seen"], "h"),
        "speech seen, from scratch": (results["from_scratch"]["hours_seen"], "h"),
    }
    rows = [_make_plain_row(name, value, unit) for name, (value, unit) in (made | seen).items()]
    rows += [
        {"name": f"updates, {name}", "baselines": {"planned": planned}, "value": made, "unit": "", "verdict": "cut"}
        for name, (made, planned) in (updates or {}).items()
        if made < planned
    ]
    accuracy = 100 * pretrained["valid"]["accuracy"]
    rows.append(
        _compare("codes of masked frames, held out", accuracy, {"before": 100 * untrained["accuracy"]}, higher=True)
    )
    for figure, how, name in (("cer", "wer", "CER"), ("wer", "wer", "WER"), ("wer", "lm", "WER with language model")):
        finetuned, scratch = (results[f"{how}_{training}"][figure] for training in ("finetuned", "from_scratch"))
        rows.append(_compare(f"{name}, unseen speakers", finetuned, {"from scratch": scratch}))
    rows.append(_compare("speaker accuracy, unseen session", probe["accuracy"], list_baselines(probe), higher=True))
    return rows


def list_baselines(probe: Mapping[str, Any]) -> dict[str, float]:
    """List the accuracies of a probe's baselines by their names: log-mel statistics and the untrained encoder."""
    return {name.replace("_", "-"): float(value["accuracy"]) for name, value in probe["baselines"].items()}


def format_table(result: Mapping[str, Any]) -> str:
    """Lay the rows out for a terminal, with the path of the report at the end."""
    cells = [("", "baseline", "this model", "")] + [_format_row(row) for row in result["rows"]]
    lines = format_columns(cells, right={1, 2}).split("\n")
    lines.insert(1, "─" * max(len(line) for line in lines))
    worse = [row["name"] for row in result["rows"] if row["verdict"] == "not better"]
    if any(row["verdict"] == "cut" for row in result["rows"]):
        lines.append("Cut, since this machine became slower meanwhile: the demo was to end in time.")
    if worse:
        lines.append(f"Not what was hoped for: {'; '.join(worse)}. More minutes may show more (minutes=).")
    lines.append(f"report: {make_printable(result['report'])} (open it in a browser)")
    lines.append(f"all of it took {result['minutes']:.1f} min")
    return "\n".join(lines)


def judge(value: float, baselines: Sequence[float], higher: bool = False) -> str:
    """Say how a figure in percent stands to its baselines: `better`, `not better` or `saturated`.

    Args:
        value: the figure.
        baselines: what it is compared with; it is better only if it beats all of them, by `MARGIN` points.
        higher: whether higher is better (accuracy) or lower (an error rate).
    """
    sign = 1 if higher else -1
    correct = [baseline if higher else 100 - baseline for baseline in baselines]
    if any(share > SATURATED_SHARE for share in correct):
        return "saturated"
    # Where next to everything is wrong, nothing has been learnt, whatever the baseline does.
    has_learnt = higher or value < SATURATED_SHARE
    wins = all(sign * (value - baseline) >= MARGIN for baseline in baselines)
    return "better" if wins and has_learnt else "not better"


def _make_plain_row(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "baselines": {}, "value": value, "unit": unit, "verdict": ""}


def _compare(name: str, value: float, baselines: Mapping[str, float], higher: bool = False) -> dict[str, Any]:
    verdict = judge(value, list(baselines.values()), higher)
    return {"name": name, "baselines": dict(baselines), "value": value, "unit": "%", "verdict": verdict}


def _format_row(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    baselines = ", ".join(f"{name} {_format_value(value)}" for name, value in row["baselines"].items())
    return row["name"], baselines, f"{_format_value(row['value'])} {row['unit']}".strip(), row["verdict"]


def _format_value(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"
