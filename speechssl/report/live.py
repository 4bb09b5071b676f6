"""The model and the audio behind a run, for the pictures and sounds that its files do not hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.audio.reading import SAMPLE_RATE, load_audio
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.report.figures import count
from speechssl.report.run_folder import RunFolder

T = TypeVar("T")
FloatArray = npt.NDArray[np.float32]

LONGEST_S = 20.0

MAX_SOUND_BYTES = 3_000_000
"""Of all sounds of a page, as base64 text; the page itself stays under 5 MB."""

FORMAT, SUBTYPE, COMPRESSION = "MP3", "MPEG_LAYER_III", 0.9
"""Some 28 kbit/s. Opus needs two thirds of that, but six times as long, and old browsers do not play it."""


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


@dataclass
class Sounds:
    """The sounds of one page: how many bytes they take, and how many had no room.

    Attributes:
        budget: bytes that all of them may take.
        clips: data URIs that points of a map play, each utterance once however many maps it is on.
    """

    budget: int = MAX_SOUND_BYTES
    num_bytes: int = 0
    num_kept: int = 0
    num_left_out: int = 0
    clips: list[str] = field(default_factory=list)
    _places: dict[str, int | None] = field(default_factory=dict)

    def encode(self, waveform: FloatArray) -> str | None:
        """Encode (N,) at 16 kHz; None where it has no room, or this libsndfile no MP3."""
        buffer, uri = io.BytesIO(), ""
        if soundfile.check_format(FORMAT, SUBTYPE):
            options: dict[str, Any] = {"format": FORMAT, "subtype": SUBTYPE, "compression_level": COMPRESSION}
            soundfile.write(buffer, waveform, SAMPLE_RATE, **options)
            uri = "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        if not uri or self.num_bytes + len(uri) > self.budget:
            self.num_left_out += 1
            return None
        self.num_bytes += len(uri)
        self.num_kept += 1
        return uri

    def add_clip(self, manifest: Manifest, index: int, waveform: FloatArray) -> int | None:
        """Give the place of an utterance among `clips`; None where it has no room."""
        row = manifest[index]
        key = f"{row.path}:{row.offset}:{row.channel}"
        if key not in self._places:
            uri = self.encode(waveform)
            self._places[key] = None if uri is None else len(self.clips)
            self.clips += [] if uri is None else [uri]
        return self._places[key]

    def describe(self) -> str:
        """Say what the sounds take, and what was left out; '' without any."""
        kept = (
            f"{count(self.num_kept, 'sound')} in {count(self.num_bytes // 1000, 'kilobyte')}. " if self.num_kept else ""
        )
        return kept + (f"Left out to keep it small: {count(self.num_left_out, 'sound')}." if self.num_left_out else "")


def find_missing(run: RunFolder) -> str:
    """Say in one sentence what is not there that the pictures need; '' where everything is."""
    checkpoints = run.path / "checkpoints"
    if not any((checkpoints / name).exists() for name in ("best", "last")):
        return "The pictures that need the model are left out: this folder holds no checkpoint."
    paths, key = _choose_manifests(run)
    missing = [path for path in paths if not Path(path).is_file()]
    if missing or not paths:
        what = f"{missing[0]} ({key}) is not where it was" if missing else "the configuration names no manifest"
        return f"The pictures that need speech are left out: {what}."
    return ""


def load_live(run: RunFolder) -> Live:
    """Load the best checkpoint of a run and its validation manifest, or its training manifest without one.

    Raises:
        CheckpointError: the checkpoint is damaged.
        DataError: the manifest is damaged.
    """
    paths, key = _choose_manifests(run)
    model = load_model(str(run.path), log=False)
    return Live(model, load_manifests(paths, key=key), key == "data.valid")


def read_waveform(manifest: Manifest, index: int, longest_s: float = LONGEST_S) -> FloatArray:
    """Read one utterance, or its first `longest_s` seconds: (N,) at 16 kHz."""
    row = manifest[index]
    num_samples = min(row.num_samples, int(longest_s * row.sample_rate))
    return load_audio(row.path, row.offset, num_samples, row.sample_rate, row.channel)


def choose_evenly(candidates: Sequence[T], number: int) -> list[T]:
    """Choose `number` of some things at equal distances, so that the choice is always the same."""
    places = np.linspace(0, len(candidates) - 1, min(number, len(candidates))).round().astype(int)
    return [candidates[place] for place in places.tolist()]


def list_long_enough(live: Live, shortest_s: float = 0.0) -> list[int]:
    """List the rows that last at least so long, and in any case one frame."""
    config = live.model.config
    least = max(config.output_field, round(shortest_s * SAMPLE_RATE))
    return [int(index) for index in np.flatnonzero(live.manifest.num_samples_16k >= least)]


def choose_example(live: Live, ideal_s: float) -> int | None:
    """Choose the utterance whose length is nearest to `ideal_s`; None where all are too short for a picture."""
    lengths = live.manifest.num_samples_16k
    return min(list_long_enough(live, 1.0), key=lambda k: abs(lengths[k] - ideal_s * SAMPLE_RATE), default=None)


def _choose_manifests(run: RunFolder) -> tuple[list[str], str]:
    key = "data.valid" if run.get_config("data.valid") else "data.train"
    return list(run.get_config(key) or []), key
