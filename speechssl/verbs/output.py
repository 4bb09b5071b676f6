"""Where a verb writes, and the JSON that it ends with."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from speechssl.checkpoints.layout import RESULT
from speechssl.durable import clean
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.printable import make_json_printable

STDOUT = "stdout"
"""In a result: where texts went that no file was asked for."""

_made: list[Path] = []
"""Folders that were made to be written to."""

_logger = logging.getLogger("speechssl")


def resolve_out(out: str, verb: str, overwrite: bool, is_file: bool = False) -> Path:
    """Return the place to write, made and checked.

    Args:
        out: value of the key `out`; empty means runs/<verb>-<date>-<time>, which is then logged.
        verb: name of the verb.
        overwrite: whether a finished result may be replaced.
        is_file: whether `out` names a file, whose folder is made, rather than a folder.

    Raises:
        ConfigError: the place cannot be written, is the folder of a training run, or holds a finished result and
            `overwrite` is false.
    """
    from speechssl.checkpoints.layout import CONFIG, ENVIRONMENT

    path = Path(out) if out else _choose_folder(verb)
    finished = path if is_file else path / RESULT
    if not is_file and (path / CONFIG).exists() and (path / ENVIRONMENT).exists():
        raise ConfigError(f"`out` must be a new place, but {path} is the folder of a training run")
    if finished.exists() and not overwrite:
        raise ConfigError(f"`out` must be a new place, but {path} holds a finished result (overwrite=true replaces it)")
    if is_file and path.is_dir():
        raise ConfigError(f"`out` must be a file, but {path} is a folder")
    check_writable(path.parent if is_file else path)
    return path


@contextmanager
def replacing_result(folder: Path) -> Iterator[None]:
    """Take an earlier result away while the files that it tells of are replaced; what is refused puts it back."""
    path, aside = folder / RESULT, folder / f".{RESULT}.replaced"
    with suppress(FileNotFoundError):
        path.replace(aside)
    try:
        yield
    except SpeechSSLError:
        with suppress(FileNotFoundError):
            aside.replace(path)
        raise
    aside.unlink(missing_ok=True)


@contextmanager
def removing_unused() -> Iterator[None]:
    """Remove the folders that `check_writable` made inside and in which nothing was written."""
    start = len(_made)
    try:
        yield
    finally:
        for folder in sorted(_made[start:], reverse=True):
            with suppress(OSError):  # it holds a result
                folder.rmdir()
        del _made[start:]


def check_writable(folder: Path) -> None:
    """Make a folder and write in it once.

    Raises:
        ConfigError: that does not work; the message gives the system's reason.
    """
    try:
        _made.extend(path for path in (folder, *folder.parents) if not path.exists())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"`out` must be a place that can be written, but {folder}: {error.strerror}") from error


def print_line(text: str) -> None:
    """Print a line to stdout, as `print_text`."""
    print_text(f"{text}\n")


def print_text(text: str) -> None:
    """Print to stdout at once; a reader that has gone (`| head`) is no error, and nothing more is printed.

    What stdout's encoding lacks is spelt as an escape.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def format_line(result: Mapping[str, Any]) -> str:
    """Write a result as one line of strict JSON, readable on a terminal, harmless to it, in letters that stdout has."""
    line = make_json_printable(json.dumps(clean(result), ensure_ascii=False, allow_nan=False))
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        # Python's escapes (`\xe9`) are not those of JSON.
        return json.dumps(clean(result), allow_nan=False)
    return line


def _choose_folder(verb: str) -> Path:
    """Choose runs/<verb>-<date>-<time>, with a number behind it where two runs share a second."""
    stem = Path("runs") / f"{verb}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}")
    _logger.info("out=%s", path)
    return path
