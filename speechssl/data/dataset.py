"""From a row of a manifest to samples: whole, or a crop that is a function of (seed, epoch, row)."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.audio.reading import SAMPLE_RATE, load_audio, num_samples_at_16k
from speechssl.data.augment import change_speed, count_at_speed
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.sampler import SubBatch
from speechssl.errors import ConfigError, DataError
from speechssl.seeds import make_rng

NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Why the system opens no file at all: that says nothing about this one."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """One utterance, or a crop of it, as it enters a batch.

    Attributes:
        id: of the utterance.
        waveform: (N,) float32 mono at 16 kHz.
        text: transcript, where the manifest has one.
        speaker: label, where the manifest has one.
    """

    id: str
    waveform: FloatArray
    text: str | None
    speaker: str | None


@dataclass(frozen=True, order=True)
class LeftOut:
    """An utterance that cannot be read.

    Attributes:
        id: of the utterance.
        path: of its file.
        reason: one sentence.
    """

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class ReadOptions:
    """How utterances are read.

    Attributes:
        seed: of the crops.
        normalize: zero mean and unit variance, over the whole utterance before cropping.
        cache_dir: folder of decoded audio; empty decodes every time.
        random_crops: False crops from the middle (validation).
        epsilon: `model.waveform_epsilon`, where `normalize` is set.
    """

    seed: int
    normalize: bool = False
    cache_dir: str = ""
    random_crops: bool = True
    epsilon: float = 1e-5


def read_sub_batch(
    manifest: Manifest, sub_batch: SubBatch, options: ReadOptions, left_out: list[LeftOut] | None = None
) -> list[Example]:
    """Read the utterances of a sub-batch.

    Args:
        manifest: utterances.
        sub_batch: which of them.
        options: how they are read.
        left_out: takes those that cannot be read; None raises.

    Raises:
        DataError: a file is missing, damaged, or not as long as the manifest says.
        ConfigError: no file can be opened, for a reason that is none of the file's.
    """
    speeds = sub_batch.speeds or [1.0] * len(sub_batch.indices)
    examples = []
    for index, speed in zip(sub_batch.indices, speeds, strict=True):
        try:
            examples.append(read_example(manifest, index, sub_batch, options, speed))
        except DataError as error:
            _check_system(error)
            if left_out is None:
                raise
            utterance = manifest[index]
            left_out.append(LeftOut(utterance.id, str(utterance.path), str(error)))
    return examples


def _check_system(error: DataError) -> None:
    """Raise a ConfigError where it was the system, and not the file, that let nothing be read."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in NOT_THE_FILE:
        raise ConfigError(
            f"the limits of this process must let it open audio, but do not ({error}); ulimit -n 4096 raises the "
            "number of open files, data.num_workers=0 needs the fewest"
        ) from error


def make_stand_in(manifest: Manifest, sub_batch: SubBatch) -> Example:
    """Make silence in the place of the shortest utterance of a sub-batch, as long as that would be."""
    index = sub_batch.indices[-1]
    speed = sub_batch.speeds[-1] if sub_batch.speeds else 1.0
    length = sub_batch.crop_samples or count_at_speed(int(manifest.num_samples_16k[index]), speed)
    utterance = manifest[index]
    return Example(utterance.id, np.zeros(length, dtype=np.float32), utterance.text, utterance.speaker)


def read_example(
    manifest: Manifest, index: int, sub_batch: SubBatch, options: ReadOptions, speed: float = 1.0
) -> Example:
    """Read one utterance; with `sub_batch.crop_samples`, a crop of that many samples at 16 kHz.

    At another `speed` the stretch is cut first, and played at that speed afterwards: whole utterances end as
    `count_at_speed` says. With `normalize` the mean and variance are those of the utterance at speed 1.
    """
    utterance = manifest[index]
    total, crop = int(manifest.num_samples_16k[index]), sub_batch.crop_samples
    start, length = 0, total
    if crop:
        length = min(total, math.ceil(crop * speed))
        room = total - length
        rng = make_rng(options.seed, "crop", sub_batch.epoch, index)
        start = int(rng.integers(0, room + 1)) if options.random_crops else room // 2
        # Start where a sample at 16 kHz falls on a sample of the file, so that resampling shifts nothing.
        start -= start % (SAMPLE_RATE // math.gcd(SAMPLE_RATE, utterance.sample_rate))
    if options.normalize:
        whole = _read(utterance, 0, total, options.cache_dir)
        waveform = normalize(whole, options.epsilon)[start : start + length]
    else:
        waveform = _read(utterance, start, length, options.cache_dir)
    played = change_speed(waveform, speed)[: crop or None]
    return Example(utterance.id, played, utterance.text, utterance.speaker)


def normalize(waveform: FloatArray, epsilon: float = 1e-5) -> FloatArray:
    """Zero mean and unit variance, with the epsilon inside the root (1e-5: fairseq's layer norm of the waveform)."""
    mean, variance = waveform.mean(dtype=np.float64), waveform.var(dtype=np.float64)
    normed: FloatArray = ((waveform - mean) / np.sqrt(variance + epsilon)).astype(np.float32)
    return normed


def _read(utterance: Utterance, start: int, length: int, cache_dir: str) -> FloatArray:
    """Read `length` samples from `start`, both at 16 kHz; only that stretch of the file is decoded."""
    if cache_dir:
        return AudioCache(cache_dir).read(utterance, start, length)
    rate = utterance.sample_rate
    if rate == SAMPLE_RATE:
        return load_audio(utterance.path, utterance.offset + start, length, rate, utterance.channel)
    first = min(start * rate // SAMPLE_RATE, utterance.num_samples - 1)
    wanted = min(int(np.ceil(length * (rate / SAMPLE_RATE))) + 2, utterance.num_samples - first)
    samples = load_audio(utterance.path, utterance.offset + first, wanted, rate, utterance.channel)
    padded: FloatArray = np.pad(samples[:length], (0, max(length - len(samples), 0)))
    return padded


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
