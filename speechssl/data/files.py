"""Which files are audio, what they are called, and what `audio=` takes: files, folders, globs, manifests, lists."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NoReturn

from speechssl.audio.reading import AUDIO_SUFFIXES, AudioInfo, read_info, suggest_ffmpeg
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, Utterance, build_manifest, check_unique, join_manifests, load_manifest
from speechssl.errors import DataError
from speechssl.parsing import parsing, read_bytes
from speechssl.printable import is_storable

MANIFEST_SUFFIXES = frozenset({".tsv", ".parquet"})

FOREIGN_SUFFIXES = frozenset(
    {".m4a", ".mp4", ".aac", ".wma", ".amr", ".webm", ".mkv", ".mov", ".avi", ".3gp", ".wv", ".ape", ".spx"}
)
"""Audio and video that libsndfile does not read; a folder that holds some is told so."""

_logger = logging.getLogger("speechssl")


def expand_audio(
    audio: Sequence[str],
    key: str = "audio",
    keep_repeats: bool = False,
    left_out: LeftOut | None = None,
    channel: int = 0,
) -> Manifest:
    """Find the audio that the values of `audio=` name.

    Args:
        audio: files, folders (searched in depth), globs, manifests, or `.txt` files with a path a line (relative to
            the text file's folder).
        key: the key that errors name.
        keep_repeats: give a row each time that a file is named, rather than one at the first time.
        left_out: gets the files that cannot be used; None: the first one ends it.
        channel: of each file, from 1; 0: the mean of all.

    Returns:
        One row a file, in the order given and sorted within a folder or glob, with ids by `make_ids`; rows of
        manifests as they are.

    Raises:
        DataError: nothing is given, nothing matches, an id is there twice, or a file is no audio and `left_out` is
            None, or all are none.
    """
    if not audio:
        raise DataError(f"`{key}` must be files, folders, globs or a manifest, but is not given")
    found = [
        load_manifest(item, key) if Path(item).suffix in MANIFEST_SUFFIXES else find_files(item, key) for item in audio
    ]
    manifests = [item for item in found if isinstance(item, Manifest)]
    if channel and manifests:
        raise DataError(f"`channel` must be left out where `{key}` is a manifest, whose column channel says it")
    # A file that is named in two ways is one file.
    distinct = {locate(file): file for item in found if not isinstance(item, Manifest) for file in item}
    places: dict[Path, int] = {}
    if distinct:
        scanned = scan_files(list(distinct.values()), key, left_out, channel)
        first = sum(map(len, manifests))
        places = {scanned.root / path: row for row, path in enumerate(scanned.table.column("path").to_pylist(), first)}
        manifests.append(scanned)
    joined = manifests[0] if len(manifests) == 1 else join_manifests(manifests)
    if left_out is not None:
        left_out.require_others(len(joined))
    check_unique(joined, key)
    order = _order_rows(found, places)
    if not keep_repeats:
        order = list(dict.fromkeys(order))
    return joined if order == list(range(len(joined))) else joined.select(order)


def _order_rows(found: Sequence[Manifest | list[Path]], places: Mapping[Path, int]) -> list[int]:
    """List the rows of all manifests, one after the other, and of the files that have a place, as they were named."""
    order: list[int] = []
    num_rows = 0
    for item in found:
        if isinstance(item, Manifest):
            order += range(num_rows, num_rows + len(item))
            num_rows += len(item)
        else:
            order += [places[place] for file in item if (place := locate(file)) in places]
    return order


def find_files(item: str, key: str) -> list[Path]:
    """Find the files of one value.

    Raises:
        DataError: it is not there, or holds or matches no audio.
    """
    path = Path(item)
    if path.is_dir():
        found, foreign = find_audio(path)
        if found and foreign:
            _logger.warning("left out of %s%s", item, name_foreign(foreign))
        return _require_some(found, f"`{key}` must name audio, but the folder {item} holds none{name_foreign(foreign)}")
    if path.suffix == ".txt" and path.exists():
        return _require_some(_read_list(path, key), f"`{key}` must name audio, but {item} lists no paths")
    if path.exists():
        return [path]
    if glob.has_magic(item):
        # Links that lead nowhere too, so that they are named.
        files = [Path(name) for name in sorted(_expand(item)) if not os.path.isdir(name)]
        return _require_some(files, f"`{key}` must match files, but the glob {item} matches none")
    raise DataError(f"`{key}` must name audio that is there, but {item} does not exist")


def _expand(pattern: str) -> set[str]:
    """List what a glob matches. `**` goes into each folder once: links that go in a circle would never end."""
    parts = pattern.split("/")
    if "**" not in parts:
        return set(glob.glob(pattern))
    cut = parts.index("**")
    head, tail = "/".join(parts[:cut]), "/".join(parts[cut + 1 :]) or "*"
    matched: set[str] = set()
    for start in glob.glob(head) if head else ["/" if cut else "."]:
        for place, _ in walk_once(start, []):
            if not any(part.startswith(".") for part in Path(os.path.relpath(place, start)).parts):
                matched |= _expand(os.path.join(glob.escape(place), tail))
    return matched


def scan_files(files: Sequence[Path], key: str, left_out: LeftOut | None = None, channel: int = 0) -> Manifest:
    """Count the samples of files, for a manifest with a row a file.

    Args:
        files: distinct files.
        key: the key that errors name.
        left_out: gets those that are no audio, or whose path is not in UTF-8; None: the first one ends it.

    Raises:
        DataError: one cannot be used, and `left_out` is None.
    """
    located = [locate(file) for file in files]
    names = make_ids(located)
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(partial(_examine, key=key, channel=channel), files))
    rows = []
    for name, file, outcome in zip(names, located, outcomes, strict=True):
        if isinstance(outcome, AudioInfo):
            rows.append(Utterance(name, file, outcome.sample_rate, outcome.num_samples, channel=channel))
        elif left_out is None:
            raise outcome
        else:
            left_out.add(name, file, str(outcome))
    return build_manifest(rows, find_common(located), key)


def _examine(file: Path, key: str, channel: int) -> AudioInfo | DataError:
    """Count the samples of a file, or give the error that says why it cannot be used."""
    if not is_storable(os.fspath(file)):
        return DataError(f"`{key}` must have paths in UTF-8, but has {str(file)!r}")
    try:
        return read_info(file, channel)
    except DataError as error:
        return error


def _read_list(path: Path, key: str) -> list[Path]:
    """Read a path a line.

    Raises:
        DataError: it is no text in UTF-8.
    """
    with parsing(f"`{key}` ({path})", "a list of paths in UTF-8"):
        lines = [line.strip() for line in read_bytes(path).decode("utf-8-sig").splitlines()]
        if any("\0" in line for line in lines):
            raise ValueError("it has NUL bytes")
    return [path.parent / line for line in lines if line]


def _require_some(files: list[Path], message: str) -> list[Path]:
    if not files:
        raise DataError(message)
    return files


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
