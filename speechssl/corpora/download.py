"""LibriSpeech and Mini LibriSpeech from openslr.org: resumed, checked, safely unpacked, never fetched twice."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import math
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from speechssl.corpora.librispeech import FOLDER
from speechssl.errors import ConfigError, DataError
from speechssl.parsing import parsing, shorten, show
from speechssl.progress import track

BLOCK = 1 << 20
NUM_TRIES = 5
TIMEOUT_S = 60.0
WAIT_S = 2.0
"""Pause before the second try; it doubles with each."""

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        resource: number of the OpenSLR page that it belongs to.
        md5: its published sum, in hexadecimal.
        mebibytes: its published size, which is rounded.
    """

    resource: int
    md5: str
    mebibytes: int


ARCHIVES = {
    "dev-clean": Archive(12, "42e2234ba48799c1f50f24a7926300a1", 337),
    "dev-other": Archive(12, "c8d0bcc9cca99d4f8b62fcc847357931", 314),
    "test-clean": Archive(12, "32fa31d27d2e1cad72775fee3f4849a9", 346),
    "test-other": Archive(12, "fb5a50374b501bb3bac4815ee91d3135", 328),
    "train-clean-100": Archive(12, "2a93770f6d5c6c964bc36631d331a522", 6451),
    "train-clean-360": Archive(12, "c0e676e450a7ff2f54aeade5171606fa", 23552),
    "train-other-500": Archive(12, "d1a0fd59409feb2c614ce4d30c387708", 30720),
    "dev-clean-2": Archive(31, "6d7ab67ac6a1d2c993d050e16d61080d", 126),
    "train-clean-5": Archive(31, "5df7d4e78065366204ca6845bb08f490", 332),
}
"""The sums of https://www.openslr.org/resources/12/md5sum.txt and …/31/md5sum.txt, the sizes of www.openslr.org/12."""

MARGIN = 1.1
"""A download may be at most this many times the published size, which is rounded."""

MAX_RATIO, ROOM = 2, 1 << 20
"""An archive may unpack to at most this many times its own size, plus these bytes: FLAC does not compress further."""

MAX_LENGTH_DIGITS = 15


def download_parts(parts: Sequence[str], root: Path, url: str) -> Path:
    """Fetch and unpack parts of LibriSpeech; what is there already is left alone.

    Args:
        parts: names in `ARCHIVES`.
        root: folder that gets the archives and the folder `LibriSpeech`.
        url: server; an archive is at `<url>/<resource>/<part>.tar.gz`.

    Returns:
        The folder `LibriSpeech`.

    Raises:
        ConfigError: there is no such part, or `url` is no URL.
        DataError: `root` cannot be such a folder, or the server does not give a part, or gives another one than was
            published.
    """
    unknown = [part for part in parts if part not in ARCHIVES]
    if unknown:
        raise ConfigError(f"`download` must be some of {', '.join(ARCHIVES)}, but one is {unknown[0]!r}")
    _check_url(url)
    tree = root / FOLDER
    try:
        tree.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"`root` must be a folder to download to, but {root}: {error.strerror} ({tree})") from error
    for part in dict.fromkeys(parts):
        if (tree / part).is_dir():
            _logger.info("%s is there already, and not fetched", tree / part)
            continue
        archive = root / f"{part}.tar.gz"
        known = ARCHIVES[part]
        limit = int(known.mebibytes * MARGIN * (1 << 20))
        fetch(f"{url.rstrip('/')}/{known.resource}/{part}.tar.gz", archive, known.md5, limit)
        unpack(archive, part, root)
        _logger.info("%s is unpacked; %s may be deleted", tree / part, archive)
    return tree


def fetch(url: str, target: Path, md5: str, limit: int) -> None:
    """Fetch a file unless it is there, going on where an earlier try stopped (`<target>.part`).

    Args:
        url: of the file.
        target: where it goes.
        md5: its sum.
        limit: most bytes that are taken from a server, which may send without end.

    Raises:
        DataError: after several tries the file is not whole, the server refuses it or sends what no such file is, its
            sum is another one, or the system does not let it be written.
    """
    partial = target.with_name(f"{target.name}.part")
    # A server decides what status, headers and the address that it sends one on to are.
    with parsing(url, "a file that can be fetched"):
        try:
            _fetch(url, target, partial, md5, limit)
        except OSError as error:
            file = error.filename or partial
            raise DataError(f"{file} must be readable and writable, but is not: {error.strerror or error}") from error


def unpack(archive: Path, part: str, root: Path) -> None:
    """Unpack beside the place where the part belongs, and move it there whole.

    Raises:
        DataError: the archive is damaged, would write outside its folder, unpacks to more than an archive of speech
            can (`MAX_RATIO`), does not hold the part, or there is no room for it.
    """
    scratch = root / f".{part}.unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with parsing(str(archive), "an archive that can be unpacked"):
            _extract(archive, part, scratch)
        if not (scratch / FOLDER / part).is_dir():
            raise DataError(f"{archive} must hold {FOLDER}/{part}, but does not")
        for item in sorted((scratch / FOLDER).iterdir()):
            _move(item, root / FOLDER / item.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(archive: Path, part: str, scratch: Path) -> None:
    """Write an archive's files; what is counted is all that is decompressed, headers and names included."""
    size = archive.stat().st_size
    _check_space(archive.parent, size)
    with gzip.open(archive) as stream:
        limited = cast(IO[bytes], _Limited(stream, MAX_RATIO * size + ROOM))
        with tarfile.open(fileobj=limited, mode="r|", bufsize=BLOCK) as tar:
            for member in track(tar, f"unpacking {part}", unit="files"):
                tar.extract(member, scratch, filter="data")


class _Limited:
    """A stream that raises an error after `limit` bytes."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._limit, self._left = stream, limit, limit

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes."""
        block = self._stream.read(size)
        self._left -= len(block)
        if self._left < 0:
            name, limit = self._stream.name, self._limit
            raise DataError(f"{name} must unpack to what speech takes, but unpacks to more than {limit} bytes")
        return block


def _check_url(url: str) -> None:
    """Make sure that a request can be made of a URL.

    Raises:
        ConfigError: it has no scheme that is known, no host, or characters that a URL cannot have.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        is_complete = parts.scheme == "file" or (parts.scheme in ("http", "https", "ftp") and bool(host))
        is_url = is_complete and parts.port != 0 and url.isascii() and url.isprintable() and " " not in url
    except ValueError:  # a port that is no number, half an IPv6 address, a host that cannot be
        is_url = False
    if not is_url:
        raise ConfigError(f"`download_url` must be a URL such as https://server/folder, but is {url!r}")


def _fetch(url: str, target: Path, partial: Path, md5: str, limit: int) -> None:
    if target.exists():
        return _check_sum(target, md5, url)
    for attempt in range(NUM_TRIES):
        if _try_to_fetch(url, partial, limit, is_last=attempt == NUM_TRIES - 1):
            break
        time.sleep(WAIT_S * 2**attempt)
    _check_sum(partial, md5, url)
    partial.replace(target)


def _try_to_fetch(url: str, partial: Path, limit: int, is_last: bool) -> bool:
    """Fetch what is missing; False where the connection broke and another try may help."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with _over_the_network():
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        with response:
            # 200 in answer to a range: the server sends everything again.
            is_resumed = response.status == http.client.PARTIAL_CONTENT
            with partial.open("ab" if is_resumed else "wb") as file:
                _copy(response, file, url, limit)
        return True
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is missing; the sum decides whether it is the right file
        if error.code < 500 or is_last:
            answer = f"{error.code} {str(error.reason)[:80]}"
            raise DataError(f"{url} must be there, but the server answers {answer}") from error
    except (ConnectionError, http.client.HTTPException) as error:
        why = shorten(error)
        if is_last:
            raise DataError(f"{url} must be reachable, but is not ({why}); the same command resumes it") from error
        _logger.warning("%s: %s; trying again", url, why)
    return False


@contextmanager
def _over_the_network() -> Iterator[None]:
    """Tell a broken connection from a file that cannot be written: TLS and routes have errors of their own.

    Raises:
        ConnectionError: in place of whatever else the system says.
    """
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _copy(response: http.client.HTTPResponse, file: BinaryIO, url: str, limit: int) -> None:
    """Copy a response block by block.

    Raises:
        http.client.IncompleteRead: the connection ended before the announced length.
        DataError: there is more of it than of the published archive, or there is no room for it.
    """
    length = _read_length(response, url)
    left = limit - file.tell()
    if length > left:
        raise DataError(f"{url} must have at most {limit} bytes, but the server announces {length} more")
    _check_space(Path(file.name).parent, length)
    total = math.ceil(length / BLOCK) if length else None
    copied = 0
    for block in track(_read_blocks(response), f"fetching {url.rpartition('/')[2]}", total, "MiB"):
        copied += len(block)
        if copied > left:
            Path(file.name).unlink()
            raise DataError(f"{url} must have at most {limit} bytes, but the server sends more; it is deleted")
        file.write(block)
    if length and copied < length:
        raise http.client.IncompleteRead(b"", length - copied)


def _read_length(response: http.client.HTTPResponse, url: str) -> int:
    """Read how many bytes a server announces; 0 where it does not say."""
    text = response.headers.get("Content-Length") or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_LENGTH_DIGITS):
        raise DataError(f"{url} must have a length, but the server announces {show(text)}")
    return int(text)


def _check_space(folder: Path, length: int) -> None:
    free = shutil.disk_usage(folder.absolute()).free
    if length > free:
        raise DataError(f"`root` must have room for {length / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB")


def _read_blocks(response: http.client.HTTPResponse) -> Iterator[memoryview]:
    # Into a buffer, for `read` takes a chunk of length -1 as all that ever comes.
    block = memoryview(bytearray(BLOCK))
    with _over_the_network():
        while count := response.readinto(block):
            yield block[:count]


def _check_sum(path: Path, md5: str, url: str) -> None:
    """Compare MD5 sums; a file with another one is deleted, so that the next run fetches it again.

    Raises:
        DataError: they differ.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        path.unlink()
        raise DataError(f"{url} must have the MD5 sum {md5}, but {path} has {found}; it is deleted, try again")


def _move(item: Path, target: Path) -> None:
    """Move a part or one of the lists beside it; of two lists, such as SPEAKERS.TXT, the longer one stays."""
    if target.is_file() and item.is_file() and target.stat().st_size >= item.stat().st_size:
        return
    item.replace(target)
