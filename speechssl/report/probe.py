"""The sections of a speaker probe: what each layer knows, what the learned mix takes, and what the baselines get."""

from __future__ import annotations

from typing import Any

from speechssl.report.evaluation import describe_interval
from speechssl.report.html import Stat, escape, format_number, make_figure, make_section, make_table
from speechssl.report.marks import Point, draw_layers, draw_weights
from speechssl.report.run_folder import RunFolder
from speechssl.report.svg import Level

NAMES = {
    "log_mel": "log-mel statistics",
    "log_mel_statistics": "log-mel statistics",
    "untrained": "untrained encoder",
    "untrained_encoder": "untrained encoder",
    "mix": "learned mix",
}


def find_measure(run: RunFolder) -> str:
    """Tell which figure the probe gives: `accuracy` (identification) or `eer` (verification)."""
    return "eer" if "eer" in run.result else "accuracy"


def describe_probe(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what a probe came to, and pick its first figures."""
    measure = find_measure(run)
    what = "equal error rate" if measure == "eer" else "accuracy"
    stats = []
    if isinstance(run.result.get(measure), (int, float)):
        stats.append(
            Stat(_percent(run.result[measure]), what, describe_interval(run.result.get(f"{measure}_interval")))
        )
    stats += [Stat(_percent(value), name, what) for name, value in list_baselines(run)]
    task = (
        "telling whether two utterances have one speaker" if measure == "eer" else "naming the speaker of an utterance"
    )
    better = "lower is better" if measure == "eer" else "higher is better"
    checkpoint = run.result.get("checkpoint")
    of = f" in {escape(checkpoint)}" if checkpoint else ""
    return f"A small probe on frozen features{of}, {task}; {better}.", stats


def make_probe(run: RunFolder) -> str:
    """Draw the figure of each layer beside the baselines, and the weights of the learned mix."""
    measure = find_measure(run)
    what = "Equal error rate" if measure == "eer" else "Accuracy"
    content = ""
    points = _read_points(run.result.get("layers"), measure)
    if points:
        content += make_figure(f"{what} by layer", _draw_by_layer(run, points, measure), _explain(measure), "%")
    weights = run.result.get("layer_weights")
    if isinstance(weights, list) and weights:
        note = (
            "How much of each layer the learned mix takes. Layer 0 is what enters the first transformer block. "
            "Layers of larger values count for more than their weight says."
        )
        content += make_figure("Learned mix", draw_weights([float(w) for w in weights], "Layer weights"), note, "share")
    return make_section("Layers", content + _tabulate(run, measure), css="grid")


def list_baselines(run: RunFolder) -> list[tuple[str, float]]:
    """List the baselines with their figures in percent, by the names that people know."""
    measure = find_measure(run)
    found = []
    for key, value in (run.result.get("baselines") or {}).items():
        figure = _read_figure(value, measure)
        if figure is not None:
            found.append((NAMES.get(key, key.replace("_", " ")), figure))
    return found


def _read_figure(value: Any, measure: str) -> float | None:
    """Read a baseline's figure: given as it is, by its name, or as the best of its layers."""
    if isinstance(value, dict) and isinstance(value.get(measure), (int, float)):
        return float(value[measure])
    if isinstance(value, (int, float)):
        return float(value)
    values = [point.y for point in _read_points(value.get("layers") if isinstance(value, dict) else value, measure)]
    return (min(values) if measure == "eer" else max(values)) if values else None


def _draw_by_layer(run: RunFolder, points: list[Point], measure: str) -> str:
    series = [("pretrained", "c1", points)]
    for key, value in (run.result.get("baselines") or {}).items():
        rows = _read_points(value.get("layers") if isinstance(value, dict) else value, measure)
        if [row.x for row in rows] == [point.x for point in points]:
            series.append((NAMES.get(key, key), "c2", rows))
    drawn = {label for label, _, _ in series}
    levels = [Level(value, f"{name}, {_percent(value)}") for name, value in list_baselines(run) if name not in drawn]
    if isinstance(run.result.get(measure), (int, float)) and not any(
        point.y == run.result[measure] for point in points
    ):
        levels.append(Level(float(run.result[measure]), f"learned mix, {_percent(run.result[measure])}"))
    return draw_layers(series, levels, format_number, "By layer")


def _read_points(rows: Any, measure: str) -> list[Point]:
    """Read the figure of each layer, with its interval where it has one."""
    points: list[Point] = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get(measure), (int, float)):
            interval = row.get(f"{measure}_interval") or row.get("interval") or {}
            low, high = (interval.get("low"), interval.get("high")) if isinstance(interval, dict) else (None, None)
            points.append(Point(str(row.get("layer", len(points))), float(row[measure]), low, high))
    return points


def _tabulate(run: RunFolder, measure: str) -> str:
    rows = [(f"{name} (baseline)", _percent(value)) for name, value in list_baselines(run)]
    rows += [(f"layer {p.x}", _percent(p.y)) for p in _read_points(run.result.get("layers"), measure)]
    if not rows:
        return ""
    table = make_table(("features", "equal error rate" if measure == "eer" else "accuracy"), rows, numeric=(1,))
    return make_figure("In figures", table)


def _explain(measure: str) -> str:
    goal = "False alarms and misses are equally frequent at this rate; lower is better." if measure == "eer" else (
        "Share of test utterances whose speaker is named; higher is better."
    )  # fmt: skip
    return (
        f"{goal} Dots are single layers, lines what needs no pretraining: statistics of log-mel bands, "
        "and the same network with random weights."
    )


def _percent(value: float) -> str:
    return f"{value:.1f} %"
