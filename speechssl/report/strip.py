"""One utterance over time: its spectrogram, and in step what the model hid, found, chose or wrote."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from speechssl.model.log_mel import compute_log_mel

FRAME_S = 0.02
NUM_MELS, HOP_SAMPLES, WINDOW_SAMPLES, FFT_SAMPLES, MIN_HZ = 96, 80, 400, 1024, 50.0

RANGE_DB = 62.0
"""Levels this far under the loudest one are drawn as silence."""

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
# Anchors of the palettes, from silence to loudest: one rise in lightness each, so that they also read in grey.
LIGHT = ((248, 250, 251), (206, 226, 234), (120, 178, 202), (37, 113, 155), (12, 58, 100), (8, 22, 48))
DARK = ((17, 22, 29), (24, 44, 72), (30, 88, 126), (48, 150, 168), (150, 214, 190), (250, 250, 226))


@dataclass(frozen=True)
class Picture:
    """One picture for light pages and one for dark ones, as data URIs."""

    light: str
    dark: str


@dataclass
class Strip:
    """What page.html draws of one utterance; places in time are frames of 20 ms.

    Attributes:
        duration_s: length of the utterance, the width of every row.
        picture: its spectrogram.
        text: what is said; '' where that is not known.
        sound: as a data URI; None without.
        masked: spans that were hidden, first frame and one past the last.
        found: each masked frame, and whether the model picked it.
        codes: for each codebook the stretches of one code: first frame, length, code.
        num_codes: V.
        letters: the frame where each letter is written, and the letter.
    """

    macro: ClassVar[str] = "strip"
    duration_s: float
    picture: Picture
    text: str = ""
    sound: str | None = None
    masked: Sequence[tuple[int, int]] = ()
    found: Sequence[tuple[int, bool]] = ()
    codes: Sequence[Sequence[tuple[int, int, int]]] = ()
    num_codes: int = 1
    letters: Sequence[tuple[int, str]] = field(default_factory=list)

    @property
    def num_frames(self) -> float:
        """Width in frames."""
        return self.duration_s / FRAME_S

    @property
    def seconds(self) -> list[int]:
        """Whole seconds for the axis."""
        return list(range(int(self.duration_s) + 1))


def find_spans(mask: BoolArray) -> list[tuple[int, int]]:
    """List the runs of True as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def find_stretches(codes: Sequence[int]) -> list[tuple[int, int, int]]:
    """List the stretches of one value as (first, length, value)."""
    stretches, first = [], 0
    for code, members in groupby(codes):
        length = len(list(members))
        stretches.append((first, length, code))
        first += length
    return stretches


def draw_spectrogram(waveform: FloatArray) -> Picture:
    """Draw a waveform (N,) at 16 kHz: 50 Hz to 8 kHz on the mel scale, high ones on top, a column every 5 ms."""
    padded = np.pad(waveform, WINDOW_SAMPLES // 2)
    bands = compute_log_mel(padded, NUM_MELS, HOP_SAMPLES, FFT_SAMPLES, MIN_HZ) * (10 / np.log(10))
    scaled = np.clip(1 + (bands - bands.max()) / RANGE_DB, 0.0, 1.0)
    levels = np.round(scaled[::-1] * 255).astype(np.uint8)
    return Picture(_encode(levels, LIGHT), _encode(levels, DARK))


def encode_png(levels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """Write an 8-bit picture with a palette as PNG.

    Args:
        levels: (height, width) indices into the palette.
        palette: (256, 3) red, green, blue.

    Source: PNG specification, third edition, §11 (chunks IHDR, PLTE, IDAT, IEND; filter type 0 in each row).
    """
    height, width = levels.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)
    rows[:, 1:] = levels
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _encode(levels: npt.NDArray[np.uint8], anchors: tuple[tuple[int, int, int], ...]) -> str:
    places = np.linspace(0, 255, len(anchors))
    columns = [np.interp(np.arange(256), places, [anchor[c] for anchor in anchors]) for c in range(3)]
    palette = np.stack(columns, axis=1).round().astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(encode_png(levels, palette)).decode("ascii")
