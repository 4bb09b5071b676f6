"""Several runs side by side, and accuracy and probe scores against hours of speech heard, beside published BASE."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechssl.errors import SpeechSSLError
from speechssl.report.figures import (
    Figure,
    Section,
    Series,
    Table,
    choose_style,
    format_hours,
    is_number,
    make_series,
    plot,
)
from speechssl.report.pretraining import MASKED, SHARE, find_latest, find_loss
from speechssl.report.probe import find_measure, list_baselines
from speechssl.report.run_folder import KINDS, RunFolder, load_run
from speechssl.training.run_folder import flatten

_logger = logging.getLogger("speechssl")

HOURS_AN_UPDATE = 1.6
"""Audio of an update of published BASE, over all GPUs (wav2vec 2.0 §4.2)."""

PUBLISHED_ACCURACY = ((50_000, 0.49), (100_000, 0.54), (200_000, 0.58), (400_000, 0.63))
"""Updates and contrastive accuracy of BASE on LibriSpeech 960 h: mean of 8 seeds of NVIDIA's replication
(DeepLearningExamples, wav2vec2: Hourglass transformer, standard deviations .011 at 50k and .007 at 400k)."""

TASK = {
    "objective.num_negatives": 100,
    "model.quantizer.num_groups": 2,
    "model.quantizer.num_codes": 320,
    "model.mask.prob": 0.65,
    "model.mask.length": 10,
}
"""What accuracy is a share of: with other negatives, codes or masks the task is another."""

AGREES = 0.05
"""Baselines of several probes that differ by less, in percentage points, are one line."""

NEAR = 0.01
"""From this share of the first published point's hours on, the points are drawn without being asked for."""

UNTOLD = frozenset({"out", "overwrite"})
"""Keys of which nobody needs to read that they differ."""

UNLIKE = 1.01
"""Runs of which one hears this many times the speech of another in an update are compared by hours."""

Named = tuple[RunFolder, str]
HOURS = "hours of speech heard"


class Metric(NamedTuple):
    """One metric that runs of a kind are compared by; `loss` where it means the same in runs of one task alone."""

    name: str
    title: str
    unit: str
    loss: str = ""
    factor: float = 1.0
    from_zero: bool = True


METRICS = {
    "pretrain": (
        Metric("loss_contrastive", "Contrastive loss", MASKED, from_zero=False),
        Metric("loss_codes", "Code loss", MASKED, from_zero=False),
        Metric("accuracy", "Accuracy", SHARE, "loss_contrastive", 100),
        Metric("accuracy", "Accuracy of codes", SHARE, "loss_codes", 100),
    ),
    "finetune": (
        Metric("wer", "Word error rate", "%"),
        Metric("cer", "Character error rate", "%"),
        Metric("loss", "CTC loss", "nats an utterance"),
    ),
}


def make_comparison(runs: Sequence[Named], probes: Sequence[RunFolder] = ()) -> list[Section]:
    """Compare the runs of one kind: figures, differences, charts; probes are drawn beside pretraining runs."""
    sections = []
    for kind, metrics in METRICS.items():
        chosen = [(run, name) for run, name in runs if run.kind == kind]
        if len(chosen) > 1:
            figures = _tabulate(chosen, metrics) + [f for metric in metrics for f in _draw(chosen, metric)]
            sections.append(Section(f"{KINDS[kind]}, side by side", figures))
            sections += make_learning_curve(chosen, probes) if kind == "pretrain" else []
    return sections


def make_learning_curve(runs: Sequence[Named], probes: Sequence[RunFolder]) -> list[Section]:
    """Draw the curves of some pretraining runs over hours heard; [] where none has heard anything.

    A probe counts for the run whose folder, or a checkpoint inside, it was given.
    """
    figures = _draw_accuracy(runs, "loss_contrastive") + _draw_accuracy(runs, "loss_codes")
    for measure, what in (("accuracy", "Speaker identification"), ("eer", "Speaker verification")):
        figures += _draw_probes(runs, [probe for probe in probes if find_measure(probe) == measure], measure, what)
    return [Section("Learning curve", figures)] if figures else []


def gather_probes(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Gather the probes among some folders, and those that lie inside them (`probe … out=runs/base/probe-10`)."""
    probes = {run.path.resolve(): run for run in runs if run.kind == "probe"}
    for path in sorted(path.parent for run in runs for path in run.path.glob("*/result.json")):
        try:
            run = load_run(path)
        except SpeechSSLError as error:
            # The result of another verb, or a damaged one: the page is about the run above it.
            _logger.debug("left out of the report: %s", error)
            continue
        if run.kind == "probe":
            probes.setdefault(path.resolve(), run)
    return list(probes.values())


def find_probed_hours(run: RunFolder, probe: RunFolder) -> float | None:
    """Find how much speech the probed checkpoint of a run had heard; None where it is none of this run's.

    A probe names its checkpoint as it was typed, and its update (older probes: that in the checkpoint's name).
    """
    named = probe.result.get("checkpoint")
    if not run.holds(named):
        return None
    # `best` is a link, and where it points now is not what it pointed to then.
    in_name = re.fullmatch(r"update-(\d+)", Path(str(named)).name)
    update = probe.result.get("update", int(in_name[1]) if in_name else None)
    return {row["update"]: row["hours_seen"] for row in run.metrics if row.get("hours_seen")}.get(update)


def find_config_differences(runs: Sequence[RunFolder]) -> list[tuple[str, list[Any]]]:
    """List the keys that are not the same in all runs, with the value of each run; None where a run lacks the key."""
    values = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for row in values for key in row if key not in UNTOLD)
    told = [(key, [row.get(key) for row in values]) for key in keys]
    return [(key, row) for key, row in told if any(value != row[0] for value in row)]


def _make_curves(runs: Sequence[Named], metric: Metric, split: str, x_name: str, above: float = -1.0) -> list[Series]:
    """Make the curve of one metric of each run that has it, at the places above a bound."""
    curves = []
    for number, (run, name) in enumerate(runs):
        if metric.loss in ("", find_loss(run)):
            rows = [row for row in run.select(split) if is_number(row.get(metric.name)) and row.get(x_name, -1) > above]
            x, y = [row[x_name] for row in rows], [metric.factor * row[metric.name] for row in rows]
            curves.append(make_series(name, x=x, y=y, smooth=split == "train", band=False, **choose_style(number)))
    return [curve for curve in curves if curve is not None]


def _draw(chosen: Sequence[Named], metric: Metric) -> list[Figure]:
    """Draw one metric of all runs that have it, and name the best one; [] where only one does."""
    split, x_name = _choose_split(chosen, metric), "update" if _hear_alike(chosen) else "hours_seen"
    curves = _make_curves(chosen, metric, split, x_name)
    # Before the first update nothing was learned.
    choose = max if metric.name == "accuracy" else min
    learned = [(float(choose(curve.y[curve.x > 0])), curve.label) for curve in curves if (curve.x > 0).any()]
    best = [label for value, label in learned if value == choose(learned)[0]] if split == "valid" else []
    note = f"The best value is that of {best[0]}." if len(best) == 1 else ""
    title = f"{metric.title}, {'held out' if split == 'valid' else 'training'}"
    options: dict[str, Any] = {"from_zero": metric.from_zero, "x_label": "update" if x_name == "update" else HOURS}
    return plot(title, metric.unit, curves, note, **options) if len(curves) > 1 else []


def _choose_split(chosen: Sequence[Named], metric: Metric) -> str:
    return "valid" if len(_make_curves(chosen, metric, "valid", "update", above=0)) > 1 else "train"


def _hear_alike(runs: Sequence[Named]) -> bool:
    """Say whether an update is the same amount of speech in all runs."""
    last = [(run.last("train", "hours_seen"), run.num_updates) for run, _ in runs]
    rates = [hours / updates for hours, updates in last if hours and updates]
    return not rates or max(rates) <= UNLIKE * min(rates)


def _tabulate(chosen: Sequence[Named], metrics: Sequence[Metric]) -> list[Figure]:
    """Put the last figures of each run side by side, without columns that no run has, and what differs in keys."""
    columns = {
        "updates": [run.num_updates for run, _ in chosen],
        "hours heard": [run.last("train", "hours_seen") for run, _ in chosen],
    }
    for metric in metrics:
        split = _choose_split(chosen, metric)
        found = [
            find_latest(run, split, metric.name) if metric.loss in ("", find_loss(run)) else None for run, _ in chosen
        ]
        columns[f"{metric.title}, {metric.unit}"] = [
            None if value is None else metric.factor * value for value in found
        ]
    columns["skipped updates"] = [run.last("train", "skipped_updates") for run, _ in chosen]
    kept = {title: values for title, values in columns.items() if any(value is not None for value in values)}
    rows = [[name, *(values[k] for values in kept.values())] for k, (_, name) in enumerate(chosen)]
    caption = "Last figures: held out, or where runs have no validation the median of the last 20 updates"
    differences = [[key, *values] for key, values in find_config_differences([run for run, _ in chosen])]
    names = ["key", *(name for _, name in chosen)]
    told = "What differs in their configurations" if differences else "Their configurations are the same."
    tables = Table(["run", *kept], rows, caption), Table(names, differences, told)
    return [Figure("", table, is_wide=True) for table in tables]


def _draw_accuracy(runs: Sequence[Named], loss: str) -> list[Figure]:
    """Draw the accuracy of the runs of one task over hours; the published points are of contrastive accuracy alone."""
    metric = Metric("accuracy", "Accuracy", SHARE, loss, 100)
    curves = _make_curves(runs, metric, "valid", "hours_seen", above=0)
    title = "Contrastive accuracy" if loss == "loss_contrastive" else "Accuracy of codes"
    where = "held out" if curves else "training"
    curves = curves or _make_curves(runs, metric, "train", "hours_seen", above=0)
    options: dict[str, Any] = {"x_label": HOURS, "log_x": True, "from_zero": True, "is_wide": True}
    if loss == "loss_codes" or not curves:
        note = "How often the true code of a masked frame scores highest. With other codes it means something else."
        return plot(f"{title}, {where}", SHARE, curves, note, **options)
    x, y = np.array(PUBLISHED_ACCURACY).T * [[HOURS_AN_UPDATE], [100]]
    hours = max(curve.x[-1] for curve in curves)
    published = Series(
        "BASE, replicated on LibriSpeech 960 h", "ink", x, y, kind="points", is_shown=bool(hours > NEAR * x[0])
    )
    note = (
        "The points are BASE on LibriSpeech 960 h as NVIDIA replicated it (means of 8 seeds, spread ±0.01) after 50k, "
        f"100k, 200k and 400k updates of {HOURS_AN_UPDATE:g} hours. With another codebook, mask or number of negatives "
        "the same accuracy means something else."
    )
    if not published.is_shown:
        note += f" They begin at {format_hours(x[0])}, and a click on their name shows them."
    for run, name in runs:
        values = {key: run.get_config(key, standard) for key, standard in TASK.items()}
        others = [f"{key}={values[key]} (BASE {TASK[key]})" for key in TASK if values[key] != TASK[key]]
        note += (
            f" {name} is not comparable with them: {', '.join(others)}." if others and find_loss(run) == loss else ""
        )
    return plot(f"{title}, {where}", SHARE, [*curves, published], note, **options)


def _draw_probes(runs: Sequence[Named], probes: Sequence[RunFolder], measure: str, what: str) -> list[Figure]:
    """Draw the scores of probes of one task; [] where none is of a checkpoint of these runs."""
    curves, drawn = [], []
    for number, (run, name) in enumerate(runs):
        found = [(find_probed_hours(run, probe), probe) for probe in probes if is_number(probe.result.get(measure))]
        scored = sorted((hours, probe.result[measure]) for hours, probe in found if hours is not None)
        drawn += [probe for hours, probe in found if hours is not None]
        x, y = [hours for hours, _ in scored], [score for _, score in scored]
        curves.append(make_series(name, x=x, y=y, **choose_style(number)))
    baselines: dict[str, list[float]] = {}
    for probe in drawn:
        for name, value in list_baselines(probe):
            baselines.setdefault(name, []).append(value)
    agreed = [(name, values[0]) for name, values in baselines.items()
              if len(values) == len(drawn) and max(values) - min(values) <= AGREES]  # fmt: skip
    note = (
        "A small probe on the frozen features of the checkpoint that had heard so much, learned mix of layers; "
        f"{'lower' if measure == 'eer' else 'higher'} is better. Dotted lines are what needs no pretraining. Scores "
        "with other speakers, utterances or probes are not comparable."
    )
    options: dict[str, Any] = {"x_label": HOURS, "log_x": True, "from_zero": True, "is_wide": True}
    return plot(what, "equal error rate, %" if measure == "eer" else "accuracy, %", curves, note, agreed, **options)
