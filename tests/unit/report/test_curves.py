from __future__ import annotations

import html
import json
import re

import numpy as np

from speechssl.report.curves import MAX_POINTS, draw_curves, make_curve
from speechssl.report.svg import Frame, Level


def test_smoothing_keeps_the_level_and_the_band_holds_the_values() -> None:
    rng = np.random.default_rng(0)
    y = 5 + rng.standard_normal(5000)
    curve = make_curve("training", "train", np.arange(1, 5001).tolist(), y.tolist(), smooth=True)
    assert curve is not None
    assert len(curve.x) == MAX_POINTS
    assert curve.x[-1] == 5000
    assert abs(curve.y.mean() - 5) < 0.05
    assert curve.y.std() < 0.2
    assert (curve.low < curve.y).all()
    assert (curve.high > curve.y).all()


def test_values_that_are_not_finite_are_left_out() -> None:
    curve = make_curve("x", "c1", [1, 2, 3], [1.0, float("nan"), 3.0])
    assert curve is not None
    assert curve.x.tolist() == [1, 3]
    assert make_curve("x", "c1", [1], [float("inf")]) is None


def test_no_points_no_chart() -> None:
    assert draw_curves([None, None]) == ""


def test_one_point_and_constant_curves_have_a_chart() -> None:
    for values in ([2.0], [0.0, 0.0], [3.0, 3.0]):
        picture = draw_curves([make_curve("x", "c1", list(range(1, len(values) + 1)), values)], from_zero=True)
        assert "<svg" in picture
        assert "nan" not in picture


def test_all_points_lie_inside_the_plot() -> None:
    y = np.r_[100.0, np.linspace(6, 4, 400)]
    curve = make_curve("training", "train", list(range(1, 402)), y.tolist(), smooth=True)
    picture = draw_curves([curve], levels=[Level(6.66, "chance")])
    for path in re.findall(r' d="M([^"]*?)Z?"', picture):
        heights = [float(pair.split()[1]) for pair in path.split("L")]
        assert min(heights) >= 0
        assert max(heights) <= 230


def test_the_pointer_gets_the_numbers_and_the_reader_a_description() -> None:
    picture = draw_curves([make_curve("held <out>", "valid", [10, 20], [5.5, 4.25])], levels=[Level(6.0, "chance")])
    found = re.search(r'data-chart="([^"]*)"', picture)
    assert found is not None
    data = json.loads(html.unescape(found[1]))
    assert data["curves"] == [{"label": "held <out>", "style": "valid", "x": [10, 20], "y": [5.5, 4.25]}]
    assert "held &lt;out&gt;: from 5.50 at 10 to 4.25 at 20; chance: 6" in picture


def test_a_frame_maps_its_ranges_to_its_edges() -> None:
    frame = Frame(400, 200, (0, 10), (-1, 1))
    assert (frame.x(0), frame.x(10)) == (frame.left, frame.right)
    assert (frame.y(-1), frame.y(1)) == (frame.bottom, frame.top)
