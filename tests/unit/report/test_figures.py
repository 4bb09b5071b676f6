from __future__ import annotations

import math

import numpy as np

from speechssl.report.figures import (
    MAX_POINTS,
    Chart,
    format_hours,
    format_number,
    format_percent,
    format_value,
    make_series,
    plot,
)


def test_smoothing_keeps_the_level_and_the_band_holds_the_values() -> None:
    y = 5 + np.random.default_rng(0).standard_normal(5000)
    curve = make_series("training", "train", range(1, 5001), y.tolist(), smooth=True)
    assert curve is not None and curve.low is not None and curve.high is not None
    assert len(curve.x) == MAX_POINTS and curve.x[-1] == 5000
    assert abs(curve.y.mean() - 5) < 0.05 and curve.y.std() < 0.2
    assert (curve.low < curve.y).all() and (curve.high > curve.y).all()


def test_values_that_are_not_finite_are_left_out() -> None:
    curve = make_series("x", "c1", [1, 2, 3], [1.0, float("nan"), 3.0])
    assert curve is not None and curve.x.tolist() == [1, 3]
    assert make_series("x", "c1", [1], [float("inf")]) is None
    assert plot("nothing", "", [None, None]) == []


def test_the_script_gets_one_axis_and_the_reader_words() -> None:
    curves = [
        make_series("held out", "valid", [10, 20], [5.5, 4.25]),
        make_series("b", "c1", [15], [1.0], is_shown=False),
    ]
    (figure,) = plot("Loss", "bits", curves, levels=[("guessing", 6.0)], log_x=True)
    chart = figure.content
    assert isinstance(chart, Chart)
    data = chart.to_json()
    assert data["x"] == [10, 15, 20] and data["logX"] is True and data["yLabel"] == "bits"
    assert [row["y"] for row in data["series"]] == [[5.5, 4.25], [1.0], [6.0, 6.0]]
    assert [row.get("at") for row in data["series"]] == [[0, 2], [1], [0, 2]]
    assert [row["shown"] for row in data["series"]] == [True, False, True]
    assert chart.describe() == ["held out: 5.5 at 10, 4.25 at 20", "b: 1", "guessing: 6 (bits)"]


def test_words_are_of_logged_values_and_the_legend_says_what_is_smoothed() -> None:
    values = [*np.linspace(5, 7, 49).tolist(), 7.075]
    chart = Chart(
        [curve for curve in [make_series("training", "train", range(1, 51), values, smooth=True)] if curve], ""
    )
    assert chart.describe() == ["training: 5 at 1, 7.075 at 50"]
    (row,) = chart.to_json()["series"]
    assert row["label"] == "training, smoothed" and row["y"][-1] < 7.075


def test_a_thinned_curve_keeps_its_ends_and_extremes() -> None:
    values = [1.0] * 10_000
    values[0], values[1234], values[7777], values[-1] = 2.0, 9.0, -3.0, 5.0
    curve = make_series("x", "c1", range(10_000), values)
    assert curve is not None and len(curve.x) <= MAX_POINTS
    assert {2.0, 9.0, -3.0, 5.0} < set(curve.y.tolist()) and curve.x[[0, -1]].tolist() == [0, 9999]


def test_numbers_are_written_for_people() -> None:
    texts = {
        0: "0", 4.9234: "4.92", 64: "64", 64.04: "64.0", 0.0312: "0.0312", 5e-4: "5×10⁻⁴", 2.5e-6: "2.5×10⁻⁶",
        -1.5: "−1.50", 400_000: "400\u202f000", math.nan: "–", math.inf: "–", 9.996e-4: "0.00100", 9.96e-6: "1×10⁻⁵",
        9.996: "10.0", 999.96: "1\u202f000",
    }  # fmt: skip
    assert {value: format_number(value) for value in texts} == texts
    assert format_percent(0.2512) == "25.1\u202f%"
    assert [format_hours(h) for h in (11.72, 1, 0.5, 0.005)] == ["11.7 hours", "1 hour", "30 minutes", "18 seconds"]
    values = {"512, 512": [512, 512], "true": True, "–": None, "0.0005": 0.0005, "70.3": 70.30}
    assert {text: format_value(value) for text, value in values.items()} == {text: text for text in values}
    assert format_value("") == "–"
