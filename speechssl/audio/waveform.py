"""Waveforms in memory: any rate, type and number of channels → mono float32 at 16 kHz."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from speechssl.errors import DataError

FloatArray = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
"""Samples a second of everything that enters a model."""

MAX_CHANNELS = 64
"""An array with more columns than this, and fewer rows, has its channels first, as torchaudio gives them."""

MIN_RATE, MAX_RATE = 2_000, 768_000
"""Sample rates that are read, Hz: below, there is no speech, and a small file would become gigabytes at 16 kHz."""

CANCELLED = 0.1
"""Channels whose mean has less than this share of the energy that unrelated ones would leave cancel one another."""

_logger = logging.getLogger("speechssl")

_noted = mmap.mmap(-1, 4096)
"""Notices that were given, a line each, in memory that forked processes share: every validation forks new workers."""


def num_samples_at_16k(num_samples: int, sample_rate: int) -> int:
    """Convert a number of samples at the file's own rate to 16 kHz, rounded to nearest: what `load_audio` returns."""
    return (2 * num_samples * SAMPLE_RATE + sample_rate) // (2 * sample_rate)


def mix_down(samples: FloatArray, channel: int) -> FloatArray:
    """Take the mean of the channels, or one of them, from 1: (N, channels) → (N,)."""
    mixed: FloatArray = samples[:, channel - 1] if channel else samples.mean(axis=1)
    return mixed


def warn_of_cancelling(samples: FloatArray, path: str | os.PathLike[str]) -> None:
    """Say once if the channels cancel when they are mixed down, as those of a microphone wired the wrong way do."""
    mixed, each = np.square(samples.mean(axis=1)).mean(), np.square(samples).mean()
    if mixed * samples.shape[1] < CANCELLED * each:
        kept = 100 * mixed / each
        note_once(
            f"the channels of {path} cancel: mixed down to one they keep {kept:.2g} % of their energy; `channel` of "
            "`prepare`, `embed` and `transcribe` takes one instead (said of the first such file)",
            logging.WARNING,
            "the channels of",
        )


def convert_waveform(samples: npt.ArrayLike, sample_rate: int) -> FloatArray:
    """Mix down and resample.

    Args:
        samples: (N,) or (N, channels), in [-1, 1]; signed integers are scaled by their range, uint8 is WAV's (128 is
            silence).
        sample_rate: of the samples, Hz.

    Returns:
        (N',) float32 mono at 16 kHz.

    Raises:
        DataError: another shape or type, no sample rate, or values that are not finite.
    """
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise DataError(f"`sample_rate` must be between {MIN_RATE} and {MAX_RATE} Hz, but is {sample_rate}")
    array = _to_float(np.asarray(samples))
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > max(MAX_CHANNELS, len(array))):
        raise DataError(f"a waveform must have the shape (samples,) or (samples, channels), but has {array.shape}")
    if not np.isfinite(array).all():
        raise DataError("a waveform must be finite, but has NaN or infinite samples")
    mono = array if array.ndim == 1 else array.mean(axis=1) if array.shape[1] > 1 else array[:, 0]
    if array.ndim == 2 and array.shape[1] > 1:
        note_once(f"audio with {array.shape[1]} channels is mixed down to one")
    if sample_rate == SAMPLE_RATE:
        return np.ascontiguousarray(mono)
    note_once(f"audio at {sample_rate} Hz is resampled to {SAMPLE_RATE} Hz")
    length = num_samples_at_16k(len(mono), sample_rate)
    resampled = soxr.resample(mono, sample_rate, SAMPLE_RATE, quality="HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled))).astype(np.float32)


def convert_pieces(pieces: Iterable[FloatArray], sample_rate: int, num_samples: int) -> Iterator[FloatArray]:
    """Mix down and resample what comes in pieces, each as `convert_waveform` takes them.

    Args:
        pieces: consecutive, (n,) or (n, channels).
        sample_rate: of the pieces, Hz.
        num_samples: of all of them.

    Yields:
        (n',) float32 mono at 16 kHz, together as many as `num_samples_at_16k` says.
    """
    if sample_rate == SAMPLE_RATE:
        yield from (convert_waveform(piece, sample_rate) for piece in pieces)
        return
    note_once(f"audio at {sample_rate} Hz is resampled to {SAMPLE_RATE} Hz")
    stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    left, at = num_samples_at_16k(num_samples, sample_rate), 0
    for piece in pieces:
        at += len(piece)
        # At a rate that is no different it only mixes down.
        mono = convert_waveform(piece, SAMPLE_RATE)
        resampled = stream.resample_chunk(mono, last=at == num_samples)[:left]
        left -= len(resampled)
        yield resampled
    if left:
        yield np.zeros(left, dtype=np.float32)


def _to_float(array: npt.NDArray[Any]) -> FloatArray:
    """Scale samples to [-1, 1]: float32 of the same shape.

    Raises:
        DataError: the type does not say what their range is.
    """
    if array.dtype == np.uint8:
        array = array / 128.0 - 1.0
    elif np.issubdtype(array.dtype, np.signedinteger):
        array = array / -float(np.iinfo(array.dtype).min)
    elif not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"a waveform must be of floats, signed integers or uint8, but is of {array.dtype}")
    return array.astype(np.float32)


def note_once(message: str, level: int = logging.INFO, kind: str = "") -> None:
    """Log a message that was not logged before, or, of a `kind`, the first one."""
    line = f"{kind or message}\n".encode()
    if _noted.find(line, 0) >= 0:
        return
    start = _noted.rfind(b"\n", 0) + 1
    if start + len(line) <= len(_noted):
        _noted[start : start + len(line)] = line
    _logger.log(level, message)
