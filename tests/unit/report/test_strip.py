from __future__ import annotations

import re

import numpy as np

from speechssl.report.spectrogram import Picture
from speechssl.report.strip import LEFT, RIGHT, WIDTH, Strip, find_spans


def test_spans_are_runs_of_true() -> None:
    mask = np.array([1, 1, 0, 0, 1, 0, 1], dtype=bool)
    assert find_spans(mask) == [(0, 2), (4, 5), (6, 7)]
    assert find_spans(np.zeros(3, dtype=bool)) == []


def test_rows_are_in_step_and_inside_the_drawing() -> None:
    mask = np.zeros(100, dtype=bool)
    mask[50:60] = True
    strip = Strip(2.0)
    strip.add_spectrogram(Picture("data:light", "data:dark"), mask)
    strip.add_guesses(mask, np.array([True] * 4 + [False] * 6))
    strip.add_codes("codebook 1", np.repeat([0, 7, 3], [40, 40, 20]), 8, "c1")
    strip.add_letters("letters", [(50, "<")])
    picture = strip.render("what it is")
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    veil = re.search(r'class="veil" x="([\d.]+)"', picture)
    letter = re.search(r'class="letter" x="([\d.]+)"', picture)
    assert veil is not None
    assert letter is not None
    assert float(veil[1]) == float(letter[1]) == middle
    assert picture.count("fill c1") == 4 + 3
    assert picture.count("fill miss") == 6
    assert "code 7, 0.80 s" in picture
    assert "&lt;" in picture
    edges = [
        float(x) + float(w)
        for x, w in re.findall(r'<rect class="\w+[^"]*" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture)
    ]
    assert max(edges) <= WIDTH


def test_the_frame_that_reaches_past_the_sound_is_cut() -> None:
    strip = Strip(0.995)
    strip.add_codes("codebook 1", np.arange(50) % 2, 2, "c1")
    edges = [float(x) for x in re.findall(r'<rect class="fill c1" x="([\d.]+)"', strip.render(""))]
    assert max(edges) < WIDTH - RIGHT
