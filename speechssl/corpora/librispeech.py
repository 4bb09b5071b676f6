"""A LibriSpeech tree on disk: SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac with transcripts and SPEAKERS.TXT."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from speechssl.audio.reading import AUDIO_SUFFIXES
from speechssl.corpora.scan import Recording
from speechssl.data.files import find_audio, make_ids, name_foreign, refuse_folder
from speechssl.errors import DataError
from speechssl.parsing import parsing, read_bytes, read_text

FOLDER = "LibriSpeech"
"""Folder that the published archives unpack to."""

SPEAKERS_NAME = "SPEAKERS.TXT"
TRANSCRIPT_SUFFIX = ".trans.txt"

_logger = logging.getLogger("speechssl")


def find_tree(root: Path) -> tuple[Path, str] | None:
    """Find a LibriSpeech tree in a folder that a user names: the tree, what holds it, or one split of it.

    Returns:
        the tree, and the split where it is one that `root` names, else an empty text; None where there is no tree,
        or the names of its files do not begin with SPEAKER-CHAPTER-.
    """
    for tree, split in ((root, ""), (root / FOLDER, ""), (root.parent, root.name)):
        folders = [tree / split] if split else _list_folders(tree)
        if any(_is_named_as_published(folder) for folder in folders):
            return tree, split
    return None


def list_splits(tree: Path) -> list[str]:
    """List the folders that hold SPEAKER/CHAPTER/audio, whatever they are called."""
    return [folder.name for folder in _list_folders(tree) if next(_list_audio(folder), None) is not None]


def read_splits(tree: Path, splits: Sequence[str]) -> dict[str, list[Recording]]:
    """List the recordings of a tree by split, sorted by path, with speaker, sex and transcript where there are any.

    Other audio in the tree, or in the splits that are asked for, is counted in a warning.

    Args:
        tree: absolute path of the folder that holds the splits.
        splits: those to take; empty takes all.

    Raises:
        DataError: a split is not there, a folder cannot be read, or a transcript is no text.
    """
    there = list_splits(tree)
    missing = [split for split in splits if split not in there]
    if missing or not there:
        has = f"has {', '.join(there)}" if there else "has no folder with SPEAKER/CHAPTER/audio files"
        has += f", not {', '.join(missing)}" if missing else ""
        raise DataError(f"`splits` must be folders of the corpus, but {tree} {has}")
    sexes = read_sexes(tree / SPEAKERS_NAME)
    recordings = {split: _read_split(tree, split, sexes) for split in (splits or there)}
    _name_left_out([tree / split for split in splits] or [tree], recordings)
    return recordings


def read_sexes(path: Path) -> dict[str, str]:
    """Read F or M for each speaker from SPEAKERS.TXT (`ID | SEX | SUBSET | MINUTES | NAME`); empty without it.

    Raises:
        DataError: it cannot be read.
    """
    if not os.path.lexists(path):
        return {}
    with parsing(str(path), "the list of speakers"):
        lines = read_bytes(path).decode("utf-8", errors="replace").splitlines()
    fields = [[field.strip() for field in line.split("|")] for line in lines if not line.startswith(";")]
    return {row[0]: row[1] for row in fields if len(row) >= 2 and row[1] in ("F", "M")}


def read_transcripts(path: Path) -> dict[str, str]:
    """Read `<utterance> <TEXT>` lines.

    Raises:
        DataError: it is no file, or not UTF-8.
    """
    pairs = [line.split(maxsplit=1) for line in read_text(path).splitlines() if line.strip()]
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def _read_split(tree: Path, split: str, sexes: dict[str, str]) -> list[Recording]:
    folder = tree / split
    files = sorted(_list_audio(folder), key=os.fspath)
    stems = {file.stem for file in files}
    # Published names are unique in a split; where they are not, the path tells them apart.
    ids = [file.stem for file in files] if len(stems) == len(files) else make_ids(files)
    # By place, not by name alone: a name that is not as published may stand in several chapters.
    texts = {
        chapter / name: text
        for chapter in sorted({file.parent for file in files})
        for path in sorted(chapter.glob(f"*{TRANSCRIPT_SUFFIX}"))
        for name, text in read_transcripts(path).items()
    }
    heard = {file.parent / file.stem for file in files}
    unheard = [place.name for place in texts if place not in heard]
    if unheard:
        _logger.warning("%s: %d transcripts have no audio, such as %s", split, len(unheard), unheard[0])
    return [
        Recording(name, file, speaker, texts.get(file.parent / file.stem), {"sex": sexes.get(speaker)})
        for name, file in zip(ids, files, strict=True)
        for speaker in (file.parents[1].name,)
    ]


def _name_left_out(folders: Sequence[Path], recordings: Mapping[str, Sequence[Recording]]) -> None:
    """Count the audio of folders that is not where LibriSpeech has it, and what libsndfile does not read."""
    taken = {recording.path for split in recordings.values() for recording in split}
    searched = [find_audio(folder) for folder in folders]
    others = [file for found, _ in searched for file in found if file not in taken]
    foreign = [file for _, found in searched for file in found]
    if others:
        # What is taken by a link is not left out under its other name.
        real = set(map(os.path.realpath, taken))
        others = [file for file in others if os.path.realpath(file) not in real]
    if others:
        where = "not SPLIT/SPEAKER/CHAPTER/file"
        _logger.warning("left out: %d audio files that are %s, such as %s", len(others), where, others[0])
    if foreign:
        _logger.warning("left out%s", name_foreign(foreign))


def _is_named_as_published(split: Path) -> bool:
    """Say whether the first audio file found is called SPEAKER-CHAPTER-…, after its folders."""
    file = next(_list_audio(split), None)
    return file is not None and file.name.startswith(f"{file.parents[1].name}-{file.parent.name}-")


def _list_audio(split: Path) -> Iterator[Path]:
    """Yield SPEAKER/CHAPTER/*.flac and its like, in no order."""
    for speaker in _list_folders(split):
        for chapter in _list_folders(speaker):
            names = (entry.name for entry in _scan(chapter))
            yield from (chapter / name for name in names if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES)


def _list_folders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted; none where it is no folder."""
    if not folder.is_dir():
        return []
    return [folder / name for name in sorted(entry.name for entry in _scan(folder) if entry.is_dir())]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder; raises DataError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        refuse_folder(error)
