"""MPEG audio (MP3): its frames counted without decoding, and a stream that libsndfile then reads to its true end.

Without a Xing header libmpg123 guesses a length from the first frame and the file's size, and libsndfile reads no
further than that guess. So the frames are walked here, at some 10,000 times real time, and the decoder gets them alone,
without tags and junk, behind a Xing header that has the true count.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

_KBPS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""By MPEG 1 or later, and layer. Index 0 is free format, whose frames have no length of their own; 15 is forbidden."""

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""By the two bits of the version: 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5."""

_SYNC = re.compile(rb"\xff[\xe2-\xff]")

MAX_JUNK = 2**16
"""How far into a file, or beyond damage in it, a frame is looked for, in bytes."""

DECODER_DELAY = 529
"""Samples that any decoder of MP3 is late."""

MEMORY_FRAMES = 16
"""Frames that the decoder needs before the first one that is asked for: its bit reservoir reaches 511 bytes back."""


@dataclass(frozen=True)
class Frame:
    """What the four bytes at the start of a frame say; two frames of one stream agree in all but `num_bytes`."""

    version: int
    layer: int
    sample_rate: int
    num_channels: int
    num_bytes: int

    @property
    def num_samples(self) -> int:
        """Samples a channel."""
        return 384 if self.layer == 1 else 576 if self.layer == 3 and self.version != 3 else 1152

    def is_like(self, other: Frame) -> bool:
        """Say whether both can be in one stream."""
        mine = (self.version, self.layer, self.sample_rate, self.num_channels)
        return mine == (other.version, other.layer, other.sample_rate, other.num_channels)


@dataclass(frozen=True)
class Walk:
    """What came of walking the frames.

    Attributes:
        first: the first frame; None where there is none that could be found, as in free format.
        spans: where frames lie, from one byte to another; tags and junk lie between.
        num_frames: how many, a first one that is only a Xing header included.
        announced: frames that this Xing header names; None where there is no header or no number.
        has_header: whether the first frame is a Xing header.
        fault: why this is not one whole stream; empty where it is.
    """

    first: Frame | None
    spans: tuple[tuple[int, int], ...] = ()
    num_frames: int = 0
    announced: int | None = None
    has_header: bool = False
    fault: str = ""

    @property
    def num_samples(self) -> int:
        """Samples a channel of all frames but a Xing header's: nothing is taken off for the encoder's delay."""
        return (self.num_frames - self.has_header) * self.first.num_samples if self.first else 0


def looks_like_mpeg(head: bytes, suffix: str) -> bool:
    """Say by the first bytes whether to look for frames; where they say nothing, by the name: junk may come first."""
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06):
        return True
    return suffix == ".mp3" and head[:4] not in (b"RIFF", b"fLaC", b"OggS", b"FORM")


def walk_frames(raw: BinaryIO) -> Walk:
    """Walk the frames of a file from header to header, past tags."""
    size = os.fstat(raw.fileno()).st_size
    if not size:
        return Walk(None)
    with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _walk(data, size)


def _walk(data: mmap.mmap, size: int) -> Walk:
    start = _find_frame(data, _skip_tag(data, 0, size), size)
    if start < 0:
        return Walk(None)
    first = _read_header(data[start : start + 4])
    assert first is not None
    known: dict[bytes, int] = {}
    spans, at, count, fault = [], start, 0, ""
    while at + 4 <= size:
        head = data[at : at + 4]
        length = known.get(head)
        if length is None:
            frame = _read_header(head)
            length = known[head] = frame.num_bytes if frame and frame.is_like(first) else 0
        if length and at + length <= size:
            count += 1
            at += length
            continue
        # A last frame that is not whole ends the stream.
        tail = size if length else _skip_tag(data, at, size)
        spans.append((start, at))
        if tail == at:
            fault, tail = _explain(data, at, size, first)
        start = at = tail
        if fault:
            break
    spans.append((start, at))
    has_header, announced = _read_xing(data, spans[0][0], first)
    kept = tuple(span for span in spans if span[0] < span[1])
    # Some encoders count the frame of the header too.
    if not fault and announced is not None and announced > count - has_header + 1:
        fault = f"has {count - has_header} frames where its header says {announced}: it was cut off"
    return Walk(first, kept, count, announced, has_header, fault)


def _explain(data: mmap.mmap, at: int, size: int, first: Frame) -> tuple[str, int]:
    """Say what is wrong where no frame of the stream begins, and where to go on: nothing, if none comes after."""
    other = _find_frame(data, at, size)
    if other < 0:
        return "", size
    frame = _read_header(data[other : other + 4])
    if frame and not frame.is_like(first):
        old, new = (f"{one.sample_rate} Hz, {one.num_channels} channels" for one in (first, frame))
        return f"changes from {old} to {new} at byte {other}: streams were joined", size
    return f"is damaged from byte {at} to byte {other} of {size}", size


def _find_frame(data: mmap.mmap, at: int, size: int) -> int:
    """Find the first byte from `at` on where a frame begins that another one, a tag or the end follows; or -1."""
    for match in _SYNC.finditer(data, at, min(size, at + MAX_JUNK)):
        place = match.start()
        frame = _read_header(data[place : place + 4])
        if frame is None:
            continue
        after = place + frame.num_bytes
        following = _read_header(data[after : after + 4])
        is_followed = following is not None and following.is_like(frame)
        if is_followed or after == size or _skip_tag(data, after, size) > after:
            return place
    return -1


def _read_header(head: bytes) -> Frame | None:
    """Take a frame's header apart; None where these four bytes are none, or its length is not in them (free format)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    speed, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or speed in (0, 15) or rate == 3:
        return None
    sample_rate = _RATES[version][rate]
    bits = _KBPS[1 if version == 3 else 2, layer][speed] * 1000
    padding = head[2] >> 1 & 1
    if layer == 1:
        num_bytes = (12 * bits // sample_rate + padding) * 4
    else:
        num_bytes = (72 if layer == 3 and version != 3 else 144) * bits // sample_rate + padding
    return Frame(version, layer, sample_rate, 1 if head[3] >> 6 == 3 else 2, num_bytes)


def _skip_tag(data: mmap.mmap, at: int, size: int) -> int:
    """Step over the tags at a place; gives the place itself where there is none."""
    while True:
        head = data[at : at + 32]
        if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
            length = 10 + (head[6] << 21) + (head[7] << 14) + (head[8] << 7) + head[9]
            length += 10 if head[5] & 0x10 else 0
        elif head[:3] == b"TAG":
            length = 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            # A header stands before what it counts, a footer has it behind.
            length = 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
        else:
            return at
        if at + length > size:
            return at
        at += length


def _read_xing(data: mmap.mmap, start: int, first: Frame) -> tuple[bool, int | None]:
    """Say whether the first frame is a Xing header, and how many frames it names."""
    if first.layer != 3:
        return False, None
    at = start + _find_xing(first)
    tag = data[at : at + 12]
    if tag[:4] not in (b"Xing", b"Info"):
        return False, None
    return True, int.from_bytes(tag[8:12], "big") or None if tag[7] & 1 else None


def _find_xing(frame: Frame) -> int:
    """Where in a frame the name of a Xing header stands: behind the side information."""
    if frame.version == 3:
        return 4 + (17 if frame.num_channels == 1 else 32)
    return 4 + (9 if frame.num_channels == 1 else 17)


def open_stream(raw: BinaryIO, walk: Walk) -> io.BufferedReader:
    """Make of a walk's frames a file for libsndfile, whose length it then knows.

    A Xing header that is right stays, and with it what it says of the encoder's delay. One that is missing or wrong, as
    that of the first of two joined files, gives way to one with the true count.
    """
    assert walk.first is not None
    spans = walk.spans
    head = b""
    if walk.first.layer == 3 and walk.announced != walk.num_frames - walk.has_header:
        start = spans[0][0]
        own = os.pread(raw.fileno(), 4, start)
        if walk.has_header:
            spans = ((start + walk.first.num_bytes, spans[0][1]), *spans[1:])
        head = _make_xing(own, walk.num_frames - walk.has_header)
    return io.BufferedReader(_Spliced(raw, head, spans), 2**14)


def _make_xing(own: bytes, num_frames: int) -> bytes:
    """Make two frames of the same stream: a Xing header, and silence that it says is the encoder's delay.

    Behind a Xing header libmpg123 takes off at least its own delay, 529 samples; this frame is there to be taken.
    """
    header, silence = (bytes((own[0], own[1] | 1, speed << 4 | own[2] & 0x0C, own[3])) for speed in (14, 1))
    frame, short = _read_header(header), _read_header(silence)
    assert frame is not None and short is not None
    delay, padding = frame.num_samples - DECODER_DELAY, DECODER_DELAY
    lame = b"LAME".ljust(21) + (delay << 12 | padding).to_bytes(3, "big")
    tag = b"Xing" + struct.pack(">II", 1, num_frames + 1) + lame
    made = (header + bytes(_find_xing(frame) - 4) + tag).ljust(frame.num_bytes, b"\0")
    return made + silence.ljust(short.num_bytes, b"\0")


class _Spliced(io.RawIOBase):
    """Some bytes, and after them stretches of a file, as one file."""

    def __init__(self, raw: BinaryIO, head: bytes, spans: tuple[tuple[int, int], ...]) -> None:
        self._raw, self._head, self._spans = raw, head, spans
        self._size = len(head) + sum(stop - start for start, stop in spans)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if self._at < 0:
            raise OSError("seek before the beginning")
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        at, wanted = self._at, len(buffer)
        part = self._head[at : at + wanted] or self._read_file(at - len(self._head), wanted)
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _read_file(self, at: int, wanted: int) -> bytes:
        for start, stop in self._spans:
            if at < stop - start:
                return os.pread(self._raw.fileno(), min(wanted, stop - start - at), start + at)
            at -= stop - start
        return b""


_quiet_lock = threading.Lock()
_quiet_depth = 0
_loud: int | None = None


@contextmanager
def quiet_decoder() -> Iterator[None]:
    """Keep what libmpg123 prints out of stderr: it cannot be told to be silent, and calls sound frames errors.

    C's `stderr` is pointed at nothing meanwhile; what Python and other programs write to the descriptor is not touched.
    Where the C library has no such variable (Windows, macOS) nothing is kept back.
    """
    global _quiet_depth, _loud
    variable = _find_stderr()
    if variable is None:
        yield
        return
    with _quiet_lock:
        if _quiet_depth == 0:
            _loud, variable.value = variable.value, _open_nothing()
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                variable.value = _loud


@cache
def _find_stderr() -> ctypes.c_void_p | None:
    try:
        return ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    except (OSError, TypeError, ValueError):
        return None


@cache
def _open_nothing() -> int | None:
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    opened: int | None = library.fopen(os.devnull.encode(), b"w")
    return opened


def _forget_readers() -> None:
    """A forked process has only the thread that forked: whatever others were reading, they do not there."""
    global _quiet_depth, _quiet_lock
    variable = _find_stderr()
    if _quiet_depth and variable is not None:
        variable.value = _loud
    _quiet_depth, _quiet_lock = 0, threading.Lock()


os.register_at_fork(after_in_child=_forget_readers)
