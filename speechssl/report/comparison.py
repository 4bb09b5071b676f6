"""Several runs side by side: their results, the curves, and what differs in their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speechssl.report.charts import Series, choose_style, make_series, plot
from speechssl.report.content import Figure, Section, Table, format_value
from speechssl.report.facts import flatten
from speechssl.report.learning_curve import Named, make_learning_curve
from speechssl.report.pretraining import MASKED, find_latest, find_loss
from speechssl.report.run_folder import KINDS, RunFolder


@dataclass(frozen=True)
class Metric:
    """One metric that runs of a kind are compared by; `loss` where it means the same in runs of one task alone."""

    name: str
    title: str
    unit: str
    loss: str = ""
    factor: float = 1.0
    from_zero: bool = True

    def is_of(self, run: RunFolder) -> bool:
        """Say whether a run's value means what the metric says."""
        return not self.loss or self.loss == find_loss(run)


METRICS = {
    "pretrain": (
        Metric("loss_contrastive", "Contrastive loss", MASKED, from_zero=False),
        Metric("loss_codes", "Code loss", MASKED, from_zero=False),
        Metric("accuracy", "Accuracy", "% of masked frames", "loss_contrastive", 100),
        Metric("accuracy", "Accuracy of codes", "% of masked frames", "loss_codes", 100),
    ),
    "finetune": (
        Metric("wer", "Word error rate", "%"),
        Metric("cer", "Character error rate", "%"),
        Metric("loss", "CTC loss", "nats an utterance"),
    ),
}

UNLIKE = 0.01
"""Runs whose hours an update differ by more than this share have a second chart, over the hours."""

UNTOLD = frozenset({"out", "overwrite"})
"""Keys of which nobody needs to read that they differ."""


def make_comparison(runs: Sequence[Named], probes: Sequence[RunFolder] = ()) -> list[Section]:
    """Compare the runs of one kind: figures, charts, differences; probes are drawn beside pretraining runs."""
    sections = []
    for kind, metrics in METRICS.items():
        chosen = [(run, name) for run, name in runs if run.kind == kind]
        if len(chosen) > 1:
            title = f"{KINDS[kind]}, side by side"
            tables = [Figure("", table, is_wide=True) for table in _tabulate(chosen, metrics)]
            sections.append(Section(title, tables + [f for metric in metrics for f in _draw(chosen, metric, "update")]))
            # Where an update is the same amount of speech in all runs, the hours would only draw the same curves again.
            by_hours = [f for metric in metrics for f in _draw(chosen, metric, "hours_seen")]
            is_told = by_hours and not _hear_alike([run for run, _ in chosen])
            sections += [Section(f"{KINDS[kind]}, by hours heard", by_hours)] if is_told else []
            sections += make_learning_curve(chosen, probes) if kind == "pretrain" else []
    return sections


def find_config_differences(runs: Sequence[RunFolder]) -> list[tuple[str, list[Any]]]:
    """List the keys that are not the same in all runs, with the value of each run; None where a run lacks the key."""
    values = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for row in values for key in row)
    return [
        (key, [row.get(key) for row in values])
        for key in keys
        if key not in UNTOLD and any(row.get(key) != values[0].get(key) for row in values)
    ]


def _draw(chosen: Sequence[Named], metric: Metric, x_name: str) -> list[Figure]:
    """Draw one metric of all runs that have it; [] where only one does."""
    split = _choose_split(chosen, metric)
    curves: list[Series] = []
    for number, (run, name) in enumerate(chosen):
        rows = [row for row in run.select(split) if isinstance(row.get(metric.name), int | float) and x_name in row]
        x, y = [row[x_name] for row in rows], [metric.factor * row[metric.name] for row in rows]
        smooth = split == "train"
        curve = make_series(name, x=x, y=y, smooth=smooth, band=False, **choose_style(number)) if metric.is_of(run) else None
        curves += [curve] if curve is not None else []
    if len(curves) < 2:
        return []
    note = _name_best(curves, metric) if split == "valid" else ""
    title = f"{metric.title}, {'held out' if split == 'valid' else 'training'}"
    x_label = "update" if x_name == "update" else "hours of speech heard"
    return plot(title, metric.unit, curves, note, x_label=x_label, from_zero=metric.from_zero)


def _name_best(curves: Sequence[Series], metric: Metric) -> str:
    """Name the run with the best value after the first update: before it nothing was learned."""
    choose = max if metric.name == "accuracy" else min
    learned = [(float(choose(curve.y[curve.x > 0])), curve.label) for curve in curves if (curve.x > 0).any()]
    return f"The best value is that of {choose(learned)[1]}." if learned else ""


def _choose_split(chosen: Sequence[Named], metric: Metric) -> str:
    validated = sum(metric.is_of(run) and find_latest(run, "valid", metric.name) is not None for run, _ in chosen)
    return "valid" if validated > 1 else "train"


def _hear_alike(runs: Sequence[RunFolder]) -> bool:
    """Say whether an update is the same amount of speech in all runs."""
    rates = []
    for run in runs:
        rows = [row for row in run.select("train") if row.get("hours_seen") and row["update"]]
        rates += [rows[-1]["hours_seen"] / rows[-1]["update"]] if rows else []
    return not rates or max(rates) <= (1 + UNLIKE) * min(rates)


def _tabulate(chosen: Sequence[Named], metrics: Sequence[Metric]) -> list[Table]:
    """Put the last figures of each run side by side, without columns that no run has, and what differs in their keys."""
    columns = {
        "updates": [run.last("train", "update") for run, _ in chosen],
        "hours heard": [run.last("train", "hours_seen") for run, _ in chosen],
    }
    for metric in metrics:
        split = _choose_split(chosen, metric)
        values = [find_latest(run, split, metric.name) if metric.is_of(run) else None for run, _ in chosen]
        columns[f"{metric.title}, {metric.unit}"] = [v if v is None else metric.factor * v for v in values]
    columns["skipped updates"] = [run.last("train", "skipped_updates") for run, _ in chosen]
    kept = {title: values for title, values in columns.items() if any(value is not None for value in values)}
    rows = [[name, *(values[k] for values in kept.values())] for k, (_, name) in enumerate(chosen)]
    caption = "Last figures: held out, or where runs have no validation the median of the last 20 updates"
    differences = [[key, *map(format_value, row)] for key, row in find_config_differences([run for run, _ in chosen])]
    caption2 = "What differs in their configurations" if differences else "Their configurations are the same."
    return [Table(["run", *kept], rows, caption), Table(["key", *(name for _, name in chosen)], differences, caption2)]
