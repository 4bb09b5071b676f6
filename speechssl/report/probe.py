"""A probe: what each layer knows of a label, what the learned mix takes, what the baselines get, and DET curves."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

from speechssl.report.figures import Figure, Section, Series, Stat, Table, Verdict, is_number, make_series, plot
from speechssl.report.recognition import describe_interval
from speechssl.report.run_folder import RunFolder

NAMES = {"log_mel": "log-mel statistics", "untrained": "untrained encoder"}
MEASURES = {"accuracy": "accuracy", "eer": "equal error rate", "r2": "R²"}


def find_measure(run: RunFolder) -> str:
    """Tell which figure the probe gives: `accuracy` (identification), `r2` (regression) or `eer` (verification)."""
    return next((name for name in ("eer", "r2") if name in run.result), "accuracy")


def _name_label(run: RunFolder) -> str:
    label = run.result.get("label")
    return label if isinstance(label, str) and label else "speaker"


def describe_probe(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what a probe came to, and pick its first figures."""
    measure = find_measure(run)
    value, what, label = run.result.get(measure), MEASURES[measure], _name_label(run)
    interval = describe_interval(run.result.get(f"{measure}_interval"))
    stats = [Stat(f"{value:.1f} %", what, interval)] if is_number(value) else []
    stats += [Stat(f"{figure:.1f} %", name, what) for name, figure in list_baselines(run)]
    task = {
        "eer": f"telling whether two utterances have one {label}; lower is better",
        "accuracy": f"naming the {label} of an utterance; higher is better",
        "r2": f"telling the {label} of an utterance as a number; higher is better, and 0 % is what their mean gets",
    }[measure]
    confound = run.result.get("confound")
    said = f" Beware: {confound}." if isinstance(confound, str) and confound else ""
    return f"A small probe on frozen features, {task}.{said}", stats


def judge_probe(run: RunFolder) -> Verdict:
    """Say whether the features know more of the label than what needs no pretraining."""
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
    what = MEASURES[measure][0].upper() + MEASURES[measure][1:]
    layers = {NAMES.get(key, key): _read_layers(value, measure) for key, value in _get_baselines(run).items()}
    own = _read_layers(result, measure)
    series = [_draw_layers("pretrained", "c1", own), *(_draw_layers(name, "c2", rows) for name, rows in layers.items())]
    levels = [(name, value) for name, value in list_baselines(run) if not layers.get(name)]
    levels += [("learned mix", float(result[measure]))] if is_number(result.get(measure)) else []
    label = _name_label(run)
    goal = {
        "eer": "False alarms and misses are equally frequent at this rate; lower is better.",
        "accuracy": f"Share of test utterances whose {label} is named; higher is better.",
        "r2": f"Share of the variance of {label} that is told; higher is better, and below 0 is worse than its mean.",
    }[measure]
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
    return [Section("Layers", figures), *_draw_trials(run)]


def _draw_trials(run: RunFolder) -> list[Section]:
    """Draw DET curves, and list what each back-end gets of the model's learned mix; [] where there are no trials."""
    note = (
        "Misses against false alarms at every threshold, on axes where the scores of two normal distributions are a "
        "straight line: -3 is 0.13 %, -2 is 2.3 %, -1 is 15.9 % and 0 is 50 %. Lower and further left is better."
    )
    names = {"model": "pretrained", "untrained": NAMES["untrained"], "log_mel": NAMES["log_mel"]}
    curves = [_draw_det(name, f"c{k}", run.det.get(key)) for k, (key, name) in enumerate(names.items(), 1)]
    figures = plot("DET curve", "misses (normal deviate)", curves, note, x_label="false alarms (normal deviate)")
    rows = []
    backends = run.result.get("backends")
    for name, value in backends.items() if isinstance(backends, dict) else ():
        if isinstance(value, dict) and is_number(value.get("eer")):
            costs = [value.get(f"min_dcf_{p}") for p in (0.01, 0.05)]
            rows.append((name, value["eer"], *(cost if is_number(cost) else None for cost in costs)))
    if rows:
        head = ("back-end", "equal error rate, %", "minDCF, p_target 0.01", "minDCF, p_target 0.05")
        text = "Learned mix of the model; a miss and a false alarm cost 1 each."
        figures.append(Figure("Back-ends", Table(head, rows), text))
    return [Section("Trials", figures)] if figures else []


def _draw_det(name: str, style: str, det: Any) -> Series | None:
    rates = [det.get(key) if isinstance(det, dict) else None for key in ("alarms", "misses")]
    if not all(
        isinstance(rate, list) and all(is_number(value) and 0 < value < 100 for value in rate) for rate in rates
    ):
        return None
    pairs = zip(*rates, strict=False)
    points = sorted(tuple(NormalDist().inv_cdf(value / 100) for value in pair) for pair in pairs)
    alarms, misses = ([point[side] for point in points] for side in (0, 1))
    return make_series(name, style, alarms, misses)


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
