"""What tests share: shape checks at run time, synthetic speech, tiny configurations."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# The tests run side by side with other work, and results must not depend on how many cores there are.
os.environ.setdefault("OMP_NUM_THREADS", "2")

from jaxtyping import install_import_hook

# Shapes in annotations are executed: a shape comment that lies fails a test. Before anything imports the modules.
# Not where a graph is traced (tests/unhooked.py): the checks are Python between the tensors.
if os.environ.get("JAXTYPING_DISABLE") != "1":
    install_import_hook(["speechssl.model", "speechssl.objectives.losses"], "beartype.beartype")

import numpy as np
import pytest
import soundfile

from speechssl.config.model import MaskConfig, ModelConfig, QuantizerConfig

SAMPLE_RATE = 16_000


def make_speech(seconds: float, seed: int, pitch_hz: float = 120.0, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Make a sound with the outlines of speech: voiced syllables with moving formants, noise and pauses between.

    Returns:
        float32 (N,) in [-1, 1], the same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * sample_rate)
    time = np.arange(num_samples) / sample_rate
    num_syllables = max(1, round(4 * seconds))
    knots = np.linspace(0.0, seconds, num_syllables + 1)
    pitch = pitch_hz * np.interp(time, knots, rng.uniform(0.85, 1.15, num_syllables + 1))
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    formants = [np.interp(time, knots, rng.uniform(low, high, num_syllables + 1)) for low, high in _FORMANTS]
    voice = np.zeros(num_samples)
    for harmonic in range(1, 26):
        gain = sum(np.exp(-(((harmonic * pitch - formant) / 120.0) ** 2)) for formant in formants)
        voice += (gain + 0.02) * np.sin(harmonic * phase) / np.sqrt(harmonic)
    syllables = np.clip(np.sin(np.pi * 4 * time + rng.uniform(0, np.pi)), 0.0, None)
    sound = syllables * voice + 0.01 * rng.standard_normal(num_samples)
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


_FORMANTS = ((300.0, 800.0), (900.0, 2200.0), (2300.0, 3000.0))
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def write_librispeech(root: Path, split: str, speakers: range, num_utterances: int = 3, seconds: float = 2.4) -> Path:
    """Write a split of synthetic speech as a LibriSpeech tree and return its folder."""
    for speaker in speakers:
        folder = root / split / str(speaker) / "1"
        folder.mkdir(parents=True)
        lines = []
        for number in range(num_utterances):
            seed = 1000 * speaker + number
            name = f"{speaker}-1-{number:04d}"
            sound = make_speech(seconds + 0.2 * number, seed, pitch_hz=90.0 + 25.0 * (speaker % 6))
            soundfile.write(folder / f"{name}.flac", sound, SAMPLE_RATE)
            words = np.random.default_rng(seed).choice(_WORDS, size=3)
            lines.append(f"{name} {' '.join(words).upper()}")
        (folder / f"{speaker}-1.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / split


@pytest.fixture(scope="session")
def speech() -> Callable[..., np.ndarray]:
    """Give the function `make_speech(seconds, seed, pitch_hz, sample_rate)`."""
    return make_speech


@pytest.fixture(scope="session")
def librispeech_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a LibriSpeech tree of synthetic speech: `train` (4 speakers), `dev` and `test` (2 each). Read only."""
    root = tmp_path_factory.mktemp("corpus") / "LibriSpeech"
    write_librispeech(root, "train", range(1, 5))
    write_librispeech(root, "dev", range(5, 7), num_utterances=2)
    write_librispeech(root, "test", range(7, 9), num_utterances=2)
    lines = ["; ID | SEX | SUBSET | MINUTES | NAME"]
    lines += [f"{speaker} | {'FM'[speaker % 2]} | train | 1.0 | Speaker {speaker}" for speaker in range(1, 9)]
    (root / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def tiny_model_config() -> ModelConfig:
    """Give a network with every part of the published one that trains in seconds (conf/model/tiny.yaml)."""
    return ModelConfig(
        name="tiny",
        conv_channels=[16, 16, 32, 32, 32, 32, 32],
        num_layers=2,
        model_dim=32,
        ffn_dim=64,
        num_heads=2,
        position_kernel=16,
        position_groups=4,
        feature_gradient_scale=1.0,
        layer_drop_prob=0.0,
        target_dim=16,
        quantizer=QuantizerConfig(num_codes=16, codevector_dim=16),
        mask=MaskConfig(),
    )
