"""What `speechssl bench` feeds its jobs: noise with the outlines of speech, or the utterances of a manifest."""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import cycle

import numpy as np
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.data import PretrainDataConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import BenchConfig, PretrainConfig
from speechssl.data.dataset import Example, FloatArray, normalize
from speechssl.data.loader import Batch, Collate, stack
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.seeds import make_rng
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.sources import ManifestSource, build_source, select_long_enough, select_utterances

NUM_BATCHES = 4
"""So many different batches are made beforehand and take turns."""

LETTERS_PER_S = 14
"""Letters in a second of read English, about as in LibriSpeech."""

_SYLLABLES_PER_S = 4.0
_SHORTEST_S = 2.0


def make_batches(config: BenchConfig, collate: Collate, whole: bool = False) -> Iterator[list[Batch]]:
    """Yield the batch of each update, for ever: `batch` rows of `seconds` of noise each.

    Args:
        config: of the bench.
        collate: what the objective does in the loader's workers.
        whole: treat rows as whole utterances, as fine-tuning does, instead of crops.
    """
    made = [_make_batch(config, collate, number, whole) for number in range(NUM_BATCHES)]
    return cycle([[batch] for batch in made])


def make_noise(num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Make noise with the spectrum and the syllables of speech, roughly: falling with frequency, four bursts a second.

    Returns:
        (N,) float32 in [-1, 1] at 16 kHz.
    """
    white = np.fft.rfft(rng.standard_normal(num_samples))
    hertz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    sound = np.fft.irfft(white / (1.0 + hertz / 500.0), num_samples)
    time = np.arange(num_samples) / SAMPLE_RATE
    sound *= 0.1 + np.sin(np.pi * _SYLLABLES_PER_S * time + rng.uniform(0, np.pi)) ** 2
    scaled: FloatArray = (0.5 * sound / np.abs(sound).max()).astype(np.float32)
    return scaled


def _make_batch(config: BenchConfig, collate: Collate, number: int, whole: bool) -> Batch:
    rng = make_rng(config.seed, "bench", number)
    num_samples = round(config.seconds * SAMPLE_RATE)
    rows = range(config.batch)
    examples = [_make_example(config, f"{number}-{row}", num_samples, rng) for row in rows]
    sub_batch = SubBatch(number, 0, tuple(rows), 0 if whole else num_samples)
    plan = ForwardPlan(number + 1, (sub_batch,), is_last=True)
    return stack(plan, [(examples, collate(examples, config.seed, number))])


def _make_example(config: BenchConfig, name: str, num_samples: int, rng: np.random.Generator) -> Example:
    waveform = make_noise(num_samples, rng)
    if config.model.normalize_waveform:
        waveform = normalize(waveform, config.model.waveform_epsilon)
    letters = rng.choice(list(string.ascii_uppercase), max(1, round(config.seconds * LETTERS_PER_S)))
    # A space in every fifth place, so that the labels have words.
    text = "".join(" " if index % 5 == 4 else letter for index, letter in enumerate(letters))
    return Example(name, waveform, text, None)


def open_manifest(config: BenchConfig, device: torch.device) -> ManifestSource:
    """Open `data.train` as pretraining does: crops of at most `seconds`, `batch` times as much audio an update.

    Raises:
        DataError: a manifest is missing or unreadable, or nothing in it is long enough.
    """
    seconds, network = config.seconds, config.model
    size = config.batch * seconds
    training = TrainingConfig(update_s=size, sub_batch_s=size, forward_s=size)
    data = PretrainDataConfig(min_s=min(_SHORTEST_S, seconds), max_s=seconds)
    pretraining = PretrainConfig(out="", data=data, model=network, training=training)
    manifest = select_utterances(config.data.train, "data.train", config.data, config.seed, is_training=True)
    return build_source(
        select_long_enough(manifest, pretraining, "data.train"),
        config.seed,
        network,
        training,
        config.data,
        max_s=seconds,
        ranks=Ranks(device),
    )
