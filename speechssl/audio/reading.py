"""Any audio file → mono float32 at 16 kHz, and how long it is.

Read with soundfile (libsndfile) alone: readers built on FFmpeg follow playlists and hide damage.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO, Self

import numpy as np
import soundfile

from speechssl.audio.containers import Verdict, is_raw_gsm, judge, name_content
from speechssl.audio.mpeg import MEMORY_FRAMES, Walk, looks_like_mpeg, open_stream, quiet_decoder, walk_frames
from speechssl.audio.waveform import MAX_RATE, MIN_RATE, FloatArray, convert_pieces, warn_of_cancelling
from speechssl.audio.waveform import SAMPLE_RATE as SAMPLE_RATE
from speechssl.audio.waveform import convert_waveform as convert_waveform
from speechssl.audio.waveform import mix_down as mix_down
from speechssl.audio.waveform import num_samples_at_16k as num_samples_at_16k
from speechssl.errors import DataError
from speechssl.parsing import open_regular, shorten

AUDIO_SUFFIXES = frozenset(
    {".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"}
    | {".sph", ".voc", ".gsm"}
)
"""File names that are taken for audio when a folder is searched."""

MAX_SAMPLES = 2**36 - 1
"""Longest stream that a header may announce: FLAC's own limit; libsndfile says more where the length is unknown."""

COUNTED_BY_SIZE = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})
"""Encodings whose samples have one size: how many there are follows from the bytes that are there."""

BLOCK = 2**22
"""Samples, over all channels, decoded at a time when only counting them: 16 MiB. soundfile seeks between two reads,
which would hide missing samples, so blocks are large."""

LAST_PAGE_S = 30
"""No page of Ogg Vorbis holds more seconds of speech: 255 packets at most, and encoders close a page after a second or
two."""

RAW_GSM = {"format": "RAW", "subtype": "GSM610", "samplerate": 8_000, "channels": 1}
"""What a file of nothing but GSM frames is."""


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file holds: its own rate, channels, and samples a channel that can be decoded."""

    sample_rate: int
    num_channels: int
    num_samples: int


def read_info(path: str | os.PathLike[str], channel: int = 0) -> AudioInfo:
    """Find out what an audio file holds, that it is whole, and that it has a channel (from 1) if one is wanted.

    The samples of WAV, RF64, W64, AIFF, CAF, AU, NIST and VOC are counted by the bytes that are there, of FLAC by its
    header where its last sample decodes, of Ogg by its pages, of MP3 by its frames; anything else is decoded.

    Raises:
        DataError: the file is missing, unreadable, no audio that libsndfile knows, empty, of unknown length, of a
            rate that is not read, cut off, joined of several streams that cannot be read as one, or damaged so that
            this shows; or it has no such channel.
    """
    with AudioFile(path, check_whole=True) as file:
        _check_channel(path, file.num_channels, channel)
        return AudioInfo(file.sample_rate, file.num_channels, file.num_samples)


class AudioFile:
    """An open audio file, from which stretches are read, decoding no more than they need.

    Args:
        path: any file that libsndfile reads. What it holds decides, never its name.
        check_whole: make sure that the file can be read to its end, as `read_info` says.

    Attributes:
        sample_rate: of the file, Hz.
        num_channels: of the file.
        num_samples: a channel; without `check_whole` what the header says.

    Raises:
        DataError: as `read_info`.
    """

    def __init__(self, path: str | os.PathLike[str], check_whole: bool = False) -> None:
        self.path = path
        self._suffix = os.path.splitext(path)[1].lower()
        self._at = 0
        self._raw = _open_raw(path)
        with ExitStack() as stack:
            stack.callback(self._raw.close)
            self._file, self._walk = self._open(check_whole)
            self.sample_rate, self.num_channels = self._file.samplerate, self._file.channels
            self.num_samples = self._file.frames
            self._check_header()
            if check_whole:
                self._check_whole()
            stack.pop_all()

    def __enter__(self) -> Self:
        """Give the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        with quiet_decoder() if self._walk else nullcontext():
            self._file.close()
        self._raw.close()

    def _open(self, check_whole: bool) -> tuple[soundfile.SoundFile, Walk | None]:
        """Open the file by its descriptor: by its name libsndfile would take any bytes called .au for speech."""
        self._head = head = os.pread(self._raw.fileno(), 64, 0)
        if not head:
            raise DataError(f"{self.path} must hold audio, but is empty (0 bytes)")
        walk = walk_frames(self._raw) if looks_like_mpeg(head, self._suffix) else None
        verdict = Verdict(walk.fault) if walk and walk.first else judge(self._raw) if check_whole else Verdict()
        self._is_counted = verdict.is_counted
        if verdict.fault:
            raise self._refuse(verdict.fault)
        try:
            with quiet_decoder() if walk else nullcontext():
                if walk and walk.first:
                    return soundfile.SoundFile(open_stream(self._raw, walk)), walk
                is_gsm = self._suffix == ".gsm" and is_raw_gsm(self._raw)
                os.lseek(self._raw.fileno(), 0, os.SEEK_SET)
                return soundfile.SoundFile(self._raw.fileno(), closefd=False, **(RAW_GSM if is_gsm else {})), walk
        except soundfile.LibsndfileError as error:
            raise DataError(describe_unreadable(self.path, error, head)) from error

    def _refuse(self, fault: str) -> DataError:
        """Say why the file is not whole, and how to get what there is of it."""
        command = suggest_ffmpeg(self.path, "-ignore_length 1" if self._head[:4] == b"RIFF" else "")
        return DataError(f"{self.path} must be whole, but {fault}; to recover what is there: {command}")

    def _check_header(self) -> None:
        if self.num_samples <= 0:
            raise DataError(f"{self.path} must hold audio, but has 0 samples")
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise DataError(
                f"{self.path} must have a sample rate between {MIN_RATE} and {MAX_RATE} Hz, but has {self.sample_rate}"
            )
        if self.num_samples > MAX_SAMPLES:
            raise DataError(
                f"{self.path} must say how long it is, but its header does not: {suggest_ffmpeg(self.path)}"
            )

    def _check_whole(self) -> None:
        """Make sure that the samples are there where the header alone does not tell."""
        kind, walk = self._file.format, self._walk
        if walk and walk.first:
            # For layers 1 and 2 libmpg123 has no header to count by, and its guess may be long.
            counted = walk.num_samples if walk.first.layer < 3 else self.num_samples
            self.num_samples = min(self.num_samples, counted)
        elif self._is_counted:
            if kind == "FLAC":
                self._reach_end()
            return
        elif kind not in ("FLAC", "SDS") and self._file.subtype in COUNTED_BY_SIZE:
            # A FLAC that comes here has a tag before its head; of SDS libsndfile believes the header.
            return
        else:
            counted = self._count()
        if counted != self.num_samples:
            raise self._refuse(f"{counted} samples can be decoded where its header says {self.num_samples}")

    def _reach_end(self) -> None:
        """Let libFLAC decode the last frame, which may be cut off."""
        try:
            self._file.seek(self.num_samples - 1)
        except soundfile.LibsndfileError as error:
            raise self._refuse("its last frame cannot be decoded: it was cut off") from error
        self._at = self.num_samples - 1

    def _count(self) -> int:
        """Decode the whole file, for the number of its samples."""
        buffer = np.empty((BLOCK // self.num_channels, self.num_channels), dtype=np.float32)
        total = 0
        try:
            while count := len(self._file.read(out=buffer)):
                total += count
        except soundfile.LibsndfileError as error:
            raise self._refuse(f"is damaged after sample {total} ({shorten(error)})") from error
        self._at = -1
        return total

    def read(self, first: int, count: int) -> FloatArray:
        """Read `count` samples from sample `first` on: (count, channels) float32.

        Raises:
            DataError: the file is damaged, or ends before.
        """
        try:
            with quiet_decoder() if self._walk else nullcontext():
                start = self._go_to(first)
                samples: FloatArray = self._file.read(first - start + count, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, MemoryError) as error:
            raise DataError(f"{self.path} must be whole, but is damaged ({error})") from error
        self._at = start + len(samples)
        if self._at != first + count:
            got = max(self._at - first, 0)
            raise DataError(f"{self.path} must be whole, but holds {got} of {count} samples from {first} on")
        return samples[first - start :]

    def _go_to(self, first: int) -> int:
        """Seek to a sample, or far enough before it that decoding gives the same samples as reading from the start.

        Returns:
            Where it went. soundfile seeks after every read, so the lead-in must be read in the same call.
        """
        is_mpeg = self._walk is not None and self._walk.first is not None
        # soundfile has sought to where its last read ended, which is not exact in all formats.
        if first == self._at and (first == 0 or not (is_mpeg or self._file.subtype == "VORBIS")):
            return first
        if not self._file.seekable():
            if first < self._at or self._at < 0:
                self._reopen()
            self._drop(first - self._at)
            return first
        start = first
        if self._walk and self._walk.first:
            start -= MEMORY_FRAMES * self._walk.first.num_samples
        elif self._file.subtype == "VORBIS":
            # On the last page, which the end cuts short, libsndfile seeks to a place that is some hundred samples off.
            start = min(start, self.num_samples - LAST_PAGE_S * self.sample_rate)
        start = max(start, 0)
        try:
            self._file.seek(start)
        except soundfile.LibsndfileError:
            # Some files can be read but not sought in, such as FLAC behind an ID3 tag.
            self._reopen()
            self._drop(start)
        return start

    def _drop(self, count: int) -> None:
        """Skip `count` samples of a file that does not support seeking, by decoding them."""
        buffer = np.empty((min(count, BLOCK // self.num_channels), self.num_channels), dtype=np.float32)
        while count > 0 and (got := len(self._file.read(out=buffer[:count]))):
            count -= got

    def _reopen(self) -> None:
        """Start again at sample 0 of a file that does not support seeking."""
        self._file.close()
        self._file, self._walk = self._open(check_whole=False)
        self._at = 0


def _open_raw(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file, with the system's own reason where that fails; libsndfile has one text for all.

    Raises:
        DataError: it is missing, no regular file (a pipe would hang), or may not be read.
    """
    try:
        return open_regular(path)
    except IsADirectoryError as error:
        raise DataError(f"{path} must be a regular file, but is a folder") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.ENXIO):
            raise DataError(f"{path} must be a regular file, but is not one") from error
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{path} must be readable, but is not: {reason}") from error


def suggest_ffmpeg(path: str | os.PathLike[str], options: str = "") -> str:
    """Give the command that makes a file one that is read, quoted for the shell; it never writes over what it reads.

    Args:
        path: the file, as the user named it.
        options: of ffmpeg, for reading it.
    """
    source = os.fspath(path)
    # ffmpeg takes a leading dash for an option, and what stands before a colon for a protocol.
    if not os.path.isabs(source) and (source.startswith("-") or ":" in source):
        source = os.path.join(os.curdir, source)
    stem, suffix = os.path.splitext(source)
    target = f"{stem}.flac" if suffix.lower() != ".flac" else f"{stem}-16k.flac"
    words = f"ffmpeg {options}".rstrip()
    return f"{words} -i {shlex.quote(source)} -ac 1 -ar {SAMPLE_RATE} {shlex.quote(target)}"


def describe_unreadable(path: str | os.PathLike[str], error: Exception, head: bytes = b"") -> str:
    """Say that a file is no audio that is read here: what it holds instead, and the command that makes it readable."""
    content = name_content(head)
    must = f"{path} must be audio that libsndfile reads (FLAC, WAV, Ogg, Opus, MP3, AIFF …), but"
    if content:
        return f"{must} holds {content.name}" + (f": {suggest_ffmpeg(path)}" if content.is_media else "")
    if os.path.splitext(path)[1].lower() in (".raw", ".pcm"):
        command = suggest_ffmpeg(path, f"-f s16le -ar {SAMPLE_RATE} -ac 1")
        return f"{must} has no header; if it is 16-bit mono at {SAMPLE_RATE} Hz: {command}"
    return f"{must} is not ({shorten(error)}); if ffmpeg knows it: {suggest_ffmpeg(path)}"


def load_audio(
    path: str | os.PathLike[str],
    offset: int = 0,
    num_samples: int | None = None,
    sample_rate: int | None = None,
    channel: int = 0,
) -> FloatArray:
    """Load audio, or a stretch of it, decoding no more than that stretch.

    Args:
        path: any file that libsndfile reads.
        offset: first sample, at the file's own rate.
        num_samples: how many, at the file's own rate; None takes the rest.
        sample_rate: what `offset` and `num_samples` count in, Hz; None: whatever the file has.
        channel: 1 is the first; 0 takes the mean of all.

    Returns:
        (N,) float32 mono at 16 kHz, resampled by soxr (HQ).

    Raises:
        DataError: as `read_info`; the file has another rate than `sample_rate`; the stretch is not in the file; the
            file is damaged, shorter than its header, or holds NaN; it has no such channel.
    """
    with _open_stretch(path, offset, num_samples, sample_rate, channel) as (file, wanted):
        samples, own_rate = file.read(offset, wanted), file.sample_rate
    return convert_waveform(_mix(samples, path, channel), own_rate)


def stream_audio(
    path: str | os.PathLike[str],
    offset: int = 0,
    num_samples: int | None = None,
    sample_rate: int | None = None,
    channel: int = 0,
) -> Iterator[FloatArray]:
    """Load audio as `load_audio` does, in consecutive pieces, so that hours of it take no more memory than a piece.

    Yields:
        (n,) float32 mono at 16 kHz; together `load_audio`'s, to 1e-6.

    Raises:
        DataError: as `load_audio`, damage where it is come to.
    """
    with _open_stretch(path, offset, num_samples, sample_rate, channel) as (file, wanted):
        count = max(BLOCK // file.num_channels, 1)
        pieces = (
            _mix(file.read(first, min(count, offset + wanted - first)), path, channel)
            for first in range(offset, offset + wanted, count)
        )
        yield from convert_pieces(pieces, file.sample_rate, wanted)


@contextmanager
def _open_stretch(
    path: str | os.PathLike[str], offset: int, num_samples: int | None, sample_rate: int | None, channel: int
) -> Iterator[tuple[AudioFile, int]]:
    """Open a file, make sure that it has the stretch, rate and channel that are named, and say how long it is."""
    with AudioFile(path, check_whole=num_samples is None) as file:
        if sample_rate not in (None, file.sample_rate):
            raise DataError(
                f"{path} must have the {sample_rate} Hz that the manifest names, but has {file.sample_rate}"
            )
        _check_channel(path, file.num_channels, channel)
        wanted = file.num_samples - offset if num_samples is None else num_samples
        if offset < 0 or wanted < 0 or offset + wanted > file.num_samples:
            raise DataError(
                f"{path} must hold the samples {offset} to {offset + wanted} that the manifest names, "
                f"but has {file.num_samples}"
            )
        yield file, wanted


def _mix(samples: FloatArray, path: str | os.PathLike[str], channel: int) -> FloatArray:
    """Take one channel; of several none is dropped without a word."""
    if not np.isfinite(samples).all():
        raise DataError(f"{path} must hold finite samples, but has NaN or infinite ones")
    if channel:
        return mix_down(samples, channel)
    if samples.shape[1] > 1:
        warn_of_cancelling(samples, path)
    return samples


def _check_channel(path: str | os.PathLike[str], num_channels: int, channel: int) -> None:
    if channel > num_channels:
        raise DataError(f"{path} must have the channel {channel} that `channel` names, but has {num_channels}")
