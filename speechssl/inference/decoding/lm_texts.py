"""Texts that a language model is estimated from: read a line at a time, and brought to what a recogniser writes."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from speechssl.data.manifest import load_manifests
from speechssl.errors import DataError
from speechssl.parsing import open_regular, parsing
from speechssl.text.vocabulary import WORD_BOUNDARY, Vocabulary, is_silent

MAX_LINE_BYTES = 2**20
"""Longest line of a text: a sentence, or at most a page."""

MANIFESTS = (".tsv", ".parquet")


def read_texts(paths: Sequence[str], key: str) -> Iterator[str]:
    """Read sentences as they stand there, a line at a time.

    Args:
        paths: files with a sentence a line, LibriSpeech's `.trans.txt` (the utterance's name is left out), both also
            as `.gz`, and manifests with `text`.
        key: named in errors.

    Raises:
        DataError: one is no file, is not in UTF-8, is damaged, or is a manifest without `text`.
    """
    for path in map(Path, paths):
        if path.suffix in MANIFESTS:
            manifest = load_manifests([str(path)], key)
            manifest.require("text", key)
            yield from (text or "" for text in manifest.column("text"))
            continue
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise DataError(f"`{key}` must be text files or manifests, but {path} {problem}")
        is_transcript = path.name.removesuffix(".gz").endswith(".trans.txt")
        for line in _read_lines(path, key):
            yield line.partition(" ")[2] if is_transcript else line


def _read_lines(path: Path, key: str) -> Iterator[str]:
    with parsing(f"`{key}`", "text in UTF-8, a sentence a line", DataError, str(path)), open_regular(path) as file:
        lines: BinaryIO = io.BufferedReader(gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"line {number} has more than {MAX_LINE_BYTES} bytes")
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")


class Speller:
    """Brings texts to what a recogniser writes, and counts what it leaves out.

    Args:
        vocabulary: labels of the recogniser.
        unit: `word`, or `character`: letters are words then, and the boundary `|` stands between words.

    Attributes:
        left_out: spoken characters outside of the labels, to how often they were left out.
        num_texts, num_units: texts of which something is left, and their words, or characters.
    """

    def __init__(self, vocabulary: Vocabulary, unit: str = "word") -> None:
        self.vocabulary, self.unit = vocabulary, unit
        self.left_out: Counter[str] = Counter()
        self.num_texts = self.num_units = 0

    def spell(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield each text in units with single spaces between them, without those of which nothing can be written."""
        for text in texts:
            # To count characters takes longer than all else, and most texts have none outside of the labels.
            if not self.vocabulary.can_write(self.vocabulary.fold(text).replace(" ", "").rstrip()):
                unknown = self.vocabulary.unknown_letters([text])
                self.left_out.update({c: count for c, count in unknown.items() if not is_silent(c)})
            units = self.vocabulary.normalise(text)
            if self.unit == "character":
                units = " ".join(units.replace(" ", WORD_BOUNDARY))
            if units:
                self.num_texts, self.num_units = self.num_texts + 1, self.num_units + units.count(" ") + 1
                yield units
