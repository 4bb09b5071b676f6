"""What the files of each container say of their own length, held against the bytes that are there.

libsndfile takes whatever is there for the whole: a file that was cut off is read to the cut, one whose 32-bit length
wrapped around is read to where that leads, and of joined streams the first is read.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

HEADER_BYTES = 64
"""Lengths may be off by this much: some encoders miscount a byte of padding, or the header itself."""

PADDING_BYTES = 2**16
"""Up to this many zero bytes after the samples are a recorder's last disk cluster, not a fault."""

ENDLESS = 0x7F000000
"""Programs that stream into a file write a length this large or larger into its header (SoX writes this one)."""

FLAC_TAIL = 2**15
"""The last frame of a FLAC is searched for in this many bytes at the end, plus its longest frame: tags may follow."""

PAGE = struct.Struct("<4sxBq4xI4xB")
"""Of the header of an Ogg page: its magic, flags, position, number and how many segments it has."""

GSM_FRAME = 33
"""Bytes of a frame of GSM 06.10."""

SMALL = 2**16
"""Files up to this many bytes are searched whole."""

JOINED = "streams were joined, of which only one can be read"

LONGEST_PACKET = 8192
"""Samples of the longest Vorbis block; an Opus packet has at most 5,760."""


@dataclass(frozen=True)
class Chunks:
    """How a container that is a row of named, counted chunks writes them.

    Attributes:
        first: where the first chunk stands, in bytes.
        head: name and length, as struct writes them.
        counts_head: whether the length counts name and length too.
        align: chunks begin at multiples of this.
    """

    first: int
    head: str
    counts_head: bool = False
    align: int = 2


CHUNKS = {
    b"RIFF": Chunks(12, "<4sI"),
    b"RIFX": Chunks(12, ">4sI"),
    b"RF64": Chunks(12, "<4sI"),
    b"FORM": Chunks(12, ">4sI"),
    b"riff": Chunks(40, "<16sQ", counts_head=True, align=8),
    b"caff": Chunks(8, ">4sq", align=1),
}
SAMPLES = (b"data", b"SSND", b"BODY")
"""What the chunk that holds the samples is called."""


@dataclass(frozen=True)
class Span:
    """Where samples begin, how many bytes of them the header names (None: it does not know), and where that ends.

    `end` is the end of what the header accounts for: of the samples, or of the last chunk after them.
    """

    start: int
    length: int | None
    end: int


@dataclass(frozen=True)
class Verdict:
    """What the bytes of a file say of its length.

    Attributes:
        fault: why it is not what its header says, to follow "must be whole, but "; empty where it is, or says nothing.
        is_counted: the samples that libsndfile announces are there, without decoding them.
    """

    fault: str = ""
    is_counted: bool = False


def judge(raw: BinaryIO) -> Verdict:
    """Hold what a file says of its own length against the bytes that are there."""
    size = os.fstat(raw.fileno()).st_size
    head = os.pread(raw.fileno(), SMALL, 0)
    if head[:4] in (b"OggS", b"fLaC"):
        check = _check_pages if head[:4] == b"OggS" else _check_flac
        if len(head) == size:
            return check(head, size)
        with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return check(data, size)
    span = _find_span(raw, head[:64], size)
    return Verdict() if span is None or span.length is None else Verdict(_check_span(raw, span, size))


def _check_span(raw: BinaryIO, span: Span, size: int) -> str:
    length, there = span.length or 0, size - span.start
    if length == 0 and there > HEADER_BYTES:
        return f"its header says that it holds no samples where {there} bytes follow: it was never finished"
    if length > there + HEADER_BYTES:
        total = span.start + length
        return f"has {size} bytes where its header says {total}: it was cut off, or its length was never written"
    rest = size - span.end
    if rest > HEADER_BYTES and not _is_padding(raw, span.end, rest):
        return f"{rest} bytes follow what its header accounts for: its length is wrong, or files were joined"
    return ""


def _is_padding(raw: BinaryIO, at: int, count: int) -> bool:
    """Say whether what follows is a tag or zeros."""
    raw.seek(at)
    rest = raw.read(min(count, PADDING_BYTES + 1))
    return rest[:3] in (b"TAG", b"ID3") or (count <= PADDING_BYTES and not any(rest))


def _find_span(raw: BinaryIO, head: bytes, size: int) -> Span | None:
    magic = head[:4]
    if magic in CHUNKS:
        return _walk_chunks(raw, CHUNKS[magic], size)
    if magic in (b".snd", b"dns.") and len(head) >= 12:
        start, length = struct.unpack((">" if magic == b".snd" else "<") + "II", head[4:12])
        return Span(start, length if length < ENDLESS else None, start + length)
    if magic == b"NIST":
        return _read_sphere(raw)
    if head[:19] == b"Creative Voice File" and len(head) >= 22:
        # A block is a byte for its kind, three for its length, which SoX writes 8 too small, and what it holds.
        start = int.from_bytes(head[20:22], "little")
        return Span(start, 4 + int.from_bytes(head[start + 1 : start + 4], "little"), size)
    return None


def _walk_chunks(raw: BinaryIO, chunks: Chunks, size: int) -> Span | None:
    head_bytes = struct.calcsize(chunks.head)
    at, long, samples = chunks.first, None, None
    # A length that leads out of the file may be more than any file has.
    while at <= size:
        raw.seek(at)
        head = raw.read(head_bytes)
        if len(head) < head_bytes:
            break
        name, length = struct.unpack(chunks.head, head)
        # After the samples, what is no chunk inside the file is nothing that the header accounts for.
        if samples and not (_is_chunk(raw, at) and at + length <= size + HEADER_BYTES):
            break
        body = length - head_bytes if chunks.counts_head else length
        if name == b"ds64":
            raw.seek(at + head_bytes + 8)
            long = int.from_bytes(raw.read(8), "little")
        if name[:4] in SAMPLES:
            is_known = body >= 0 and (head_bytes > 8 or body < ENDLESS)
            body = body if is_known else long if long and body == 0xFFFFFFFF else None
            samples = (at + head_bytes, body)
            if body is None or at + head_bytes + body > size:
                break
        elif body < 0:
            break
        at += head_bytes + body
        # Some writers leave out the byte that makes a length even.
        at += 0 if samples and _is_chunk(raw, at) else -at % chunks.align
    return Span(*samples, min(at, size) if samples[1] is not None else size) if samples else None


def _is_chunk(raw: BinaryIO, at: int) -> bool:
    raw.seek(at)
    name = raw.read(4)
    return re.fullmatch(rb"[ -~\xa9]{4}", name) is not None and name not in CHUNKS


def _read_sphere(raw: BinaryIO) -> Span | None:
    """Read the lines of a NIST header, `sample_count -i 46797` among them."""
    raw.seek(0)
    lines = raw.read(1024).split(b"end_head")[0].splitlines()
    fields = {words[0]: words[2] for line in lines if len(words := line.split()) == 3}
    try:
        start = int(lines[1])
        sizes = [int(fields.get(key, b"1")) for key in (b"channel_count", b"sample_n_bytes")]
        length = int(fields[b"sample_count"]) * sizes[0] * sizes[1]
    except (IndexError, KeyError, ValueError):
        return None
    return Span(start, length, start + length)


def _check_pages(data: bytes | mmap.mmap, size: int) -> Verdict:
    """Walk the pages of an Ogg file by their headers.

    They count its samples if none is missing, and none counts more than the packets that end on it can hold.
    """
    at, number, counted, is_counted = 0, -1, 0, True
    while at + 27 <= size:
        magic, flags, position, page, segments = PAGE.unpack_from(data, at)
        if magic != b"OggS":
            # libsndfile finds the next page by itself; how much is lost between only decoding tells.
            return Verdict()
        if flags & 2 and at:
            return Verdict(f"another stream begins at byte {at}: {JOINED}")
        if page != number + 1:
            # A recording of a running stream begins anywhere behind its headers.
            if counted:
                return Verdict(f"{page - number - 1} pages are missing before byte {at}: it is damaged")
            is_counted = False
        number = page
        lacing = data[at + 27 : at + 27 + segments]
        at += 27 + segments + sum(lacing)
        if at > size:
            return Verdict(f"its last page would end at byte {at}, but it has {size}: it was cut off")
        if position > 0:
            is_counted &= 0 <= position - counted <= (segments - lacing.count(255)) * LONGEST_PACKET
            counted = position
    return Verdict(is_counted=is_counted and at == size)


def _check_flac(data: bytes | mmap.mmap, size: int) -> Verdict:
    """Look for a second stream, and hold the last frames against the header."""
    if (other := data.find(b"fLaC\0\0\0\x22", 4)) > 0:
        return Verdict(f"another stream begins at byte {other}: {JOINED}")
    block, longest = int.from_bytes(data[10:12], "big"), int.from_bytes(data[15:18], "big")
    total = int.from_bytes(data[21:26], "big") & (2**36 - 1)
    tail = data[max(size - FLAC_TAIL - longest, 42) :]
    places = (match.start() for match in re.finditer(rb"\xff[\xf8\xf9]", tail))
    spans = [span for at in places if (span := _span_flac_frame(tail[at : at + 16], block))]
    # A chance match rarely starts exactly where another frame ends.
    starts, ends = {start for start, _ in spans}, {end for _, end in spans}
    last = max((end for start, end in spans if start in ends), default=total)
    if total and (last != total or total in starts):
        why = "it was cut off, streams were joined, or its header is wrong"
        return Verdict(f"ends at sample {last} where its header says {total}: {why}")
    return Verdict(is_counted=total in ends)


def is_raw_gsm(raw: BinaryIO) -> bool:
    """Say whether a file is nothing but GSM 06.10 frames: 33 bytes each, of which the first begins with 13."""
    size = os.fstat(raw.fileno()).st_size
    if not size or size % GSM_FRAME:
        return False
    with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return all(byte >> 4 == 13 for byte in data[::GSM_FRAME])


def _span_flac_frame(head: bytes, block: int) -> tuple[int, int] | None:
    """Find at which sample a FLAC frame begins and ends; None where these bytes begin none, by their checksum.

    Args:
        head: its first 16 bytes, or what there is of them.
        block: samples of every frame but the last, where frames and not samples are numbered.
    """
    if len(head) < 6 or not head[2] >> 4 or head[2] & 15 == 15 or head[3] & 1:
        return None
    # The number is written as UTF-8 writes a character.
    more = 0 if head[4] < 0x80 else 7 - (head[4] ^ 0xFF).bit_length()
    at, number = 5 + more, head[4] if not more else head[4] & (0x3F >> more)
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    code = head[2] >> 4
    extra = {6: 1, 7: 2}.get(code, 0)
    written = int.from_bytes(head[at : at + extra], "big") + 1
    size = written if extra else 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)
    at += extra + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if at >= len(head) or _checksum(head[:at]) != head[at]:
        return None
    start = number if head[1] & 1 else number * block
    return start, start + size


def _checksum(data: bytes) -> int:
    """FLAC's CRC-8 of a frame's header."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc


@dataclass(frozen=True)
class Content:
    """What a file holds that libsndfile does not read; `is_media`: ffmpeg may."""

    name: str
    is_media: bool = True


SIGNATURES = (
    (4, b"ftyp", Content("MP4 (M4A, AAC, ALAC)")),
    (0, b"\xff\xf1", Content("AAC in ADTS")),
    (0, b"\xff\xf9", Content("AAC in ADTS")),
    (28, b"\x7fFLAC", Content("FLAC in Ogg")),
    (28, b"Speex   ", Content("Speex in Ogg")),
    (28, b"\x80theora", Content("video in Ogg")),
    (0, b"#!AMR", Content("AMR")),
    (0, b"\x1aE\xdf\xa3", Content("Matroska or WebM")),
    (0, b"0&\xb2u\x8ef\xcf\x11", Content("WMA or WMV")),
    (0, b"MAC ", Content("Monkey's Audio")),
    (0, b"wvpk", Content("WavPack")),
    (0, b"ajkg", Content("Shorten")),
    (8, b"AVI ", Content("AVI")),
    (0, b"version https://git-lfs", Content("a pointer of Git LFS: fetch the file itself with git lfs pull", False)),
    (0, b"PK\x03\x04", Content("a ZIP archive", False)),
    (0, b"\x1f\x8b", Content("gzip", False)),
    (0, b"%PDF", Content("a PDF", False)),
)


def name_content(head: bytes) -> Content | None:
    """Name what a file holds by its first 64 bytes; None where they say nothing."""
    for at, magic, content in SIGNATURES:
        if head[at : at + len(magic)] == magic:
            return content
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return Content("a web page", False)
    return Content("nothing but zeros", False) if head and not any(head) else None
