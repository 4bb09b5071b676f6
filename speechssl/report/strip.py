"""One utterance over time: its spectrogram, and under it, in step, what the model hid, guessed, chose or wrote."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from speechssl.report.html import format_number
from speechssl.report.spectrogram import SAMPLE_RATE, Picture
from speechssl.report.svg import choose_ticks, draw_box, draw_text, wrap_svg

WIDTH, LEFT, RIGHT = 1200.0, 92.0, 8.0
SPECTROGRAM_HEIGHT, ROLL_HEIGHT, LETTERS_HEIGHT, GAP = 190.0, 66.0, 24.0, 12.0
FRAME_S = 0.02

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class Strip:
    """A drawing that grows downwards, one row for each thing that is shown.

    Args:
        duration_s: length of the utterance, the width of every row.
    """

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self.y = 2.0
        self.parts: list[str] = []

    def add_spectrogram(self, picture: Picture, mask: BoolArray | None = None) -> None:
        """Add the spectrogram, 0 to 8 kHz on the mel scale, with a veil over masked frames.

        Args:
            picture: of the whole utterance.
            mask: (T,) True where masked; None without a mask.
        """
        self._label("8 kHz", self.y + 10)
        self._label("sound", self.y + SPECTROGRAM_HEIGHT / 2)
        self._label("50 Hz", self.y + SPECTROGRAM_HEIGHT)
        place = f'x="{LEFT:g}" y="{self.y:g}" width="{WIDTH - LEFT - RIGHT:g}" height="{SPECTROGRAM_HEIGHT:g}"'
        self.parts += [
            f'<image class="only-{name}" {place} preserveAspectRatio="none" href="{uri}"/>'
            for name, uri in (("light", picture.light), ("dark", picture.dark))
        ]
        for start, end in find_spans(mask) if mask is not None else []:
            x, width = self._x(start), self._x(end) - self._x(start)
            self.parts.append(draw_box(x, self.y, width, SPECTROGRAM_HEIGHT, "veil"))
            self.parts.append(draw_box(x, self.y, width, 3, "cap"))
        self.y += SPECTROGRAM_HEIGHT + GAP

    def add_guesses(self, mask: BoolArray, right: BoolArray) -> None:
        """Add a tall mark for each masked frame that was found, a short one for each that was not.

        Args:
            mask: (T,) masked frames.
            right: (M,) for each masked frame in order of time.
        """
        base, width = self.y + 20, max(self._x(1) - self._x(0) - 0.8, 1.0)
        self._label("found", self.y + 14)
        for frame, found in zip(np.flatnonzero(mask), right, strict=True):
            height, style = (20, "c1") if found else (5, "miss")
            self.parts.append(draw_box(self._x(int(frame)), base - height, width, height, f"fill {style}"))
        self.y = base + GAP

    def add_codes(self, label: str, codes: IntArray, num_codes: int, style: str) -> None:
        """Add one codebook as a roll: height is the code's number, length is how long it stays.

        Args:
            label: name of the row.
            codes: (T,) from 0.
            num_codes: V.
            style: CSS class of the colour.
        """
        self.parts.append(draw_box(LEFT, self.y, WIDTH - LEFT - RIGHT, ROLL_HEIGHT, "lane"))
        self._label(label, self.y + ROLL_HEIGHT / 2 + 4)
        frame = 0
        for code, run in groupby(codes.tolist()):
            length = len(list(run))
            y = self.y + 4 + (ROLL_HEIGHT - 8) * (1 - code / max(num_codes - 1, 1))
            width = max(self._x(frame + length) - self._x(frame) - 0.4, 1.0)
            title = f"code {code}, {length * FRAME_S:.2f} s"
            self.parts.append(draw_box(self._x(frame), y - 1.6, width, 3.2, f"fill {style}", title))
            frame += length
        self.y += ROLL_HEIGHT + GAP / 2

    def add_letters(self, label: str, letters: Sequence[tuple[int, str]]) -> None:
        """Add text in step with the sound.

        Args:
            label: name of the row.
            letters: frame at which each letter begins, and the letter.
        """
        self._label(label, self.y + 15)
        self.parts += [draw_text(self._x(frame), self.y + 15, letter, "letter") for frame, letter in letters]
        self.y += LETTERS_HEIGHT

    def render(self, description: str) -> str:
        """Finish the drawing with a time axis; on a narrow screen it scrolls sideways."""
        ticks = choose_ticks(0.0, self.duration_s, 8)
        for second in ticks:
            x = LEFT + second / self.duration_s * (WIDTH - LEFT - RIGHT)
            anchor = "end" if x > WIDTH - 30 else "mid"
            text = format_number(second) + (" s" if second == ticks[-1] else "")
            self.parts.append(draw_text(x, self.y + 12, text, f"tick {anchor}"))
        svg = wrap_svg(WIDTH, self.y + 18, "".join(self.parts), description)
        return f'<div class="strip" tabindex="0">{svg}</div>'

    def _x(self, frame: int) -> float:
        """Left edge of a frame; the last one may reach past the end of the sound."""
        share = min(frame * FRAME_S / self.duration_s, 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def _label(self, text: str, y: float) -> None:
        self.parts.append(draw_text(LEFT - 10, y, text, "tick end"))


def find_spans(mask: BoolArray) -> list[tuple[int, int]]:
    """List the runs of True as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def count_seconds(num_samples: int) -> float:
    """Duration of a waveform at 16 kHz, in seconds."""
    return num_samples / SAMPLE_RATE
