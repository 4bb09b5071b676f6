"""What lies between a synthetic voice and a microphone: the session's tone, its room and its noise.

Without it, a speaker would be known by the level and the slope of the spectrum alone, and log-mel statistics would
name every speaker; with it, two sessions of one speaker differ about as much as two rooms do.
"""

from __future__ import annotations

import numpy as np
import numpy.fft
import numpy.random  # numpy loads these two at first use, which every forked child would pay for
import soxr

SAMPLE_RATE = 16_000
EDGE_SILENCE_S = 0.15
"""Silence kept before and after the words."""

_TONE_DB = 3.0
_ROOM_S = (0.08, 0.25)
_ROOM_LEVEL = (0.03, 0.15)
_SNR_DB = (22.0, 38.0)
_PEAK = (0.25, 0.7)


def finish_utterance(
    speech: np.ndarray, sample_rate: int, tract_scale: float, session_seed: int, seed: int
) -> np.ndarray:
    """Turn the synthesiser's output into what a recording session would hold.

    Args:
        speech: int16 (N,) as synthesised.
        sample_rate: its rate in Hz.
        tract_scale: factor on all frequencies, as a shorter (above 1) or longer vocal tract has it.
        session_seed: fixes tone, room, kind of noise and level.
        seed: fixes the noise itself.

    Returns:
        float32 (M,) at 16 kHz, within ±0.7.
    """
    session = np.random.default_rng([session_seed, 1])
    noise = np.random.default_rng([seed, 2])
    # Reading the samples at another rate scales pitch and formants together; the speaking rate makes up for it.
    sound = soxr.resample(speech.astype(np.float32), sample_rate * tract_scale, SAMPLE_RATE, quality="HQ")
    sound = _filter(_trim(sound.astype(np.float64)), session)
    sound = sound + _make_noise(sound, session, noise)
    return np.asarray(session.uniform(*_PEAK) * sound / np.abs(sound).max(), dtype=np.float32)


def _trim(sound: np.ndarray) -> np.ndarray:
    """Cut the silence at both ends down to `EDGE_SILENCE_S`, adding some where there is less."""
    edge = round(EDGE_SILENCE_S * SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
    padded = np.pad(sound, edge)
    return padded[loud[0] : loud[-1] + 1 + 2 * edge]


def _filter(sound: np.ndarray, session: np.random.Generator) -> np.ndarray:
    """Apply the session's tone and room in one pass over the spectrum."""
    room = _make_room(session)
    size = _find_fast_size(len(sound) + len(room))
    knots = np.array([0.0, 150.0, 500.0, 1500.0, 3000.0, 5000.0, 8000.0])
    tone_db = np.interp(_list_frequencies(size), knots, session.uniform(-_TONE_DB, _TONE_DB, len(knots)))
    spectrum = np.fft.rfft(sound, size) * np.fft.rfft(room, size) * 10 ** (tone_db / 20)
    return np.fft.irfft(spectrum, size)[: len(sound)]


def _make_room(rng: np.random.Generator) -> np.ndarray:
    """Make the response of a small room: the direct sound and an exponentially decaying diffuse tail."""
    decay_s = rng.uniform(*_ROOM_S)
    level = rng.uniform(*_ROOM_LEVEL)
    time = np.arange(round(decay_s * SAMPLE_RATE)) / SAMPLE_RATE
    # 60 dB in decay_s
    tail = rng.standard_normal(len(time)) * np.exp(-6.9 * time / decay_s)
    response: np.ndarray = level * tail / np.sqrt(np.square(tail).sum())
    response[0] += 1.0
    return response


def _make_noise(sound: np.ndarray, session: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Make stationary noise with the session's own spectral slope, so many dB below the speech."""
    slope = session.uniform(0.3, 1.0)
    snr_db = session.uniform(*_SNR_DB)
    size = _find_fast_size(len(sound))
    spectrum = np.fft.rfft(rng.standard_normal(size)) / np.maximum(_list_frequencies(size), 50.0) ** slope
    noise = np.fft.irfft(spectrum, size)[: len(sound)]
    level = np.sqrt(np.square(sound).mean() / np.square(noise).mean())
    return np.asarray(noise * level * 10 ** (-snr_db / 20))


def _list_frequencies(size: int) -> np.ndarray:
    return np.fft.rfftfreq(size, 1 / SAMPLE_RATE)


def _find_fast_size(num_samples: int) -> int:
    """Round up to a size whose Fourier transform is quick: a prime one takes ten times as long."""
    return -(-num_samples // 4096) * 4096
