"""Any audio file → mono float32 at 16 kHz, and how long it is.

Read with soundfile (libsndfile) alone: readers built on FFmpeg follow playlists and hide damage.
"""

from __future__ import annotations

import logging
import mmap
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from speechssl.errors import DataError

FloatArray = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
"""Samples a second of everything that enters a model."""

AUDIO_SUFFIXES = frozenset(
    {".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".rf64"}
)
"""File names that are taken for audio when a folder is searched."""

MAX_CHANNELS = 64
"""An array with more columns than this, and fewer rows, has its channels first, as torchaudio gives them."""

ENDLESS = 0x7F000000
"""Programs that do not know yet how long a file will be write a length from here on into its header (SoX this one)."""

HEADER_BYTES = 64
"""Encoders' lengths that are wrong by a byte of padding or by the header itself are no loss."""

MAX_SAMPLES = 2**36 - 1
"""Longest stream that a header may announce: FLAC's own limit; libsndfile says more where the length is unknown."""

_logger = logging.getLogger("speechssl")

_noted = mmap.mmap(-1, 4096)
"""Notices that were given, a line each, in memory that forked processes share: every validation forks new workers."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: its own rate, channels, and samples a channel."""

    sample_rate: int
    num_channels: int
    num_samples: int


def read_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        DataError: the file is missing, unreadable, no audio that libsndfile knows, empty, of unknown length, or cut off
            where its header says so (WAV, AIFF, AU; an Ogg file does not).
    """
    with _open(path) as file:
        _check_whole(path, file)
        return AudioInfo(file.samplerate, file.channels, file.frames)


def _open(path: str | os.PathLike[str]) -> soundfile.SoundFile:
    """Open an audio file whose header says what it holds; raises as `read_info`."""
    check_readable(path)
    try:
        file = soundfile.SoundFile(os.fspath(path))
    except soundfile.LibsndfileError as error:
        raise DataError(describe_unreadable(path, error)) from error
    if file.frames <= 0:
        raise DataError(f"{path} must hold audio, but has 0 samples")
    if file.frames > MAX_SAMPLES or file.samplerate <= 0:
        raise DataError(f"{path} must say how long it is, but its header does not: encode it again")
    return file


def _check_whole(path: str | os.PathLike[str], file: soundfile.SoundFile) -> None:
    """Compare what a header says with the file's length: libsndfile takes whatever is there for the whole.

    Raises:
        DataError: the file is shorter.
    """
    if file.format not in ("WAV", "WAVEX", "AIFF", "AU"):
        return
    with open(path, "rb") as raw:
        said, size = _find_end(raw), os.fstat(raw.fileno()).st_size
    if said > size + HEADER_BYTES:
        raise DataError(f"{path} must be whole, but has {size} bytes where its header says {said}: it was cut off")


def _find_end(raw: BinaryIO) -> int:
    """Find where a header says that the samples end, in bytes; 0 where it does not, as in a stream."""
    head = raw.read(12)
    if head[:4] == b".snd":
        start, length = struct.unpack(">II", head[4:])
        return start + length if length < ENDLESS else 0
    sizes = {b"RIFF": "<4sI", b"FORM": ">4sI"}.get(head[:4])
    while sizes and len(chunk := raw.read(8)) == 8:
        name, length = struct.unpack(sizes, chunk)
        if name in (b"data", b"SSND"):
            return raw.tell() + length if length < ENDLESS else 0
        raw.seek(length + length % 2, os.SEEK_CUR)
    return 0


def check_readable(path: str | os.PathLike[str]) -> None:
    """Open a file once, for the system's own reason where that fails; libsndfile has one text for all.

    Raises:
        DataError: it is missing, no regular file (a pipe would hang), or may not be read.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{path} must be a regular file, but is {'a folder' if stat.S_ISDIR(mode) else 'not one'}")
        os.close(os.open(path, os.O_RDONLY))
    except (OSError, UnicodeEncodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{path} must be readable, but is not: {reason}") from error


def describe_unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    """Say that a file is no audio that is read here, with the ffmpeg command that makes it so."""
    stem = Path(path).with_suffix(".flac").name
    return (
        f"{path} must be audio that libsndfile reads (FLAC, WAV, Ogg, Opus, MP3, AIFF …), but is not ({error}); "
        f'if ffmpeg knows it: ffmpeg -i "{Path(path).name}" -ac 1 -ar {SAMPLE_RATE} "{stem}"'
    )


def num_samples_at_16k(num_samples: int, sample_rate: int) -> int:
    """Count the samples that `load_audio` returns for so many at the file's own rate (rounded to nearest)."""
    return (2 * num_samples * SAMPLE_RATE + sample_rate) // (2 * sample_rate)


def load_audio(
    path: str | os.PathLike[str], offset: int = 0, num_samples: int | None = None, sample_rate: int | None = None
) -> FloatArray:
    """Load audio, or a stretch of it, decoding no more than that stretch.

    Args:
        path: any file that libsndfile reads.
        offset: first sample, at the file's own rate.
        num_samples: how many, at the file's own rate; None takes the rest.
        sample_rate: what `offset` and `num_samples` count in, Hz; None: whatever the file has.

    Returns:
        (N,) float32 mono at 16 kHz: the mean of the channels, resampled by soxr (HQ).

    Raises:
        DataError: as `read_info`; the file has another rate than `sample_rate`; the stretch is not in the file; the
            file is damaged, shorter than its header, or holds NaN.
    """
    with _open(path) as file:
        if sample_rate not in (None, file.samplerate):
            raise DataError(f"{path} must have the {sample_rate} Hz that the manifest names, but has {file.samplerate}")
        if num_samples is None:
            _check_whole(path, file)
        wanted = file.frames - offset if num_samples is None else num_samples
        if offset < 0 or wanted < 0 or offset + wanted > file.frames:
            raise DataError(
                f"{path} must hold the samples {offset} to {offset + wanted} that the manifest names, "
                f"but has {file.frames}"
            )
        try:
            file.seek(offset)
            samples = file.read(wanted, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, MemoryError) as error:
            raise DataError(f"{path} must be whole, but is damaged ({error})") from error
        own_rate = file.samplerate
    if len(samples) != wanted:
        raise DataError(f"{path} must be whole, but holds {len(samples)} of {wanted} samples from {offset} on")
    if not np.isfinite(samples).all():
        raise DataError(f"{path} must hold finite samples, but has NaN or infinite ones")
    return convert_waveform(samples, own_rate)


def convert_waveform(samples: npt.ArrayLike, sample_rate: int) -> FloatArray:
    """Mix down and resample.

    Args:
        samples: (N,) or (N, channels), in [-1, 1]; signed integers are scaled by their range, uint8 is WAV's (128 is
            silence).
        sample_rate: of the samples, Hz.

    Returns:
        (N',) float32 mono at 16 kHz.

    Raises:
        DataError: another shape or type, no sample rate, or values that are not finite.
    """
    if sample_rate <= 0:
        raise DataError(f"`sample_rate` must be above 0 Hz, but is {sample_rate}")
    array = _to_float(np.asarray(samples))
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > max(MAX_CHANNELS, len(array))):
        raise DataError(f"a waveform must have the shape (samples,) or (samples, channels), but has {array.shape}")
    if not np.isfinite(array).all():
        raise DataError("a waveform must be finite, but has NaN or infinite samples")
    mono = array if array.ndim == 1 else array.mean(axis=1) if array.shape[1] > 1 else array[:, 0]
    if array.ndim == 2 and array.shape[1] > 1:
        _note_once(f"audio with {array.shape[1]} channels is mixed down to one")
    if sample_rate == SAMPLE_RATE:
        return np.ascontiguousarray(mono)
    _note_once(f"audio at {sample_rate} Hz is resampled to {SAMPLE_RATE} Hz")
    length = num_samples_at_16k(len(mono), sample_rate)
    resampled = soxr.resample(mono, sample_rate, SAMPLE_RATE, quality="HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled))).astype(np.float32)


def _to_float(array: npt.NDArray[Any]) -> FloatArray:
    """Scale samples to [-1, 1]: float32 of the same shape.

    Raises:
        DataError: the type does not say what their range is.
    """
    if array.dtype == np.uint8:
        array = array / 128.0 - 1.0
    elif np.issubdtype(array.dtype, np.signedinteger):
        array = array / -float(np.iinfo(array.dtype).min)
    elif not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"a waveform must be of floats, signed integers or uint8, but is of {array.dtype}")
    return array.astype(np.float32)


def _note_once(message: str) -> None:
    line = f"{message}\n".encode()
    if _noted.find(line, 0) >= 0:
        return
    start = _noted.rfind(b"\n", 0) + 1
    if start + len(line) <= len(_noted):
        _noted[start : start + len(line)] = line
    _logger.info(message)
