"""An n-gram in arrays: what a dict of ten million n-grams takes gigabytes for is a few hundred megabytes here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from speechssl.inference.decoding.ngram import Ngram, Row

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SmallIntArray = npt.NDArray[np.int32]

_CHUNK = 100_000
"""N-grams that are spelt at once."""


@dataclass
class Level:
    """The n-grams of one length, by number.

    Attributes:
        prefixes: number of each without its last word, among the n-grams one word shorter.
        words: number of its last word.
        log_probs: log10 of the last word's probability.
        backoffs: log10 of the back-off weight; NaN where nothing was seen after it.
    """

    prefixes: SmallIntArray
    words: SmallIntArray
    log_probs: FloatArray
    backoffs: FloatArray


class PackedNgram(Ngram):
    """An `Ngram` whose two mappings read from arrays; to ask for a score takes longer than with dicts.

    Args:
        words: the vocabulary, its signs included, by number.
        levels: n-grams of each length; those of one word are the vocabulary, in its order.
    """

    def __init__(self, words: list[str], levels: list[Level]) -> None:
        self.grams = _Grams(words, levels)
        log_probs = _Column(self.grams, [level.log_probs for level in levels])
        backoffs = _Column(self.grams, [level.backoffs for level in levels])
        super().__init__(len(levels), log_probs, backoffs, [len(level.words) for level in levels])

    def sections(self) -> list[tuple[int, Iterator[Row]]]:
        """Give the n-grams of each length, spelt as they are asked for."""
        return [(count, self._iterate_rows(n)) for n, count in enumerate(self.counts)]

    def _iterate_rows(self, n: int) -> Iterator[Row]:
        level = self.grams.levels[n]
        for first in range(0, len(level.words), _CHUNK):
            rows = slice(first, first + _CHUNK)
            numbers = zip(level.log_probs[rows].tolist(), level.backoffs[rows].tolist(), strict=True)
            for name, (log_prob, backoff) in zip(self.grams.spell(n, rows), numbers, strict=True):
                yield log_prob, name, None if backoff != backoff else backoff


@dataclass
class _Grams:
    """Finds the number of an n-gram, and spells those of a range of numbers."""

    words: list[str]
    levels: list[Level]
    numbers: dict[str, int] = field(init=False)
    sorted_keys: list[IntArray] = field(init=False)
    sorted_numbers: list[SmallIntArray] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = {word: number for number, word in enumerate(self.words)}
        self.spellings = np.array(self.words, dtype=object)
        self.sorted_keys, self.sorted_numbers = [], []
        for level in self.levels[1:]:
            keys = level.prefixes.astype(np.int64) * len(self.words) + level.words
            order = np.argsort(keys)
            self.sorted_keys.append(keys[order])
            self.sorted_numbers.append(order.astype(np.int32))

    def find(self, name: str) -> tuple[int, int] | None:
        """Give length - 1 and number of an n-gram."""
        number, length = 0, -1
        for length, word in enumerate(name.split(" ")):
            last = self.numbers.get(word)
            if last is None or length >= len(self.levels):
                return None
            if not length:
                number = last
                continue
            keys, key = self.sorted_keys[length - 1], number * len(self.words) + last
            place = int(keys.searchsorted(key))
            if place == len(keys) or keys[place] != key:
                return None
            number = int(self.sorted_numbers[length - 1][place])
        return length, number

    def spell(self, n: int, rows: slice) -> Iterator[str]:
        """Spell n-grams of n + 1 words."""
        columns: list[list[str]] = []
        numbers = np.arange(*rows.indices(len(self.levels[n].words)), dtype=np.int32)
        for level in reversed(self.levels[: n + 1]):
            columns.append(self.spellings[level.words[numbers]].tolist())
            numbers = level.prefixes[numbers]
        return map(" ".join, zip(*reversed(columns), strict=True))


class _Column(Mapping[str, float]):
    """From n-grams to one of their numbers, where that is not NaN; the shorter come first."""

    def __init__(self, grams: _Grams, values: list[FloatArray]) -> None:
        self.grams, self.values_by_length = grams, values

    def __getitem__(self, name: str) -> float:
        found = self.grams.find(name)
        value = float("nan") if found is None else float(self.values_by_length[found[0]][found[1]])
        if value != value:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        for n, values in enumerate(self.values_by_length):
            for first in range(0, len(values), _CHUNK):
                rows = slice(first, first + _CHUNK)
                names = zip(self.grams.spell(n, rows), values[rows].tolist(), strict=True)
                yield from (name for name, value in names if value == value)

    def __len__(self) -> int:
        return sum(int(np.count_nonzero(~np.isnan(values))) for values in self.values_by_length)
