"""Several runs side by side: first figures of each, their results, the curves, and what differs in their settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from speechssl.report.curves import Curve, draw_curves, make_curve
from speechssl.report.facts import flatten
from speechssl.report.html import (
    escape,
    format_number,
    format_percent,
    format_value,
    make_figure,
    make_section,
    make_table,
)
from speechssl.report.learning_curve import make_learning_curve
from speechssl.report.pretraining import find_latest, predicts_codes
from speechssl.report.run_folder import KINDS, RunFolder


@dataclass(frozen=True)
class Metric:
    """One metric that runs of a kind are compared by; `is_codes` where it is of one task of pretraining alone."""

    kind: str
    name: str
    title: str
    unit: str
    from_zero: bool
    higher_is_better: bool = False
    describe: Callable[[float], str] = format_number
    is_codes: bool | None = None

    def is_of(self, run: RunFolder) -> bool:
        """Say whether a run's value means what the metric says."""
        return self.is_codes is None or self.is_codes == predicts_codes(run)


METRICS = (
    Metric("pretrain", "loss_contrastive", "Contrastive loss", "bits a masked frame", False),
    Metric("pretrain", "loss_codes", "Code loss", "bits a masked frame", False),
    Metric("pretrain", "accuracy", "Accuracy", "share of masked frames", True, True, format_percent, False),
    Metric("pretrain", "accuracy", "Accuracy of codes", "share of masked frames", True, True, format_percent, True),
    Metric("finetune", "wer", "Word error rate", "%", True),
    Metric("finetune", "cer", "Character error rate", "%", True),
    Metric("finetune", "loss", "CTC loss", "nats an utterance", True),
)

UNLIKE = 0.01
"""Runs whose hours an update differ by more than this share have a second chart, over the hours."""

UNTOLD = frozenset({"out", "overwrite"})
"""Keys of which nobody needs to read that they differ."""


def make_comparison(
    runs: Sequence[RunFolder], names: Sequence[str], cards: Sequence[str], probes: Sequence[RunFolder] = ()
) -> str:
    """Lay out a card for each run; results, charts and differences of those that can be compared.

    Args:
        runs: the runs of the page.
        names: what the page calls them.
        cards: HTML of each run's card.
        probes: folders of `probe`, for the learning curve of pretraining runs.
    """
    items = "".join(f"<li>{card}</li>" for card in cards)
    page = f'<ol class="cards">{items}</ol>'
    for kind in ("pretrain", "finetune"):
        chosen = [(run, name) for run, name in zip(runs, names, strict=True) if run.kind == kind]
        page += _compare(chosen, kind) if len(chosen) > 1 else ""
        page += make_learning_curve(chosen, probes) if len(chosen) > 1 and kind == "pretrain" else ""
    return page


def find_config_differences(runs: Sequence[RunFolder]) -> list[tuple[str, list[Any]]]:
    """List the keys that are not the same in all runs, with the value of each run; None where a run lacks the key."""
    values = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for row in values for key in row)
    return [
        (key, [row.get(key) for row in values])
        for key in keys
        if key not in UNTOLD and any(row.get(key) != values[0].get(key) for row in values)
    ]


def _compare(chosen: Sequence[tuple[RunFolder, str]], kind: str) -> str:
    runs, names = [run for run, _ in chosen], [name for _, name in chosen]
    metrics = [metric for metric in METRICS if metric.kind == kind]
    by_update = "".join(_draw_metric(chosen, metric, "update") for metric in metrics)
    # Where an update is the same amount of speech in all runs, the hours would only draw the same curves again.
    by_hours = "" if _hear_alike(runs) else "".join(_draw_metric(chosen, metric, "hours_seen") for metric in metrics)
    tables = _tabulate_results(chosen, metrics) + _tabulate_differences(runs, names)
    return (
        make_section(f"{KINDS[kind]}, side by side", by_update)
        + make_section(f"{KINDS[kind]}, by hours heard", by_hours)
        + make_section(f"{KINDS[kind]}, in figures", tables, css="tables")
    )


def _draw_metric(chosen: Sequence[tuple[RunFolder, str]], metric: Metric, x_name: str) -> str:
    split = _choose_split(chosen, metric)
    curves = _make_curves(chosen, metric, split, x_name)
    if len(curves) < 2:
        return ""
    choose = max if metric.higher_is_better else min
    best = choose(curves, key=lambda curve: _find_best(curve, choose))
    note = f"The best value is that of {escape(best.label)}." if split == "valid" else ""
    label = "update" if x_name == "update" else "hours"
    picture = draw_curves(curves, from_zero=metric.from_zero, describe=metric.describe, x_name=label)
    where = "held out" if split == "valid" else "training"
    return make_figure(f"{metric.title}, {where}", picture, note, metric.unit)


def _find_best(curve: Curve, choose: Callable[..., Any]) -> float:
    """Find the best value after the first update, or the only one before it."""
    learned = curve.y[curve.x > 0]
    return float(choose(learned if len(learned) else curve.y))


def _choose_split(chosen: Sequence[tuple[RunFolder, str]], metric: Metric) -> str:
    validated = sum(metric.is_of(run) and find_latest(run, "valid", metric.name) is not None for run, _ in chosen)
    return "valid" if validated > 1 else "train"


def _make_curves(chosen: Sequence[tuple[RunFolder, str]], metric: Metric, split: str, x_name: str) -> list[Curve]:
    made = []
    for number, (run, name) in enumerate(chosen):
        if not metric.is_of(run):
            continue
        rows = [row for row in run.select(split) if isinstance(row.get(metric.name), int | float) and x_name in row]
        style = f"c{number % 5 + 1}" + (" soft" if number >= 5 else "")
        x, y = [row[x_name] for row in rows], [row[metric.name] for row in rows]
        made.append(make_curve(name, style, x, y, smooth=split == "train", band=False))
    return [curve for curve in made if curve is not None]


def _hear_alike(runs: Sequence[RunFolder]) -> bool:
    """Say whether an update is the same amount of speech in all runs."""
    rates = []
    for run in runs:
        rows = [row for row in run.select("train") if row.get("hours_seen") and row["update"]]
        rates += [rows[-1]["hours_seen"] / rows[-1]["update"]] if rows else []
    return not rates or max(rates) <= (1 + UNLIKE) * min(rates)


def _tabulate_results(chosen: Sequence[tuple[RunFolder, str]], metrics: Sequence[Metric]) -> str:
    """Put the last figures of each run side by side; a column that no run has is left out."""
    columns: dict[str, list[Any]] = {
        "updates": [run.last("train", "update") for run, _ in chosen],
        "hours heard": [run.last("train", "hours_seen") for run, _ in chosen],
    }
    for metric in metrics:
        split = _choose_split(chosen, metric)
        values = [find_latest(run, split, metric.name) if metric.is_of(run) else None for run, _ in chosen]
        columns[f"{metric.title}, {metric.unit}"] = values
    columns["skipped updates"] = [run.last("train", "skipped_updates") for run, _ in chosen]
    kept = {title: values for title, values in columns.items() if any(value is not None for value in values)}
    rows = [[name, *(_write(values[k]) for values in kept.values())] for k, (_, name) in enumerate(chosen)]
    caption = "Last figures: held out, or where runs have no validation the median of the last 20 updates"
    return make_table(["run", *kept], rows, caption=caption, numeric=range(1, 1 + len(kept)))


def _tabulate_differences(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    rows = [[key, *map(_write, values)] for key, values in find_config_differences(runs)]
    if not rows:
        return "<p>Their configurations are the same.</p>"
    return make_table(["key", *names], rows, caption="What differs in their configurations")


def _write(value: Any) -> str:
    """Write a value as it was typed: 0.001, not 0.001000."""
    return f"{value:.4g}" if isinstance(value, float) and 1e-4 <= abs(value) < 1e4 else format_value(value)
