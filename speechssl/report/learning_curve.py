"""The learning curve: contrastive accuracy and probe scores against hours of speech heard, beside published BASE."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.checkpoints.layout import RESULT
from speechssl.errors import DataError
from speechssl.parsing import read_json
from speechssl.report.curves import Curve, Mark, draw_curves, make_curve
from speechssl.report.html import THIN_SPACE, escape, format_hours, format_number, format_percent, make_figure
from speechssl.report.html import make_section as wrap_section
from speechssl.report.pretraining import predicts_codes
from speechssl.report.probe import find_measure, list_baselines
from speechssl.report.run_folder import Row, RunFolder, load_run
from speechssl.report.svg import Level

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

Named = tuple[RunFolder, str]


def make_learning_curve(runs: Sequence[Named], probes: Sequence[RunFolder]) -> str:
    """Draw the curves of some pretraining runs over hours heard; '' where none has heard anything.

    Args:
        runs: pretraining runs, with what the page calls them.
        probes: folders of `probe`; one counts for the run whose folder, or a checkpoint inside, it was given.
    """
    curves = [_make_accuracy(run, name, number, len(runs) == 1) for number, (run, name) in enumerate(runs)]
    figures = "".join(_draw_accuracy(runs, curves, is_codes) for is_codes in (False, True))
    if not figures:
        return ""
    for measure, what in (("accuracy", "Speaker identification"), ("eer", "Speaker verification")):
        figures += _draw_probes(runs, [probe for probe in probes if find_measure(probe) == measure], measure, what)
    return wrap_section("Learning curve", figures)


def _draw_accuracy(runs: Sequence[Named], curves: Sequence[Curve | None], is_codes: bool) -> str:
    """Draw the accuracy of the runs of one task; '' where there is none. Naming codes has no published points."""
    chosen = [(pair, curve) for pair, curve in zip(runs, curves, strict=True) if predicts_codes(pair[0]) == is_codes]
    marks = [Mark(n * HOURS_AN_UPDATE, share, f"{n // 1000}k") for n, share in PUBLISHED_ACCURACY if not is_codes]
    options: dict[str, Any] = {"log_x": True, "from_zero": True, "x_name": "hours", "marks": marks}
    picture = draw_curves([curve for _, curve in chosen], describe=format_percent, **options)
    if not picture:
        return ""
    unit = "share of masked frames, held out, by hours of speech heard"
    if is_codes:
        note = "How often the true code of a masked frame scores highest. With other codes it means something else."
        return make_figure("Accuracy of codes", picture, note, unit, "wide")
    legend = (
        '<p class="legend"><span class="key ref">BASE, replicated on LibriSpeech 960 h, at so many updates</span></p>'
    )
    note = _explain([pair for pair, _ in chosen])
    return make_figure("Contrastive accuracy", legend + picture, note, unit, "wide")


def gather_probes(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Gather the probes among some folders, and those that lie inside them (`probe … out=runs/base/probe-10`)."""
    inside = [path.parent for run in runs for path in sorted(run.path.glob("*/result.json"))]
    given = {run.path.resolve(): run for run in runs if run.kind == "probe"}
    # A folder with a configuration is a training run, and a result without layers is that of another verb.
    fresh = [path for path in inside if path.resolve() not in given and not (path / "config.yaml").exists()]
    return [*given.values(), *(load_run(path) for path in fresh if _is_probe(path))]


def find_probed_hours(run: RunFolder, probe: RunFolder) -> float | None:
    """Find how much speech the probed checkpoint of a run had heard; None where it is none of this run's.

    A probe names its checkpoint as it was typed, so a relative one is looked for from where the report is made, and
    its update (older probes: that in the checkpoint's name).
    """
    named = probe.result.get("checkpoint")
    if not isinstance(named, str) or not Path(named).exists():
        return None
    # `best` is a link, and where it points now is not what it pointed to then.
    path, home = Path(named).absolute(), run.path.resolve()
    if home not in (path.resolve(), *path.resolve().parents):
        return None
    in_name = re.fullmatch(r"update-(\d+)", path.name)
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


def _make_accuracy(run: RunFolder, name: str, number: int, is_alone: bool) -> Curve | None:
    """Make a run's curve: held out, or where it has no validation that of training, averaged."""
    rows = {split: [row for row in _list_heard(run, split) if "accuracy" in row] for split in ("valid", "train")}
    split = "valid" if rows["valid"] else "train"
    x, y = [row["hours_seen"] for row in rows[split]], [row["accuracy"] for row in rows[split]]
    label = name if split == "valid" else f"{name}, training"
    style = "valid" if is_alone else _choose_style(number)
    return make_curve(label, style, x, y, smooth=split == "train", band=False)


def _choose_style(number: int) -> str:
    return f"c{number % 5 + 1}" + (" soft" if number >= 5 else "")


def _explain(runs: Sequence[Named]) -> str:
    """Say what the diamonds are, how far the runs are from them, and what makes them another task."""
    first = PUBLISHED_ACCURACY[0][0] * HOURS_AN_UPDATE
    heard = max((row["hours_seen"] for run, _ in runs for row in _list_heard(run, "train")), default=0.0)
    parts = [
        "The diamonds are BASE on LibriSpeech 960 h as NVIDIA replicated it (means of 8 seeds, spread ±0.01), at the "
        f"published {HOURS_AN_UPDATE:g} hours of audio an update; they are a guide for the same task only: with "
        "another codebook, mask or number of negatives K the same accuracy means something else."
    ]
    others = [(name, _list_differences(run)) for run, name in runs]
    for name, differences in others:
        if differences:
            who = "This run" if len(runs) == 1 else name
            parts.append(f"{escape(who)} is not comparable with them: {escape(', '.join(differences))}.")
    if not any(differences for _, differences in others):
        parts.append(f"{'This run has' if len(runs) == 1 else 'These runs have'} the codebook, mask and K of BASE.")
    if heard < first:
        share = format_percent(heard / first, 2)
        parts.append(f"{format_hours(heard)} have been heard, {share} of what the first diamond stands for.")
    return " ".join(parts)


def _list_differences(run: RunFolder) -> list[str]:
    """List the keys that make a run's task another than BASE's."""
    values = {key: run.get_config(key, standard) for key, standard in TASK.items()}
    return [f"{key}={values[key]:g} (BASE {TASK[key]:g})" for key in TASK if values[key] != TASK[key]]


def _draw_probes(runs: Sequence[Named], probes: Sequence[RunFolder], measure: str, what: str) -> str:
    """Draw the scores of probes of one task; '' where none is of a checkpoint of these runs."""
    curves, drawn = [], []
    for number, (run, name) in enumerate(runs):
        found = [(hours, probe) for probe in probes if (hours := find_probed_hours(run, probe)) is not None]
        found = sorted(found, key=lambda pair: pair[0])
        scored = [(hours, probe) for hours, probe in found if isinstance(probe.result.get(measure), (int, float))]
        style = "valid" if len(runs) == 1 else _choose_style(number)
        curve = make_curve(name, style, [h for h, _ in scored], [float(p.result[measure]) for _, p in scored])
        curves.append(_add_intervals(curve, [p for _, p in scored], measure))
        drawn += [probe for _, probe in scored]
    levels = _find_levels(drawn)
    picture = draw_curves(curves, levels, from_zero=True, log_x=True, x_name="hours")
    note = (
        "A small probe on the frozen features of the checkpoint that had heard so much, learned mix of layers; "
        f"{'lower' if measure == 'eer' else 'higher'} is better, the band is the 95{THIN_SPACE}% interval. Dotted "
        "lines are what needs no pretraining. Scores with other speakers, utterances or probes are not comparable."
    )
    unit = f"{'equal error rate' if measure == 'eer' else 'accuracy'} in %, by hours of speech heard"
    return make_figure(what, picture, note, unit, "wide") if picture else ""


def _add_intervals(curve: Curve | None, probes: Sequence[RunFolder], measure: str) -> Curve | None:
    """Give a curve the probes' intervals as its band, where all have one."""
    intervals = [probe.result.get(f"{measure}_interval") or {} for probe in probes]
    ends = [(interval.get("low"), interval.get("high")) for interval in intervals]
    if curve is None or len(curve.x) != len(ends) or any(end is None for pair in ends for end in pair):
        return curve
    low, high = np.array(ends, dtype=np.float64).T
    return Curve(curve.label, curve.style, curve.x, curve.y, low, high)


def _find_levels(probes: Sequence[RunFolder]) -> list[Level]:
    """Find the baselines on which all the probes agree, within rounding."""
    figures: dict[str, list[float]] = {}
    for probe in probes:
        for name, value in list_baselines(probe):
            figures.setdefault(name, []).append(value)
    return [
        Level(values[0], f"{name}, {format_number(values[0])} %")
        for name, values in figures.items()
        if len(values) == len(probes) and max(values) - min(values) <= AGREES
    ]
