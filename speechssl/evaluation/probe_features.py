"""What a probe sees: every utterance as pooled vectors, of the model's states and of log-mel statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from speechssl.audio.reading import load_audio, num_samples_at_16k
from speechssl.config.model import MEL_WINDOW_SAMPLES
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.inference.batches import read_ahead
from speechssl.inference.embed import Embedder, choose_layers
from speechssl.inference.source import FloatArray, IntArray, Source
from speechssl.model.log_mel import compute_mel_power, make_mel_filters, make_window
from speechssl.model.speech_model import SpeechModel
from speechssl.progress import track
from speechssl.seeds import make_rng

NUM_MELS = 40


def limit_source(manifest: Manifest, max_s: float, key: str = "audio", left_out: LeftOut | None = None) -> Source:
    """Read the first `max_s` seconds of each utterance; errors name `key`, and `left_out` is as in `Source`."""
    rates = np.array(manifest.table.column("sample_rate").to_pylist(), dtype=np.int64)
    counts = np.array(manifest.table.column("num_samples").to_pylist(), dtype=np.int64)
    taken = np.minimum(counts, np.round(max_s * rates).astype(np.int64))
    lengths = np.array([num_samples_at_16k(int(n), int(r)) for n, r in zip(taken, rates, strict=True)])

    def read(index: int) -> FloatArray:
        utterance = manifest[index]
        count = int(taken[index])
        return load_audio(utterance.path, utterance.offset, count, utterance.sample_rate, utterance.channel)

    return Source(manifest.column("id"), lengths, read, manifest, left_out, key)


def pool_states(model: SpeechModel, source: Source, batch_s: float, precision: str) -> FloatArray:
    """Average each of the L + 1 states over the frames of each utterance.

    Args:
        model: L blocks of width D.
        source: n utterances.
        batch_s: seconds of audio that a pass may hold.
        precision: `float32` or `bf16`.

    Returns:
        (n, L + 1, D) float32.
    """
    embedder = Embedder(model, choose_layers("all", model.num_layers), "mean", batch_s, 1e9, precision)
    return np.stack([np.concatenate(row) for _, row in embedder.iterate(source, "states")])


def pool_log_mel(source: Source, shortest: int = 1) -> FloatArray:
    """Compute mean and standard deviation over time of 40 log-mel bands of each utterance.

    The baseline that learned features must beat: it knows the sound of the recording and of the voice, and no more.

    Args:
        source: utterances; what it leaves out has no row.
        shortest: samples at 16 kHz that an utterance must have.

    Returns:
        (n, 1, 80) float32, natural log of the power in windows of 25 ms every 10 ms.
    """
    filters, window = make_mel_filters(NUM_MELS, MEL_WINDOW_SAMPLES), make_window()
    rows = [np.zeros((0, 1, 2 * NUM_MELS), np.float32)]
    source.leave_out_short(shortest)
    kept = np.flatnonzero(source.lengths >= shortest).tolist()
    waveforms = read_ahead(source, [[index] for index in kept])
    for _, (waveform,) in track(waveforms, "log-mel", len(kept), "utterances"):
        padded = np.pad(waveform, (0, max(0, MEL_WINDOW_SAMPLES - len(waveform))))
        power = compute_mel_power(torch.from_numpy(padded), filters, window)
        # (S, F) as it lies in memory: the order of these sums is part of published figures.
        mel = np.log(power.numpy().T.copy() + 1e-10)
        rows.append(np.concatenate([mel.mean(0), mel.std(0)])[None, None].astype(np.float32))
    return np.concatenate(rows)


@dataclass(frozen=True)
class Labelled:
    """Utterances that can be used, with their log-mel statistics, row for row."""

    manifest: Manifest
    log_mel: FloatArray

    def select(self, rows: IntArray) -> Labelled:
        """Take rows in the given order."""
        return Labelled(self.manifest.select(rows), self.log_mel[rows])


def read_usable(manifest: Manifest, max_s: float, shortest: int, left_out: LeftOut) -> Labelled:
    """Read all audio once for its log-mel statistics; what cannot be used is left out from here on.

    Raises:
        DataError: nothing can be used.
    """
    log_mel = pool_log_mel(limit_source(manifest, max_s, left_out.key, left_out), shortest)
    left_out.require_others(len(log_mel))
    return Labelled(left_out.drop_from(manifest), log_mel)


def standardise(train: FloatArray, test: FloatArray, alike: bool = False) -> tuple[FloatArray, FloatArray]:
    """Give both sets zero mean and unit variance by the statistics of the first.

    Args:
        train: (n, S, D) features, whose statistics count.
        test: (m, S, D) features.
        alike: scale all states alike, so that a mix of them is the same mix of the states as they are.
    """
    mean, deviation = train.mean(0), train.std(0)
    if alike:
        deviation = np.sqrt(np.square(deviation).mean(0))
    return (train - mean) / (deviation + 1e-5), (test - mean) / (deviation + 1e-5)


def split_stratified(speakers: list[str], test_share: float, seed: int) -> tuple[IntArray, IntArray]:
    """Split utterances so that each speaker with two or more has some in both parts.

    Returns:
        Rows for training and rows for the test, in order.
    """
    rng = make_rng(seed, "probe split")
    names = np.array(speakers, dtype=object)
    test = []
    for name in dict.fromkeys(speakers):
        rows = rng.permutation(np.flatnonzero(names == name))
        count = min(max(round(test_share * len(rows)), 1), len(rows) - 1)
        test += rows[:count].tolist()
    chosen = np.array(sorted(test), dtype=np.int64)
    return np.setdiff1d(np.arange(len(names)), chosen), chosen
