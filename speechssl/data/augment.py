"""Speed perturbation: utterances played faster or slower, which moves pitch and formants with the tempo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import soxr

from speechssl.audio.reading import SAMPLE_RATE

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Count = TypeVar("Count", int, IntArray)


def change_speed(waveform: FloatArray, speed: float) -> FloatArray:
    """Play a waveform at another speed: at 1.1 a tone of 1 kHz has 1.1 kHz, and ends after 1/1.1 of the time.

    Args:
        waveform: (N,) float32 at 16 kHz.
        speed: factor.

    Returns:
        (`count_at_speed(N, speed)`,) float32 at 16 kHz, resampled by soxr (HQ).

    Source: Ko et al. 2015, Audio Augmentation for Speech Recognition (sox's `speed`).
    """
    if speed == 1.0:
        return waveform
    length = count_at_speed(len(waveform), speed)
    resampled = soxr.resample(waveform, SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ")[:length]
    padded: FloatArray = np.pad(resampled, (0, length - len(resampled))).astype(np.float32)
    return padded


def count_at_speed(num_samples: Count, speed: float | npt.NDArray[np.float64]) -> Count:
    """Count the samples of an utterance that is played at a speed, rounded to nearest; exact for every caller alike.

    Args:
        num_samples: samples at 16 kHz, a number or an array.
        speed: factor, or one for each.
    """
    rounded = np.floor(np.asarray(num_samples) / speed + 0.5).astype(np.int64)
    return int(rounded) if isinstance(num_samples, int) else rounded


def draw_speeds(falling: IntArray, speeds: Sequence[float], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw the speed of every utterance for one epoch.

    Each utterance has each of the K speeds with the same probability. Of K neighbours in the order of lengths each has
    another one, so that every epoch has the same share of all speeds, and nearly the same lengths.

    Args:
        falling: (n,) rows of the manifest by falling length.
        speeds: K factors; one that stands there twice is drawn twice as often.
        rng: of the seed and the epoch.

    Returns:
        (n,) the speed of each row of the manifest.
    """
    num_groups = -(-len(falling) // len(speeds))
    drawn = rng.permuted(np.tile(np.asarray(speeds, dtype=np.float64), (num_groups, 1)), axis=1).ravel()
    result = np.empty(len(falling))
    result[falling] = drawn[: len(falling)]
    return result


def bound_lengths(lengths: IntArray, speeds: Sequence[float]) -> IntArray:
    """Bound the lengths of an epoch, whatever `draw_speeds` gives.

    Args:
        lengths: (n,) samples of each utterance at speed 1.
        speeds: K factors.

    Returns:
        (n,) falling; the k-th longest utterance of no epoch is longer than the k-th of these. They are tight: only
        within K neighbours in the order of lengths are all taken for the longest.
    """
    falling, ascending = np.sort(lengths)[::-1], np.sort(np.asarray(speeds, dtype=np.float64))
    longest = np.repeat(falling[:: len(speeds)], len(speeds))[: len(falling)]
    slowest_first = np.tile(ascending, -(-len(falling) // len(speeds)))[: len(falling)]
    return np.sort(count_at_speed(longest, slowest_first))[::-1]
