"""Which files of a folder are audio, and what they are called."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from speechssl.audio import AUDIO_SUFFIXES, suggest_ffmpeg
from speechssl.errors import DataError

_logger = logging.getLogger("speechssl")

FOREIGN_SUFFIXES = frozenset(
    {".m4a", ".mp4", ".aac", ".wma", ".amr", ".webm", ".mkv", ".mov", ".avi", ".3gp", ".wv", ".ape", ".spx"}
)
"""Audio and video that libsndfile does not read; a folder that holds some is told so."""


def find_audio(folder: Path) -> tuple[list[Path], list[Path]]:
    """Search a folder in depth, links to folders included once: beside the folder itself they give way to it.

    Folders inside it that cannot be read, such as `lost+found`, are counted in a warning.

    Returns:
        the files that look like audio, and those that look like audio or video which libsndfile does not read; both
        sorted by their path as text.

    Raises:
        DataError: the folder itself cannot be read.
    """
    found: list[Path] = []
    foreign: list[Path] = []
    seen: set[str] = set()
    closed: list[OSError] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=closed.append):
        # The system lists folders in an order of its own, and the first way to one gives its files their names.
        folders.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        suffixes = [(name, os.path.splitext(name)[1].lower()) for name in files]
        found += [Path(place, name) for name, suffix in suffixes if suffix in AUDIO_SUFFIXES]
        foreign += [Path(place, name) for name, suffix in suffixes if suffix in FOREIGN_SUFFIXES]
    _name_closed(closed, folder)
    return sorted(found, key=os.fspath), sorted(foreign, key=os.fspath)


def _name_closed(errors: Sequence[OSError], folder: Path) -> None:
    if not errors:
        return
    first = errors[0]
    if first.filename == os.fspath(folder):
        refuse_folder(first)
    _logger.warning(
        "left out: %d folders that cannot be read, such as %s (%s)", len(errors), first.filename, first.strerror
    )


def refuse_folder(error: OSError) -> NoReturn:
    """Turn the system's reason for not listing a folder into a sentence; what lies in it would be missed.

    Raises:
        DataError: always.
    """
    raise DataError(f"{error.filename} must be readable, but is not: {error.strerror}") from error


def make_ids(files: Sequence[Path], root: Path) -> list[str]:
    """Name files by their path from `root` without suffix, with the suffix where two would be alike."""
    stems = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    alike = Counter(stems)
    return [
        stem if alike[stem] == 1 else file.relative_to(root).as_posix() for stem, file in zip(stems, files, strict=True)
    ]


def name_foreign(foreign: Sequence[Path]) -> str:
    """Say how files that libsndfile does not read become files that it does; empty where there are none."""
    if not foreign:
        return ""
    command = suggest_ffmpeg(foreign[0])
    return f": {len(foreign)} files such as {foreign[0].name} must be converted first, each with {command}"


def locate(file: Path) -> Path:
    """Make a path absolute by the names it was given by, links too; where `..` follows a link, by what it points to."""
    plain = Path(os.path.abspath(file))
    return plain if plain.exists() and os.path.samefile(plain, file) else file.resolve()
