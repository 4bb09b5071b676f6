"""The learning curve: accuracy and probe scores against hours of speech heard, beside published BASE."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.checkpoints.layout import RESULT
from speechssl.errors import DataError
from speechssl.parsing import read_json
from speechssl.report.charts import Series, choose_style, make_series, plot
from speechssl.report.content import THIN_SPACE, Figure, Section, format_hours, format_percent
from speechssl.report.pretraining import find_loss
from speechssl.report.probe import find_measure, list_baselines
from speechssl.report.run_folder import Row, RunFolder, load_run

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

Named = tuple[RunFolder, str]
AXIS: dict[str, Any] = {"x_label": "hours of speech heard", "log_x": True, "from_zero": True, "is_wide": True}


def make_learning_curve(runs: Sequence[Named], probes: Sequence[RunFolder]) -> list[Section]:
    """Draw the curves of some pretraining runs over hours heard; [] where none has heard anything.

    Args:
        runs: pretraining runs, with what the page calls them.
        probes: folders of `probe`; one counts for the run whose folder, or a checkpoint inside, it was given.
    """
    figures = [figure for loss in ("loss_contrastive", "loss_codes") for figure in _draw_accuracy(runs, loss)]
    if not figures:
        return []
    for measure, what in (("accuracy", "Speaker identification"), ("eer", "Speaker verification")):
        figures += _draw_probes(runs, [probe for probe in probes if find_measure(probe) == measure], measure, what)
    return [Section("Learning curve", figures)]


def gather_probes(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Gather the probes among some folders, and those that lie inside them (`probe … out=runs/base/probe-10`)."""
    inside = [path.parent for run in runs for path in sorted(run.path.glob("*/result.json"))]
    given = {run.path.resolve(): run for run in runs if run.kind == "probe"}
    # A folder with a configuration is a training run, and a result without layers is that of another verb.
    fresh = [path for path in inside if path.resolve() not in given and not (path / "config.yaml").exists()]
    return [*given.values(), *(load_run(path) for path in fresh if _is_probe(path))]


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
    heard = {row["update"]: row["hours_seen"] for split in ("valid", "train") for row in _list_heard(run, split)}
    return heard.get(update)


def _is_probe(folder: Path) -> bool:
    """Say whether a folder inside a run is a probe's; one that is damaged is left out with a warning."""
    try:
        return {"layers", "baselines"} <= read_json(folder / RESULT).keys()
    except DataError as error:
        _logger.warning("left out of the report: %s", error)
        return False


def _list_heard(run: RunFolder, split: str) -> list[Row]:
    """List the lines of a split that are past the start: 0 hours have no place on a logarithmic axis."""
    return [row for row in run.select(split) if isinstance(row.get("hours_seen"), float) and row["hours_seen"] > 0]


def _draw_accuracy(runs: Sequence[Named], loss: str) -> list[Figure]:
    """Draw the accuracy of the runs of one task. The published points are of contrastive accuracy alone."""
    chosen = [(number, pair) for number, pair in enumerate(runs) if find_loss(pair[0]) == loss]
    curves = [_make_accuracy(run, name, number) for number, (run, name) in chosen]
    if not any(curves):
        return []
    if loss == "loss_codes":
        note = "How often the true code of a masked frame scores highest. With other codes it means something else."
        return plot("Accuracy of codes", "% of masked frames", curves, note, **AXIS)
    named = [pair for _, pair in chosen]
    hours = max((row["hours_seen"] for run, _ in named for row in _list_heard(run, "train")), default=0.0)
    is_near = hours > NEAR * PUBLISHED_ACCURACY[0][0] * HOURS_AN_UPDATE
    x, y = np.array(PUBLISHED_ACCURACY).T * [[HOURS_AN_UPDATE], [100]]
    published = Series("BASE, replicated on LibriSpeech 960 h", "ink", x, y, kind="points", is_shown=is_near)
    note = _explain(named, hours, is_near)
    return plot("Contrastive accuracy", "% of masked frames", [*curves, published], note, **AXIS)


def _make_accuracy(run: RunFolder, name: str, number: int) -> Series | None:
    """Make a run's curve: held out, or where it has no validation that of training, averaged."""
    rows = {split: [row for row in _list_heard(run, split) if row.get("accuracy") is not None] for split in ("valid", "train")}
    split = "valid" if rows["valid"] else "train"
    x, y = [row["hours_seen"] for row in rows[split]], [100 * row["accuracy"] for row in rows[split]]
    label = name if split == "valid" else f"{name}, training"
    return make_series(label, x=x, y=y, smooth=split == "train", band=False, **choose_style(number))


def _explain(runs: Sequence[Named], hours: float, is_near: bool) -> str:
    """Say what the published points are, how far the runs are from them, and what makes them another task."""
    share = format_percent(hours / (PUBLISHED_ACCURACY[0][0] * HOURS_AN_UPDATE), 2)
    parts = [
        "The points are BASE on LibriSpeech 960 h as NVIDIA replicated it (means of 8 seeds, spread ±0.01) after 50k, "
        f"100k, 200k and 400k updates, at the published {HOURS_AN_UPDATE:g} hours of audio an update. They are a guide "
        "for the same task only: with another codebook, mask or number of negatives the same accuracy means something "
        "else.",
        "" if is_near else f"They lie far to the right ({format_hours(hours)} are {share} of the first one) until a "
        "click on their name shows them.",
    ]  # fmt: skip
    for run, name in runs:
        values = {key: run.get_config(key, standard) for key, standard in TASK.items()}
        others = [f"{key}={values[key]:g} (BASE {TASK[key]:g})" for key in TASK if values[key] != TASK[key]]
        parts += [f"{name} is not comparable with them: {', '.join(others)}."] if others else []
    return " ".join(part for part in parts if part)


def _draw_probes(runs: Sequence[Named], probes: Sequence[RunFolder], measure: str, what: str) -> list[Figure]:
    """Draw the scores of probes of one task; [] where none is of a checkpoint of these runs."""
    curves, drawn = [], []
    for number, (run, name) in enumerate(runs):
        found = [(hours, probe) for probe in probes if (hours := find_probed_hours(run, probe)) is not None]
        scored = [pair for pair in found if isinstance(pair[1].result.get(measure), (int, float))]
        scored.sort(key=lambda pair: pair[0])
        x, y = [hours for hours, _ in scored], [float(probe.result[measure]) for _, probe in scored]
        curves.append(_add_intervals(make_series(name, x=x, y=y, **choose_style(number)), [p for _, p in scored], measure))
        drawn += [probe for _, probe in scored]
    note = (
        "A small probe on the frozen features of the checkpoint that had heard so much, learned mix of layers; "
        f"{'lower' if measure == 'eer' else 'higher'} is better, the band is the 95{THIN_SPACE}% interval. Dotted "
        "lines are what needs no pretraining. Scores with other speakers, utterances or probes are not comparable."
    )
    unit = f"{'equal error rate' if measure == 'eer' else 'accuracy'}, %"
    return plot(what, unit, curves, note, _find_levels(drawn), **AXIS)


def _add_intervals(curve: Series | None, probes: Sequence[RunFolder], measure: str) -> Series | None:
    """Give a curve the probes' intervals as its band, where all have one."""
    intervals = [probe.result.get(f"{measure}_interval") or {} for probe in probes]
    ends = [(interval.get("low"), interval.get("high")) for interval in intervals]
    if curve is None or len(curve.x) != len(ends) or any(end is None for pair in ends for end in pair):
        return curve
    low, high = np.array(ends, dtype=np.float64).T
    return replace(curve, low=low, high=high)


def _find_levels(probes: Sequence[RunFolder]) -> list[tuple[str, float]]:
    """Find the baselines on which all the probes agree, within rounding."""
    figures: dict[str, list[float]] = {}
    for probe in probes:
        for name, value in list_baselines(probe):
            figures.setdefault(name, []).append(value)
    return [
        (name, values[0])
        for name, values in figures.items()
        if len(values) == len(probes) and max(values) - min(values) <= AGREES
    ]
