"""What `audio=` takes: a file, a folder, a glob, a manifest, or a text file that lists paths."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechssl.audio import check_channel, read_info
from speechssl.data.audio_files import find_audio, locate, make_ids, name_foreign
from speechssl.data.manifest import Manifest, Utterance, build_manifest, join_manifests, load_manifest
from speechssl.errors import DataError

MANIFEST_SUFFIXES = frozenset({".tsv", ".parquet"})

_logger = logging.getLogger("speechssl")


def expand_audio(audio: Sequence[str], key: str = "audio", keep_repeats: bool = False, channel: int = 0) -> Manifest:
    """Find the audio that the values of `audio=` name.

    Args:
        audio: files, folders (searched in depth), globs, manifests, or `.txt` files with a path a line (relative to
            the text file's folder).
        key: the key that errors name.
        keep_repeats: give a row each time that a file is named, rather than one at the first time.
        channel: of each file, from 1; 0: the mean of all.

    Returns:
        One row a file, in the order given and sorted within a folder or glob; rows of manifests as they are. The id
        is the path without suffix, from the folder that all files share; with the suffix where two would be alike.

    Raises:
        DataError: nothing is given, nothing matches, or a file is no audio.
    """
    if not audio:
        raise DataError(f"`{key}` must be files, folders, globs or a manifest, but is not given")
    found = [_look_up(item, key) for item in audio]
    manifests = [item for item in found if isinstance(item, Manifest)]
    if channel and manifests:
        raise DataError(f"`channel` must be left out where `{key}` is a manifest, whose column channel says it")
    # A file that is named in two ways is one file.
    distinct = {locate(file): file for item in found if not isinstance(item, Manifest) for file in item}
    if distinct:
        manifests.append(scan_files(list(distinct.values()), key, channel))
    joined = manifests[0] if len(manifests) == 1 else join_manifests(manifests)
    order = _order_rows(found, {file: row for row, file in enumerate(distinct, len(joined) - len(distinct))})
    if not keep_repeats:
        order = list(dict.fromkeys(order))
    return joined if order == list(range(len(joined))) else joined.select(order)


def _look_up(item: str, key: str) -> Manifest | list[Path]:
    return load_manifest(item, key) if Path(item).suffix in MANIFEST_SUFFIXES else find_files(item, key)


def _order_rows(found: Sequence[Manifest | list[Path]], places: Mapping[Path, int]) -> list[int]:
    """List the rows of all manifests, one after the other, and of the files at their `places`, as they were named."""
    order: list[int] = []
    num_rows = 0
    for item in found:
        if isinstance(item, Manifest):
            order += range(num_rows, num_rows + len(item))
            num_rows += len(item)
        else:
            order += [places[locate(file)] for file in item]
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
    if path.suffix == ".txt" and path.is_file():
        return _require_some(_read_list(path, key), f"`{key}` must name audio, but {item} lists no paths")
    if path.exists():
        return [path]
    if glob.has_magic(item):
        matched = [Path(name) for name in sorted(glob.glob(item, recursive=True)) if os.path.isfile(name)]
        return _require_some(matched, f"`{key}` must match files, but the glob {item} matches none")
    raise DataError(f"`{key}` must name audio that is there, but {item} does not exist")


def scan_files(files: Sequence[Path], key: str, channel: int = 0) -> Manifest:
    """Count the samples of files, for a manifest with a row a file.

    Raises:
        DataError: one of them is no audio, or its path is not in UTF-8; the first one is named.
    """
    located = [locate(file) for file in files]
    for file in located:
        if not _is_utf8(file):
            raise DataError(f"`{key}` must have paths in UTF-8, but has {str(file)!r}")
    with ThreadPoolExecutor(8) as pool:
        infos = list(pool.map(read_info, files))
    for file, info in zip(files, infos, strict=True):
        check_channel(file, info.num_channels, channel)
    root = Path(os.path.commonpath([file.parent for file in located]))
    names = make_ids(located, root)
    rows = [
        Utterance(name, file, info.sample_rate, info.num_samples, channel=channel)
        for name, file, info in zip(names, located, infos, strict=True)
    ]
    return build_manifest(rows, root, key)


def _is_utf8(path: Path) -> bool:
    """Say whether a manifest, which is in UTF-8, can hold a path."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_list(path: Path, key: str) -> list[Path]:
    """Read a path a line.

    Raises:
        DataError: it is no text in UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"`{key}` must list paths in UTF-8, but {path} does not ({error})") from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def _require_some(files: list[Path], message: str) -> list[Path]:
    if not files:
        raise DataError(message)
    return files
