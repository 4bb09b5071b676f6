"""Where foreign bytes become values: bounded reads of regular files, and one sentence for whatever a parser raises.

Everything that somebody else may have written, or a disk damaged, is read through here: no list covers all that json,
yaml, pyarrow, gzip or torch raise on bytes that they did not write themselves.
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from speechssl.errors import DataError, SpeechSSLError
from speechssl.printable import abbreviate

MAX_TEXT_BYTES = 64 * 2**20
"""Longest text file (a transcript, a configuration, a list of paths) that is read whole: 64 MiB."""

MAX_REASON = 200
"""Longest reason of a parser that a sentence repeats, in characters."""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 4, 100, 100
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 16


@contextmanager
def parsing(subject: str, must: str, error: type[SpeechSSLError] = DataError, where: str = "") -> Iterator[None]:
    """Turn whatever goes wrong while foreign bytes are read into one sentence; sentences of our own pass.

    Args:
        subject: what the sentence names: a path, or "`key`".
        must: what it must be, after "must be": "YAML", "a whole checkpoint".
        error: the class that is raised.
        where: the file, where the subject is a key.

    Raises:
        SpeechSSLError: of the class `error`: "<subject> must be <must>, but <where> is not (<reason>)".
    """
    start = f"{subject} must be {must}, but {where} " if where else f"{subject} must be {must}, but "
    try:
        yield
    except SpeechSSLError:
        raise
    except (MemoryError, RecursionError) as cause:
        why = "it needs more memory than there is" if isinstance(cause, MemoryError) else "it is nested too deeply"
        raise error(f"{start}is not ({why})") from cause
    except OSError as cause:
        # A full disk or a dying one is no fault of the bytes, but the reason says which it was.
        raise error(f"{start}cannot be read ({cause.strerror or shorten(cause)})") from cause
    except Exception as cause:
        raise error(f"{start}is not ({shorten(cause)})") from cause


def shorten(error: BaseException) -> str:
    """Give the first line of what an exception says, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return abbreviate(lines[0] if lines else type(error).__name__, MAX_REASON)


def show(value: object) -> str:
    """Give what `repr` says, cut short: a stranger's value may be of any length and depth."""
    return abbreviate(_SHORT.repr(value), MAX_REASON)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a named pipe or a device, which would hang, is refused.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file whole, up to `limit` bytes.

    Raises:
        OSError: as `open_regular`.
        ValueError: it has more bytes.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return content


def read_text(
    path: str | os.PathLike[str],
    must: str = "text in UTF-8",
    error: type[SpeechSSLError] = DataError,
    limit: int = MAX_TEXT_BYTES,
) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark; raises as `parsing`."""
    with parsing(os.fspath(path), must, error):
        return read_bytes(path, limit).decode("utf-8-sig")


def read_json(path: Path, error: type[SpeechSSLError] = DataError, limit: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds a mapping; raises as `parsing`."""
    with parsing(str(path), "JSON", error):
        return parse_json(read_bytes(path, limit))


def parse_json(content: bytes) -> dict[str, Any]:
    """Parse JSON that holds a mapping; call it within `parsing`."""
    return _take_mapping(json.loads(content.decode("utf-8-sig")))


def read_yaml(path: Path, error: type[SpeechSSLError] = DataError, limit: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; raises as `parsing`.

    Aliases (`*name`), which we never write, are refused: a few hundred bytes of them stand for gigabytes.
    """
    with parsing(str(path), "YAML", error):
        return _take_mapping(_NoAliases(read_bytes(path, limit)).get_single_data())


def _take_mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("it holds no mapping of names")
    return value


class _NoAliases(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node; raises ValueError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias")
        return super().compose_node(parent, index)
