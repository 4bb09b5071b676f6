"""The model and the audio behind a run, for the pictures that its files do not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.report.run_folder import RunFolder

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Live:
    """A run's best model, on the CPU, and the manifest that its pictures are taken from.

    Attributes:
        model: in evaluation mode.
        manifest: rows of `data.valid`, or of `data.train` where the run has no other.
        held_out: whether it is `data.valid`.
    """

    model: SpeechModel
    manifest: Manifest
    held_out: bool


def find_missing(run: RunFolder) -> str:
    """Say in one sentence what is not there that the pictures need; '' where everything is."""
    if not (run.path / "checkpoints").is_dir():
        return "The pictures that need the model are left out: this folder holds no checkpoint."
    if not any((run.path / "checkpoints" / name).exists() for name in ("best", "last")):
        return "The pictures that need the model are left out: this run has not saved a checkpoint yet."
    paths, key, _ = _choose_manifests(run)
    if not paths:
        return "The pictures that need speech are left out: the run's configuration names no manifest."
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        return f"The pictures that need speech are left out: {missing[0]} ({key}) is not where it was."
    return ""


def load_live(run: RunFolder) -> Live:
    """Load the best checkpoint of a run and its validation manifest, or its training manifest without one.

    Raises:
        CheckpointError: the checkpoint is damaged.
        DataError: the manifest is damaged.
    """
    paths, key, held_out = _choose_manifests(run)
    weights = "ema" if run.get_config("training.validate_ema") else "model"
    return Live(load_model(str(run.path), weights=weights), load_manifests(paths, key=key), held_out)


def choose_evenly(candidates: Sequence[int], number: int) -> list[int]:
    """Choose `number` of some indices at equal distances, so that the choice is always the same."""
    if len(candidates) <= number:
        return list(candidates)
    places = np.linspace(0, len(candidates) - 1, number).round().astype(int)
    return [candidates[int(place)] for place in places]


def list_long_enough(live: Live, shortest_s: float = 0.0) -> list[int]:
    """List the rows that last at least so long, and in any case one frame."""
    config = live.model.config
    least = max(config.receptive_field, round(shortest_s * SAMPLE_RATE))
    return [int(index) for index in np.flatnonzero(live.manifest.num_samples_16k >= least)]


def choose_example(live: Live, ideal_s: float) -> int | None:
    """Choose the utterance whose length is nearest to `ideal_s`; None where all are too short for a picture."""
    candidates = list_long_enough(live, 1.0)
    if not candidates:
        return None
    lengths = live.manifest.num_samples_16k[np.array(candidates)]
    return candidates[int(np.abs(lengths - ideal_s * SAMPLE_RATE).argmin())]


def stack_waveforms(waveforms: Sequence[FloatArray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad waveforms with zeros into a batch: (B, N) float32 and (B,) valid samples."""
    num_samples = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.zeros(len(waveforms), int(num_samples.max()))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return batch, num_samples


def _choose_manifests(run: RunFolder) -> tuple[list[str], str, bool]:
    valid, train = run.get_config("data.valid") or [], run.get_config("data.train") or []
    return (list(valid), "data.valid", True) if valid else (list(train), "data.train", False)
