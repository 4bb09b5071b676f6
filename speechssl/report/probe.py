"""A speaker probe: what each layer knows, what the learned mix takes, and what the baselines get."""

from __future__ import annotations

from typing import Any

import numpy as np

from speechssl.report.figures import Figure, Section, Series, Stat, Table, Verdict, is_number, make_series, plot
from speechssl.report.recognition import describe_interval
from speechssl.report.run_folder import RunFolder

NAMES = {"log_mel": "log-mel statistics", "untrained": "untrained encoder"}


def find_measure(run: RunFolder) -> str:
    """Tell which figure the probe gives: `accuracy` (identification) or `eer` (verification)."""
    return "eer" if "eer" in run.result else "accuracy"


def describe_probe(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what a probe came to, and pick its first figures."""
    measure = find_measure(run)
    value, what = run.result.get(measure), measure.replace("eer", "equal error rate")
    interval = describe_interval(run.result.get(f"{measure}_interval"))
    stats = [Stat(f"{value:.1f} %", what, interval)] if is_number(value) else []
    stats += [Stat(f"{figure:.1f} %", name, what) for name, figure in list_baselines(run)]
    task = {
        "eer": "telling whether two utterances have one speaker; lower is better",
        "accuracy": "naming the speaker of an utterance; higher is better",
    }[measure]
    return f"A small probe on frozen features, {task}.", stats


def judge_probe(run: RunFolder) -> Verdict:
    """Say whether the features know more of speakers than what needs no pretraining."""
    value, baselines = run.result.get(find_measure(run)), list_baselines(run)
    if value is None or not is_number(value) or not baselines:
        return Verdict("open", "Nothing to compare with", "A probe says something beside its baselines.")
    is_error = find_measure(run) == "eer"
    name, best = (min if is_error else max)(baselines, key=lambda pair: pair[1])
    text = f"The learned mix gets {value:.1f} %, the best baseline ({name}) {best:.1f} %."
    if value < best if is_error else value > best:
        return Verdict("good", "Better than the baselines", text)
    easy = " A task that a baseline solves tells nothing." if (best < 1 if is_error else best >= 99) else ""
    return Verdict("doubt", "No better than the baselines", text + easy)


def make_probe(run: RunFolder) -> list[Section]:
    """Draw the figure of each layer beside the baselines, and the weights of the learned mix."""
    measure, result = find_measure(run), run.result
    is_error = measure == "eer"
    what = "Equal error rate" if is_error else "Accuracy"
    layers = {NAMES.get(key, key): _read_layers(value, measure) for key, value in _get_baselines(run).items()}
    own = _read_layers(result, measure)
    series = [_draw_layers("pretrained", "c1", own), *(_draw_layers(name, "c2", rows) for name, rows in layers.items())]
    levels = [(name, value) for name, value in list_baselines(run) if not layers.get(name)]
    levels += [("learned mix", float(result[measure]))] if is_number(result.get(measure)) else []
    goal = "False alarms and misses are equally frequent at this rate; lower is better." if is_error else (
        "Share of test utterances whose speaker is named; higher is better."
    )  # fmt: skip
    note = (
        f"{goal} Points are single layers; baselines are statistics of log-mel bands, and the same network untrained."
    )
    figures = plot(f"{what} by layer", "%", series, note, levels, x_label="layer") if own else []
    weights = [100 * weight for weight in result.get("layer_weights") or [] if is_number(weight)]
    note = (
        "How much of each layer the learned mix takes. Layer 0 is what enters the first transformer block. "
        "Layers of larger values count for more than their weight says."
    )
    bars = make_series("weight", "c1", range(len(weights)), weights, kind="bars")
    equal = [("equal mix", 100 / len(weights))] if weights else []
    figures += plot("Learned mix", "% of the mix", [bars], note, equal, x_label="layer", from_zero=True)
    rows = [(f"{name} (baseline)", value) for name, value in list_baselines(run)]
    rows += [(f"layer {layer:g}", value) for layer, value, *_ in own]
    figures += [Figure("In figures", Table(("features", f"{what.lower()}, %"), rows))] if rows else []
    return [Section("Layers", figures)] if figures else []


def list_baselines(run: RunFolder) -> list[tuple[str, float]]:
    """List the baselines with their figures in percent, by the names that people know; of layers, the best one."""
    measure, found = find_measure(run), []
    for key, value in _get_baselines(run).items():
        figure = value.get(measure) if isinstance(value, dict) else None
        scores = [figure] if is_number(figure) else [score for _, score, *_ in _read_layers(value, measure)]
        if scores:
            found.append((NAMES.get(key, key), float((min if measure == "eer" else max)(scores))))
    return found


def _get_baselines(run: RunFolder) -> dict[str, Any]:
    baselines = run.result.get("baselines")
    return baselines if isinstance(baselines, dict) else {}


def _read_layers(result: Any, measure: str) -> list[tuple[float, float, float, float]]:
    """Read the figure of each layer of a result with the ends of its interval, which are NaN without one."""
    rows = result.get("layers") if isinstance(result, dict) else None
    points = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and is_number(row.get(measure)) and is_number(row.get("layer")):
            interval = row.get(f"{measure}_interval")
            ends = [interval.get(name) if isinstance(interval, dict) else None for name in ("low", "high")]
            low, high = (float(end) if end is not None and is_number(end) else float("nan") for end in ends)
            points.append((float(row["layer"]), float(row[measure]), low, high))
    return sorted(points)


def _draw_layers(label: str, style: str, points: list[tuple[float, float, float, float]]) -> Series | None:
    if not points:
        return None
    x, y, low, high = np.array(points).T
    band = {"low": low, "high": high} if np.isfinite([low, high]).all() else {}
    return Series(label, style, x, y, **band, kind="points")
