"""The text of the 4-gram: LibriSpeech transcripts without what the recognisers are evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from speechssl.errors import DataError

SHARED_WORDS = 8
"""A line that has so many words in a row with an evaluated utterance is left out: it is the same passage."""


def read_transcripts(folder: Path) -> list[str]:
    """Read the texts of all `*.trans.txt` in a folder, in order of file and line.

    Raises:
        DataError: there is none.
    """
    files = sorted(folder.glob("*.trans.txt"))
    if not files:
        raise DataError(f"`text` must be a folder with *.trans.txt, but {folder} has none")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [line.partition(" ")[2].strip() for line in lines if line.strip()]


def leave_out_evaluated(lines: Sequence[str], evaluated: Iterable[str]) -> tuple[list[str], list[str]]:
    """Part lines into those that share nothing with the evaluated utterances, and the rest.

    A line is left out if it is an evaluated utterance word for word, or has `SHARED_WORDS` words in a row with one.

    Returns:
        Kept lines and lines left out, each in order.
    """
    texts = [tuple(text.split()) for text in evaluated]
    whole, passages = set(texts), {run for text in texts for run in _list_runs(text)}
    kept: list[str] = []
    left_out: list[str] = []
    for line in lines:
        words = tuple(line.split())
        overlaps = words in whole or any(run in passages for run in _list_runs(words))
        (left_out if overlaps else kept).append(line)
    return kept, left_out


def _list_runs(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [words[start : start + SHARED_WORDS] for start in range(len(words) - SHARED_WORDS + 1)]
