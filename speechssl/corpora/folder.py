"""Any folder of audio; a transcript is a `.txt` file of the same name beside it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from speechssl.advice import spell
from speechssl.corpora.scan import Recording
from speechssl.data.files import find_audio, make_ids, name_foreign
from speechssl.errors import ConfigError, DataError
from speechssl.parsing import read_text

_SAMPLE_NUMBERS = re.compile(r"^0 \d{4,7} (?=\D)", re.ASCII)
"""How a transcript of TIMIT begins: 0, how many samples there are (0.1 s to 10 min), and then words, not numbers."""

_logger = logging.getLogger("speechssl")


def read_folder(root: Path, speaker_pattern: str) -> list[Recording]:
    """List the recordings of a folder, searched in depth, sorted by path.

    Args:
        root: absolute path.
        speaker_pattern: regular expression with one group, searched for in the path from `root`; empty takes the
            parent folder's name as the speaker, and none for a file that lies in `root` itself.

    Raises:
        ConfigError: the pattern is no regular expression with one group, or finds no speaker at all.
        DataError: there is no audio, or a transcript is no text.
    """
    pattern = _compile(speaker_pattern)
    files, foreign = find_audio(root)
    if not files:
        raise DataError(f"`root` must hold audio that libsndfile reads, but {root} has none" + name_foreign(foreign))
    if foreign:
        _logger.warning("left out%s", name_foreign(foreign))
    if pattern is None:
        speakers = [None if file.parent == root else file.parent.name for file in files]
    else:
        speakers = _match_speakers(files, root, pattern)
    texts = drop_sample_numbers([read_sidecar(file) for file in files], files)
    return [Recording(*row) for row in zip(make_ids(files), files, speakers, texts, strict=True)]


def read_sidecar(file: Path) -> str | None:
    """Read the transcript beside an audio file, white space collapsed; None where there is none or it is empty.

    Raises:
        DataError: it is no file, or not UTF-8.
    """
    beside = (file.with_suffix(suffix) for suffix in (".txt", ".TXT"))
    path = next((path for path in beside if os.path.lexists(path)), None)
    return " ".join(read_text(path).split()) or None if path else None


def drop_sample_numbers(texts: Sequence[str | None], files: Sequence[Path]) -> list[str | None]:
    """Take away the numbers of the first and last sample, with which TIMIT's transcripts begin.

    Args:
        texts: transcripts, where there are some.
        files: the audio of each, for the warning that says so.
    """
    numbered = [file for text, file in zip(texts, files, strict=True) if text and _SAMPLE_NUMBERS.match(text)]
    if numbered:
        found = f"{len(numbered)} transcripts, such as that of {numbered[0]}"
        _logger.warning("left out the sample numbers before the words of %s (TIMIT writes 0 46797 She had …)", found)
    return [text and _SAMPLE_NUMBERS.sub("", text) for text in texts]


def _compile(speaker_pattern: str) -> re.Pattern[str] | None:
    if not speaker_pattern:
        return None
    try:
        pattern = re.compile(speaker_pattern)
    except re.error as error:
        raise ConfigError(f"`speaker_pattern` must be a regular expression, but {speaker_pattern}: {error}") from error
    if pattern.groups != 1:
        example = spell("speaker_pattern", r"(\d+)_")
        must = f"have one group, as in {example}"
        raise ConfigError(f"`speaker_pattern` must {must}, but {speaker_pattern} has {pattern.groups}")
    return pattern


def _match_speakers(files: Sequence[Path], root: Path, pattern: re.Pattern[str]) -> list[str | None]:
    """Find the speaker in each path, and say how many files have none."""
    matches = [pattern.search(file.relative_to(root).as_posix()) for file in files]
    without = [file for file, match in zip(files, matches, strict=True) if not match]
    if len(without) == len(files):
        must = f"match the paths, but {pattern.pattern} matches none"
        raise ConfigError(f"`speaker_pattern` must {must}, such as {without[0]}")
    if without:
        _logger.warning("speaker_pattern does not match %d files, such as %s", len(without), without[0])
    return [match and match[1] for match in matches]
