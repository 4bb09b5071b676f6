from __future__ import annotations

from itertools import pairwise

import pytest

from speechssl.report.html import format_number, format_percent
from speechssl.report.svg import Frame, Level, choose_log_ticks, choose_ticks, draw_levels, format_tick


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (0, 100, 5, [0, 20, 40, 60, 80, 100]),
        (4.37, 6.75, 5, [4.5, 5, 5.5, 6, 6.5]),
        (0, 0.001, 3, [0, 0.0005, 0.001]),
        (-1, 1, 5, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low: float, high: float, count: int, ticks: list[float]) -> None:
    assert choose_ticks(low, high, count) == pytest.approx(ticks)


def test_ticks_lose_the_zeros_of_their_decimals() -> None:
    assert format_tick(0.5, format_number) == "0.5"
    assert format_tick(0.001, format_number) == "0.001"
    assert format_tick(0.1, format_percent) == "10\u202f%"
    assert format_tick(0.125, format_percent) == "12.5\u202f%"
    assert format_tick(400_000, format_number) == "400\u202f000"


def test_labels_of_levels_that_are_near_each_other_do_not_overlap() -> None:
    frame = Frame(400, 230, (0, 1), (0, 100))
    picture = draw_levels(frame, [Level(50, "one"), Level(49, "two")])
    heights = [float(part.split('"')[0]) for part in picture.split(' y="')[1:]]
    assert abs(heights[0] - heights[1]) >= 12


def test_a_logarithmic_axis_gives_each_factor_the_same_room() -> None:
    frame = Frame(400, 230, (0.1, 1000), (0, 1), log_x=True)
    places = [frame.x(value) for value in (0.1, 1, 10, 100, 1000)]
    steps = [b - a for a, b in pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 4)
    assert (places[0], places[-1]) == (frame.left, frame.right)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.3, 800_000, [10.0**k for k in range(6)]), (3, 40, [5, 10, 20]), (2.1, 4.9, [2.1, 4.9])],
)
def test_logarithmic_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert choose_log_ticks(low, high) == pytest.approx(ticks)
