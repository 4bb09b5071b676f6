"""A log-mel spectrogram as PNG text, in a palette for light pages and one for dark ones."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
HOP_SAMPLES = 80
WINDOW_SAMPLES = 400
FFT_SAMPLES = 1024
NUM_MELS = 96
RANGE_DB = 62.0
"""Levels this far under the loudest one are drawn as silence."""

FloatArray = npt.NDArray[np.float32]
# Anchors of the palettes, from silence to loudest: one rise in lightness each, so that they also read in grey.
LIGHT = ((248, 250, 251), (206, 226, 234), (120, 178, 202), (37, 113, 155), (12, 58, 100), (8, 22, 48))
DARK = ((17, 22, 29), (24, 44, 72), (30, 88, 126), (48, 150, 168), (150, 214, 190), (250, 250, 226))


@dataclass(frozen=True)
class Picture:
    """One picture in both palettes, as data URIs."""

    light: str
    dark: str


def compute_log_mel(waveform: FloatArray) -> FloatArray:
    """Compute a log-mel spectrogram for looking at.

    Args:
        waveform: (N,) float32 at 16 kHz.

    Returns:
        (NUM_MELS, F) in 0 to 1, a column every 5 ms, low frequencies first; 1 is the loudest value, 0 is
        `RANGE_DB` below it. Column k is centred on sample 80·k.
    """
    from librosa.filters import mel

    padded = np.pad(waveform.astype(np.float32), FFT_SAMPLES // 2)
    starts = np.arange(0, len(waveform), HOP_SAMPLES)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[starts]
    window = np.zeros(FFT_SAMPLES, dtype=np.float32)
    edge = (FFT_SAMPLES - WINDOW_SAMPLES) // 2
    window[edge : edge + WINDOW_SAMPLES] = np.hanning(WINDOW_SAMPLES)
    power = np.abs(np.fft.rfft(frames * window, axis=1)).astype(np.float32) ** 2
    filters = mel(sr=SAMPLE_RATE, n_fft=FFT_SAMPLES, n_mels=NUM_MELS, fmin=50.0, fmax=8000.0)
    decibels = 10 * np.log10(np.maximum(power @ filters.T, 1e-10)).T
    scaled: FloatArray = 1 + (decibels - decibels.max()) / RANGE_DB
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)


def draw_spectrogram(log_mel: FloatArray) -> Picture:
    """Turn a spectrogram into pictures, high frequencies at the top."""
    levels = np.round(log_mel[::-1] * 255).astype(np.uint8)
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
    data = zlib.compress(rows.tobytes(), 9)
    chunks = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _encode(levels: npt.NDArray[np.uint8], anchors: tuple[tuple[int, int, int], ...]) -> str:
    places = np.linspace(0, 255, len(anchors))
    columns = [np.interp(np.arange(256), places, [anchor[c] for anchor in anchors]) for c in range(3)]
    palette = np.stack(columns, axis=1).round().astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(encode_png(levels, palette)).decode("ascii")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
