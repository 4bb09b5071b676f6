"""A language model's words in a recogniser's spelling, and how well the two fit."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from speechssl.errors import DataError
from speechssl.inference.decoding.ngram import Ngram, load_arpa
from speechssl.text.vocabulary import Vocabulary

_BEHIND = "\U0010ffff"
"""Sorts behind whatever a word goes on with."""

_logger = logging.getLogger("speechssl")


@dataclass
class Fit:
    """How well a language model fits a recogniser.

    Attributes:
        lm_words: words that it knows, in the recogniser's spelling.
        lm_words_writable: those that the recogniser can write.
        output_words: words of the decoded texts.
        output_words_known: those that the language model knows.
        greedy_words: words of the texts that greedy decoding reads off the same logits.
    """

    lm_words: int
    lm_words_writable: int
    output_words: int = 0
    output_words_known: int = 0
    greedy_words: int = 0

    def count(self, words: Sequence[str], lm: Ngram) -> None:
        """Count the words of a decoded text, as the language model spells them."""
        self.output_words += len(words)
        self.output_words_known += sum(word in lm for word in words)

    def describe(self) -> dict[str, Any]:
        """Give the counts and the two shares; None where there are no words to have a share of."""
        shares = {
            "lm_words_writable_share": self.lm_words_writable / self.lm_words if self.lm_words else None,
            "output_words_known_share": self.output_words_known / self.output_words if self.output_words else None,
        }
        return asdict(self) | shares

    @property
    def counts(self) -> tuple[int, int, int]:
        """What has been counted so far."""
        return self.output_words, self.output_words_known, self.greedy_words

    @counts.setter
    def counts(self, counts: tuple[int, int, int]) -> None:
        """Take over what was counted elsewhere."""
        self.output_words, self.output_words_known, self.greedy_words = counts

    def warn_of_unknown(self) -> None:
        """Warn where the language model knows less than half of what was recognised."""
        if self.output_words_known < self.output_words / 2:
            _logger.warning(
                "decoding.lm knows only %d of the %d words that were recognised: is it of this language, and of words?",
                self.output_words_known,
                self.output_words,
            )

    def warn_of_silence(self, num_words: int = 0, num_deleted: int = 0, num_inserted: int = 0) -> None:
        """Warn where more than a third of the words is left out: of those that were said, or else of the greedy ones.

        Args:
            num_words: of the references; 0 where there are none.
            num_deleted, num_inserted: errors against them.
        """
        of = "the words that were said" if num_words else "the words of greedy decoding"
        if not num_words:
            num_words, num_deleted = self.greedy_words, self.greedy_words - self.output_words
        if num_deleted > max(num_words / 3, 5 * num_inserted):
            _logger.warning(
                "with decoding.lm %.0f %% of %s are left out: `speechssl tune` finds better weights",
                100 * num_deleted / num_words,
                of,
            )


def load_lm(path: str, vocabulary: Vocabulary) -> Ngram:
    """Read a language model in the spelling of a recogniser, which must be able to write some of its words.

    Raises:
        DataError: it is no ARPA file, or is spelt in other letters.
    """
    lm = load_arpa(path, spell=lambda word: _spell_word(word, vocabulary))
    words, num_writable = lm.words, len(list_writable(lm, vocabulary))
    foreign = ", ".join(f"{word:.40}" for word in islice((w for w in words if not vocabulary.can_write(w)), 3))
    if not num_writable:
        raise DataError(
            f"`decoding.lm` must have words that the recogniser can write (case: {vocabulary.case}), but the words of "
            f"{path} are {foreign or 'none'} …"
        )
    if num_writable < len(words) / 2:
        _logger.warning(
            "of the %d words of decoding.lm the recogniser can write only %d; it cannot write %s …",
            len(words), num_writable, foreign,
        )  # fmt: skip
    return lm


def list_writable(lm: Ngram, vocabulary: Vocabulary) -> list[str]:
    """List the words of a language model that a recogniser can write."""
    return [word for word in lm.words if vocabulary.can_write(word)]


def _spell_word(word: str, vocabulary: Vocabulary) -> str:
    """Spell a word as references are spelt; what would be two words, or none, stays as it is and is never met."""
    spelt = vocabulary.normalise_reference(word)
    return spelt if spelt and " " not in spelt else word


class Beginnings:
    """What words begin with, to the highest log10 probability of such a word alone.

    Found when it is asked for, in the sorted words: a table of all beginnings would take many times their size.
    """

    def __init__(self, lm: Ngram, vocabulary: Vocabulary) -> None:
        self.words = sorted(list_writable(lm, vocabulary))
        self.log_probs = np.array([lm.log_probs[word] for word in self.words])
        self.found: dict[str, float | None] = {}

    def get(self, beginning: str) -> float | None:
        """Give the log10 probability of the likeliest word that begins so, the whole word included."""
        if beginning not in self.found:
            first, last = self._find_range(beginning)
            self.found[beginning] = float(self.log_probs[first:last].max()) if last > first else None
        return self.found[beginning]

    def get_next(self, beginning: str) -> dict[str, float]:
        """Give what `get` gives for each letter that can follow."""
        first, last = self._find_range(beginning)
        best: dict[str, float] = {}
        while first < last:
            word = self.words[first]
            if len(word) == len(beginning):
                first += 1
                continue
            letter = word[len(beginning)]
            until = bisect_left(self.words, beginning + letter + _BEHIND, first, last)
            best[letter] = float(self.log_probs[first:until].max())
            first = until
        return best

    def _find_range(self, beginning: str) -> tuple[int, int]:
        first = bisect_left(self.words, beginning)
        return first, bisect_left(self.words, beginning + _BEHIND, first)
