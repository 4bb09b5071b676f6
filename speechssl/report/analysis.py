"""What each layer of a model is like: lines over layers, and maps of how alike layers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from speechssl.report.figures import Figure, Section, Series, Stat, Table, Verdict, format_number, is_number, plot
from speechssl.report.run_folder import RunFolder

MAX_CELLS = 100
"""Layers that a map shows at most: the largest published model has 48 blocks."""

LINES = (
    ("rank", "Effective rank", "dimensions", "Dimensions in use: exp of the entropy of the shares of variance. "
     "Below 2 a layer has collapsed."),
    ("spread", "Spread", "share", "Share of the mean square that differs between frames, the median over dimensions. "
     "Below 0.01 a layer has collapsed."),
    ("anisotropy", "Anisotropy", "mean cosine", "Mean cosine of two frames: 0 where directions are uniform, 1 where "
     "all point one way."),
    ("norm", "Norm", "mean norm", "Mean Euclidean norm of a frame."),
)  # fmt: skip

COLUMNS = (
    "rank", "spread", "norm", "anisotropy", "cca_log_mel", "cka_against", "variance_ratio", "neighbour_accuracy",
    "pnmi", "phone_purity", "cluster_purity",
)  # fmt: skip


@dataclass(frozen=True)
class Heat:
    """A map of numbers between 0 and 1, a cell each; what is None is left blank.

    Attributes:
        rows: of the map, the first at the bottom.
        row_name, column_name: what is counted along both sides.
    """

    macro: ClassVar[str] = "heat"
    rows: Sequence[Sequence[float | None]]
    row_name: str
    column_name: str


def describe_analysis(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what was looked at, and pick the first figures."""
    layers, label = _read_rows(run.result), _read_label(run)
    stats = []
    for name, title, unit in (("rank", "effective rank", "dimensions"), ("cca_log_mel", "CCA with log-mel", "")):
        points = _read_points(layers, name)
        if points:
            best, value = max(points, key=lambda point: point[1])
            stats.append(Stat(format_number(value), f"highest {title}", f"layer {best:g}{', ' + unit if unit else ''}"))
    points = _read_points(layers, "neighbour_accuracy")
    if points:
        best, value = max(points, key=lambda point: point[1])
        stats.append(Stat(f"{value:.1f} %", f"nearest neighbour has the same {label}", f"layer {best:g}"))
    frames, utterances = run.result.get("num_frames"), run.result.get("num_utterances")
    counted = f" on {frames} frames of {utterances} utterances" if is_number(frames) and is_number(utterances) else ""
    return f"The states of each layer{counted}. Layer 0 is what enters the first transformer block.", stats


def judge_analysis(run: RunFolder) -> Verdict:
    """Say whether a layer has collapsed."""
    layers = _read_rows(run.result)
    collapsed = [f"{row['layer']:g}" for row in layers if row.get("collapsed") is True]
    if not layers:
        return Verdict("open", "Nothing to look at", "The figures of the layers are not in the result.")
    if collapsed:
        text = "In effect one direction is left there, or nothing that differs between frames."
        return Verdict("bad", f"Collapsed: layer {', '.join(collapsed)}", text)
    least = min((value for _, value in _read_points(layers, "rank")), default=float("nan"))
    return Verdict("good", "No layer has collapsed", f"The lowest effective rank is {format_number(least)}.")


def make_analysis(run: RunFolder) -> list[Section]:
    """Draw the figures of each layer, and the maps of how alike layers are."""
    own, log_mel, against = (
        _read_rows(run.result),
        _read_mapping(run.result, "log_mel"),
        _read_mapping(run.result, "against"),
    )
    models = [("this model", "c1", own), ("against", "c2", _read_rows(against))]

    def draw(name: str, title: str, unit: str, note: str, levels: Sequence[tuple[str, float]] = ()) -> list[Figure]:
        series = [_draw(label, style, rows, name) for label, style, rows in models]
        return plot(title, unit, series, note, levels, x_label="layer")

    figures = [figure for line in LINES for figure in draw(*line)]
    chance = run.result.get("cca_chance")
    note = (
        "Mean canonical correlation with the log-mel bands of the same frames: how much of the spectrum is still there."
    )
    levels = [("frames shuffled", float(chance))] if is_number(chance) else []
    figures += draw("cca_log_mel", "CCA with log-mel", "correlation", note, levels)
    sections = [Section("Layers", figures)] if figures else []
    sections += _draw_classes(run, models, log_mel)
    sections += _draw_units(run, models, log_mel)
    maps = _draw_map(run.result, "Layers among each other", "layer", "layer")
    maps += _draw_map(
        against, f"Against {against.get('checkpoint', 'the other model')}", "layer, this model", "layer, against"
    )
    note = (
        "Linear CKA, debiased: 1 where two layers are the same but for rotation and scale, 0 where they share nothing."
    )
    sections += [Section("Likeness", maps, note)] if maps else []
    return sections + _tabulate(own)


def _draw_classes(
    run: RunFolder, models: Sequence[tuple[str, str, list[dict[str, Any]]]], log_mel: dict[str, Any]
) -> list[Section]:
    """Draw how classes lie in the means of utterances."""
    facts, label, figures = _read_mapping(run.result, "label"), _read_label(run), []
    for name, title, unit, note in (
        (
            "neighbour_accuracy",
            f"Nearest neighbour has the same {label}",
            "%",
            "Of the means of utterances, by cosine.",
        ),
        ("variance_ratio", "Between over within", "ratio", "Variance between the means of classes over that within."),
    ):
        levels = [("log-mel", float(log_mel[name]))] if is_number(log_mel.get(name)) else []
        if name == "neighbour_accuracy" and is_number(facts.get("majority")):
            levels.append(("most frequent class", float(facts["majority"])))
        series = [_draw(which, style, rows, name) for which, style, rows in models]
        figures += plot(title, unit, series, note, levels, x_label="layer")
    return [Section(f"Classes: {label}", figures)] if figures else []


def _draw_units(
    run: RunFolder, models: Sequence[tuple[str, str, list[dict[str, Any]]]], log_mel: dict[str, Any]
) -> list[Section]:
    """Draw how well k-means units of frames know the labels of their segments."""
    figures, number = [], _read_mapping(run.result, "units").get("num_codes")
    for name, title, note in (
        ("pnmi", "PNMI", "Share of the uncertainty of a frame's label that its unit takes away."),
        ("phone_purity", "Phone purity", "Accuracy of naming each unit's likeliest label."),
        ("cluster_purity", "Cluster purity", "Share of frames in their label's likeliest unit."),
    ):
        levels = [("log-mel", float(log_mel[name]))] if is_number(log_mel.get(name)) else []
        series = [_draw(which, style, rows, name) for which, style, rows in models]
        figures += plot(title, "share", series, note, levels, x_label="layer")
    lead = f"{number:g} clusters of k-means, fitted to each layer." if is_number(number) else ""
    return [Section("Units and labels of segments", figures, lead)] if figures else []


def _draw_map(result: dict[str, Any], title: str, row_name: str, column_name: str) -> list[Figure]:
    rows = result.get("cka")
    if (
        not isinstance(rows, list)
        or not rows
        or len(rows) > MAX_CELLS
        or not all(isinstance(row, list) for row in rows)
    ):
        return []
    widths = {len(row) for row in rows}
    if len(widths) != 1 or not 1 <= max(widths) <= MAX_CELLS:
        return []
    cells = [[min(max(float(value), 0.0), 1.0) if is_number(value) else None for value in row] for row in rows]
    return [Figure(title, Heat(cells, row_name, column_name))]


def _tabulate(layers: list[dict[str, Any]]) -> list[Section]:
    shown = [name for name in COLUMNS if any(is_number(row.get(name)) for row in layers)]
    rows = [[row["layer"], *(row.get(name) if is_number(row.get(name)) else None for name in shown)] for row in layers]
    head = ["layer", *(name.replace("_", " ") for name in shown)]
    return [Section("In figures", [Figure("", Table(head, rows), is_wide=True)])] if shown else []


def _draw(label: str, style: str, rows: list[dict[str, Any]], name: str) -> Series | None:
    points = _read_points(rows, name)
    if not points:
        return None
    x, y = np.array(points).T
    ends = [_read_ends(row, name) for row in rows if is_number(row.get(name))]
    low, high = np.array(ends).T
    band = {"low": low, "high": high} if np.isfinite(ends).all() else {}
    return Series(label, style, x, y, **band)


def _read_ends(row: dict[str, Any], name: str) -> tuple[float, float]:
    interval = _read_mapping(row, f"{name}_interval")
    low, high = (interval.get(end) for end in ("low", "high"))
    return (float(low), float(high)) if is_number(low) and is_number(high) else (float("nan"), float("nan"))


def _read_points(rows: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(float(row["layer"]), float(row[name])) for row in rows if is_number(row.get(name))]


def _read_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the rows of layers that have a number, in order."""
    rows = result.get("layers")
    found = (
        [row for row in rows if isinstance(row, dict) and is_number(row.get("layer"))] if isinstance(rows, list) else []
    )
    return sorted({float(row["layer"]): row for row in found}.values(), key=lambda row: float(row["layer"]))


def _read_mapping(result: dict[str, Any], name: str) -> dict[str, Any]:
    found = result.get(name)
    return found if isinstance(found, dict) else {}


def _read_label(run: RunFolder) -> str:
    return str(_read_mapping(run.result, "label").get("column", "label"))
