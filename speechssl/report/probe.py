"""A speaker probe: what each layer knows, what the learned mix takes, and what the baselines get."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from speechssl.report.charts import Series, make_series, plot
from speechssl.report.content import Figure, Section, Stat, Table, Verdict
from speechssl.report.evaluation import describe_interval
from speechssl.report.run_folder import RunFolder

NAMES = {
    "log_mel": "log-mel statistics",
    "log_mel_statistics": "log-mel statistics",
    "untrained": "untrained encoder",
    "untrained_encoder": "untrained encoder",
}

Point = tuple[float, float, float, float]
"""Layer, figure in percent, and the ends of its interval, NaN without one."""


def find_measure(run: RunFolder) -> str:
    """Tell which figure the probe gives: `accuracy` (identification) or `eer` (verification)."""
    return "eer" if "eer" in run.result else "accuracy"


def describe_probe(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what a probe came to, and pick its first figures."""
    measure, value = find_measure(run), run.result.get(find_measure(run))
    what, task, better = {
        "eer": ("equal error rate", "telling whether two utterances have one speaker", "lower is better"),
        "accuracy": ("accuracy", "naming the speaker of an utterance", "higher is better"),
    }[measure]
    stats = []
    if _is_number(value):
        stats.append(Stat(f"{value:.1f} %", what, describe_interval(run.result.get(f"{measure}_interval"))))
    stats += [Stat(f"{figure:.1f} %", name, what) for name, figure in list_baselines(run)]
    return f"A small probe on frozen features, {task}; {better}.", stats


def judge_probe(run: RunFolder) -> Verdict:
    """Say whether the features know more of speakers than what needs no pretraining."""
    value, baselines = run.result.get(find_measure(run)), list_baselines(run)
    if not _is_number(value) or not baselines:
        return Verdict("open", "Nothing to compare with", "A probe says something beside its baselines.")
    sign = -1 if find_measure(run) == "eer" else 1
    name, best = max(baselines, key=lambda pair: sign * pair[1])
    text = f"The learned mix gets {value:.1f} %, the best baseline ({name}) {best:.1f} %"
    if sign * (value - best) > 0:
        return Verdict("good", "Better than the baselines", f"{text}.")
    easy = "; a task that a baseline solves tells nothing" if sign * best >= (99 if sign > 0 else -1) else ""
    return Verdict("doubt", "No better than the baselines", f"{text}{easy}.")


def make_probe(run: RunFolder) -> list[Section]:
    """Draw the figure of each layer beside the baselines, and the weights of the learned mix."""
    measure, result = find_measure(run), run.result
    what = "Equal error rate" if measure == "eer" else "Accuracy"
    points = _read_points(result.get("layers"), measure)
    layers = {NAMES.get(key, key): _read_points(value.get("layers") if isinstance(value, dict) else value, measure)
              for key, value in _get_baselines(run).items()}  # fmt: skip
    series = [_draw_points("pretrained", "c1", points)]
    series += [_draw_points(name, "c2", rows) for name, rows in layers.items() if rows]
    levels = [(name, value) for name, value in list_baselines(run) if not layers.get(name)]
    levels += [("learned mix", float(result[measure]))] if _is_number(result.get(measure)) else []
    goal = "False alarms and misses are equally frequent at this rate; lower is better." if measure == "eer" else (
        "Share of test utterances whose speaker is named; higher is better."
    )  # fmt: skip
    note = f"{goal} Points are single layers; the baselines are statistics of log-mel bands, and the same network with "
    figures = plot(f"{what} by layer", "%", series, f"{note}random weights.", levels, x_label="layer") if points else []
    weights = [w for w in result.get("layer_weights") or [] if _is_number(w)]
    note = (
        "How much of each layer the learned mix takes. Layer 0 is what enters the first transformer block. "
        "Layers of larger values count for more than their weight says."
    )
    bars = make_series("weight", "c1", range(len(weights)), [100 * w for w in weights], kind="bars")
    equal = [("equal mix", 100 / len(weights))] if weights else []
    figures += plot("Learned mix", "% of the mix", [bars], note, equal, x_label="layer", from_zero=True)
    rows = [(f"{name} (baseline)", value) for name, value in list_baselines(run)]
    rows += [(f"layer {layer:g}", value) for layer, value, *_ in points]
    figures += [Figure("In figures", Table(("features", f"{what.lower()}, %"), rows))] if rows else []
    return [Section("Layers", figures)] if figures else []


def list_baselines(run: RunFolder) -> list[tuple[str, float]]:
    """List the baselines with their figures in percent, by the names that people know; of layers, the best one."""
    measure, found = find_measure(run), []
    for key, value in _get_baselines(run).items():
        figure = value.get(measure) if isinstance(value, dict) else value
        if not _is_number(figure):
            points = _read_points(value.get("layers") if isinstance(value, dict) else value, measure)
            figure = (min if measure == "eer" else max)((y for _, y, *_ in points), default=None)
        if figure is not None:
            found.append((NAMES.get(key, key.replace("_", " ")), float(figure)))
    return found


def _get_baselines(run: RunFolder) -> dict[str, Any]:
    baselines = run.result.get("baselines")
    return baselines if isinstance(baselines, dict) else {}


def _read_points(rows: Any, measure: str) -> list[Point]:
    """Read the figure of each layer, with its interval where it has one."""
    points: list[Point] = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and _is_number(row.get(measure)):
            interval = row.get(f"{measure}_interval") or row.get("interval")
            ends = [interval.get(name) if isinstance(interval, dict) else None for name in ("low", "high")]
            low, high = (float(end) if _is_number(end) else math.nan for end in ends)
            layer = row.get("layer") if _is_number(row.get("layer")) else len(points)
            points.append((float(layer), float(row[measure]), low, high))
    return points


def _draw_points(label: str, style: str, points: list[Point]) -> Series | None:
    if not points:
        return None
    x, y, low, high = np.array(sorted(points)).T
    has_intervals = np.isfinite([low, high]).all()
    return Series(label, style, x, y, *((low, high) if has_intervals else ()), kind="points")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
