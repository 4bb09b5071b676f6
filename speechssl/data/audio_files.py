"""Which files of a folder are audio, and what they are called."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from speechssl.audio.reading import AUDIO_SUFFIXES, suggest_ffmpeg
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
    closed: list[OSError] = []
    for place, files in walk_once(folder, closed):
        suffixes = [(name, os.path.splitext(name)[1].lower()) for name in files]
        found += [Path(place, name) for name, suffix in suffixes if suffix in AUDIO_SUFFIXES]
        foreign += [Path(place, name) for name, suffix in suffixes if suffix in FOREIGN_SUFFIXES]
    if closed:
        first = closed[0]
        if first.filename == os.fspath(folder):
            refuse_folder(first)
        message = "left out: %d folders that cannot be read, such as %s (%s)"
        _logger.warning(message, len(closed), first.filename, first.strerror)
    return sorted(found, key=os.fspath), sorted(foreign, key=os.fspath)


def walk_once(folder: str | os.PathLike[str], closed: list[OSError]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder in depth with the names of its files, links to folders included, each folder once.

    Args:
        folder: where to begin.
        closed: gets the errors of folders that cannot be read.
    """
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=closed.append):
        # The system lists folders in an order of its own, and the first way to one gives its files their names.
        folders.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield os.fspath(place), files


def refuse_folder(error: OSError) -> NoReturn:
    """Turn the system's reason for not listing a folder into a sentence; what lies in it would be missed.

    Raises:
        DataError: always.
    """
    raise DataError(f"{error.filename} must be readable, but is not: {error.strerror}") from error


def find_common(files: Sequence[Path]) -> Path:
    """Find the deepest folder that holds all files, given by absolute paths."""
    return Path(os.path.commonpath([file.parent for file in files]))


def make_ids(files: Sequence[Path]) -> list[str]:
    """Name files: the one rule for ids, whichever way the files were named.

    An id is the path from the deepest folder that holds all the files, without its suffix. Where it would be that of
    another file, or another file's path with its suffix, it keeps the suffix, so that no two are alike.

    Args:
        files: distinct absolute paths.
    """
    root = find_common(files) if files else Path("/")
    below = [file.relative_to(root) for file in files]
    names, stems = [path.as_posix() for path in below], [path.with_suffix("").as_posix() for path in below]
    alike, taken = Counter(stems), set(names)
    return [
        name if alike[stem] > 1 or (stem in taken and stem != name) else stem
        for name, stem in zip(names, stems, strict=True)
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
    # Not Path.resolve, which raises where links go in a circle; reading such a file says so in a sentence.
    return plain if plain.exists() and os.path.samefile(plain, file) else Path(os.path.realpath(file))
