"""A language model's words in a recogniser's spelling, and how well the two fit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from speechssl.errors import DataError
from speechssl.evaluation.ngram import Ngram, load_arpa
from speechssl.text import Vocabulary

MAX_WORD = 200
"""Longest word, in letters, whose beginnings rank what may become of them."""

_logger = logging.getLogger("speechssl")


@dataclass
class Fit:
    """How well a language model fits a recogniser.

    Attributes:
        lm_words: words that it knows, in the recogniser's spelling.
        lm_words_writable: those that the recogniser can write.
        output_words: words of the decoded texts.
        output_words_known: those that the language model knows.
    """

    lm_words: int
    lm_words_writable: int
    output_words: int = 0
    output_words_known: int = 0

    def count(self, words: Sequence[str], lm: Ngram) -> None:
        """Count the words of a decoded text, as the language model spells them."""
        self.output_words += len(words)
        self.output_words_known += sum(word in lm for word in words)

    def warn_of_unknown(self) -> None:
        """Warn where the language model knows less than half of what was recognised."""
        if self.output_words_known < self.output_words / 2:
            _logger.warning(
                "decoding.lm knows only %d of the %d words that were recognised: is it of this language, and of words?",
                self.output_words_known,
                self.output_words,
            )


def load_lm(path: str, vocabulary: Vocabulary) -> Ngram:
    """Read a language model in the spelling of a recogniser, which must be able to write some of its words.

    Raises:
        DataError: it is no ARPA file, or is spelt in other letters.
    """
    lm = load_arpa(path, spell=lambda word: _spell_word(word, vocabulary))
    words, num_writable = lm.words, len(list_writable(lm, vocabulary))
    foreign = ", ".join(f"{word:.40}" for word in islice((w for w in words if not _is_writable(w, vocabulary)), 3))
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
    return [word for word in lm.words if _is_writable(word, vocabulary)]


def _is_writable(word: str, vocabulary: Vocabulary) -> bool:
    return all(letter in vocabulary for letter in word)


def _spell_word(word: str, vocabulary: Vocabulary) -> str:
    """Spell a word as references are spelt; what would be two words, or none, stays as it is and is never met."""
    spelt = vocabulary.normalise_reference(word)
    return spelt if spelt and " " not in spelt else word


def find_beginnings(words: Iterable[str], lm: Ngram) -> dict[str, float]:
    """Map what words begin with, the whole word included, to the highest log10 probability of such a word alone.

    Longer words than any language has are left out, since their beginnings would fill the memory.
    """
    found: dict[str, float] = {}
    for word in words:
        if len(word) > MAX_WORD:
            continue
        log_prob = lm.log_probs[word]
        for length in range(1, len(word) + 1):
            found[word[:length]] = max(found.get(word[:length], log_prob), log_prob)
    return found
