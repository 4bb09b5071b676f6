"""Decoded audio kept on disk: compressed formats such as Opus cost more to decode than a small model to train."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.audio import SAMPLE_RATE, load_audio, num_samples_at_16k
from speechssl.data.manifest import Utterance
from speechssl.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float32]


class AudioCache:
    """A folder of 16 kHz mono 16-bit WAV files, one an utterance, written when first read.

    Every read goes through the 16-bit file, the first one too, so that an utterance is the same samples each time.

    Args:
        folder: of the cache; made if it is missing.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def read(self, utterance: Utterance, start: int, length: int) -> FloatArray:
        """Read `length` samples from `start` (at 16 kHz) of an utterance: (length,) float32.

        Raises:
            ConfigError: the cache cannot be written.
            DataError: the audio, or what the cache holds of it, cannot be read.
        """
        path = self._find(utterance)
        if not path.exists():
            self._write(path, utterance)
        try:
            with soundfile.SoundFile(path) as file:
                whole = file.frames == num_samples_at_16k(utterance.num_samples, utterance.sample_rate)
                file.seek(min(start, file.frames))
                samples: FloatArray = file.read(length, dtype="float32")
        except soundfile.LibsndfileError as error:
            raise DataError(f"{path}, of data.cache_dir, must be whole, but is not ({error}): delete it") from error
        if not whole:
            raise DataError(f"{path}, of data.cache_dir, must be whole, but was cut off: delete it")
        return np.pad(samples, (0, length - len(samples)))

    def _find(self, utterance: Utterance) -> Path:
        """Name the file by what it holds: path, time of change, offset, length and channel."""
        changed = utterance.path.stat().st_mtime_ns if utterance.path.exists() else 0
        key = f"{utterance.path}\n{changed}\n{utterance.offset}\n{utterance.num_samples}"
        key += f"\n{utterance.channel}" if utterance.channel else ""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}.wav"

    def _write(self, path: Path, utterance: Utterance) -> None:
        stretch = utterance.offset, utterance.num_samples, utterance.sample_rate
        samples = load_audio(utterance.path, *stretch, utterance.channel)
        scratch = path.with_suffix(f".{os.getpid()}.part")
        # Through memory: soundfile does not tell why a disk refuses.
        content = io.BytesIO()
        soundfile.write(content, np.clip(samples, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16", format="WAV")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content.getvalue())
            scratch.replace(path)
        except OSError as error:
            raise ConfigError(f"`data.cache_dir` must be a place that can be written, but is not ({error})") from error
