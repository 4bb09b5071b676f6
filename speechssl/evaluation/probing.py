"""What a probe sees: every utterance as pooled vectors, of the model's states and of log-mel statistics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from speechssl.audio import SAMPLE_RATE, load_audio, num_samples_at_16k
from speechssl.data.manifest import Manifest
from speechssl.evaluation.embeddings import Embedder, choose_layers
from speechssl.evaluation.recognition import Source
from speechssl.model.speech_model import SpeechModel
from speechssl.progress import track

FloatArray = npt.NDArray[np.float32]

NUM_MELS = 40


def limit_source(manifest: Manifest, max_s: float, key: str = "audio") -> Source:
    """Read the first `max_s` seconds of each utterance; errors name `key`."""
    rates = np.array(manifest.table.column("sample_rate").to_pylist(), dtype=np.int64)
    counts = np.array(manifest.table.column("num_samples").to_pylist(), dtype=np.int64)
    taken = np.minimum(counts, np.round(max_s * rates).astype(np.int64))
    lengths = np.array([num_samples_at_16k(int(n), int(r)) for n, r in zip(taken, rates, strict=True)])

    def read(index: int) -> FloatArray:
        utterance = manifest[index]
        count = int(taken[index])
        return load_audio(utterance.path, utterance.offset, count, utterance.sample_rate, utterance.channel)

    return Source(manifest.column("id"), lengths, read, key)


def pool_states(model: SpeechModel, source: Source, batch_s: float, precision: str) -> FloatArray:
    """Average each of the L + 1 states over the frames of each utterance: (n, L + 1, D)."""
    embedder = Embedder(model, choose_layers("all", model.num_layers), "mean", batch_s, 1e9, precision)
    rows = [np.concatenate(row) for row in track(embedder.iterate(source), "states", len(source.lengths), "utterances")]
    return np.stack(rows)


def pool_log_mel(source: Source) -> FloatArray:
    """Mean and standard deviation over time of 40 log-mel bands of each utterance: (n, 1, 80).

    What a feature of speech must beat: it knows the recording's tone and the voice's, and nothing learned.
    """
    import librosa

    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=400, n_mels=NUM_MELS)
    window = np.hanning(401)[:400].astype(np.float32)
    rows = []
    for index in range(len(source.lengths)):
        waveform = source.read(index)
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, (0, max(0, 400 - len(waveform)))), 400)[
            ::160
        ]
        power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
        mel = np.log(power @ filters.T + 1e-10)
        rows.append(np.concatenate([mel.mean(0), mel.std(0)])[None].astype(np.float32))
    return np.stack(rows)


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


def split_stratified(
    speakers: list[str], test_share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split utterances so that each speaker with two or more has some in both parts.

    Returns:
        Rows for training and rows for the test, in order.
    """
    rng = np.random.default_rng([seed, 0x5917])
    names = np.array(speakers, dtype=object)
    test = []
    for name in dict.fromkeys(speakers):
        rows = rng.permutation(np.flatnonzero(names == name))
        count = min(max(round(test_share * len(rows)), 1), len(rows) - 1)
        test += rows[:count].tolist()
    chosen = np.array(sorted(test), dtype=np.int64)
    return np.setdiff1d(np.arange(len(names)), chosen), chosen
