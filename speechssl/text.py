"""CTC labels: from transcripts to symbols and back.

A transcript goes through two steps. *Folding* spells the same letter the same way: Unicode NFC, one apostrophe, one
case. Then each character either is in the vocabulary or not. Outside it, a character is *silent* (punctuation: it
separates words and nobody speaks it) or *spoken* (a letter, a digit, `%`): labels lose both, a reference that is
scored loses only the silent ones, so that what a model cannot write counts against it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from speechssl.config import TextConfig
from speechssl.errors import CheckpointError, ConfigError, DataError

BLANK = 0
"""Index of the CTC blank, whatever its symbol is called."""

WORD_BOUNDARY = "|"
"""The symbol that stands for the space between words and, as in fairseq's labels, after the last one."""

FAIRSEQ_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""fairseq's dictionary for LibriSpeech: four specials, of which `<s>` is the blank, then letters by frequency."""

_INVISIBLE = "\u00ad\u200b\u2060\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Soft hyphens, zero-width spaces, word joiners, byte-order marks, marks of direction. Not the joiners inside a word
(U+200C and U+200D): some scripts spell with them."""

_SPELLINGS = str.maketrans({"\u2019": "'", "\u02bc": "'", **dict.fromkeys(_INVISIBLE)})
"""Typographic apostrophes are apostrophes, and what cannot be seen is nothing."""

_SPOKEN_SIGNS = frozenset("%&@#'")
"""What Unicode files under punctuation but people say, or spell with."""


@dataclass(frozen=True)
class Vocabulary:
    """The labels of a CTC head, and how text is brought to them.

    Attributes:
        symbols: label of each index; 0 is the CTC blank, `|` the word boundary. A symbol of more than one character
            (`<pad>`) is never a label.
        case: `upper`, `lower` or `keep`: what folding does to letters.
        keep: the characters that `text.keep` added to the vocabulary.

    Raises:
        ConfigError: a symbol comes twice, or there is no word boundary, or nothing but blank and boundary.
    """

    symbols: tuple[str, ...]
    case: str = "upper"
    keep: str = ""

    def __post_init__(self) -> None:
        twice = [symbol for symbol, count in Counter(self.symbols).items() if count > 1]
        if twice:
            raise ConfigError(f"`text.vocabulary` must have each symbol once, but has {twice[0]!r} twice")
        if WORD_BOUNDARY not in self.symbols[1:]:
            raise ConfigError(f"`text.vocabulary` must have the boundary '|' after the blank, but is {self.symbols}")
        if len(self.symbols) < 3:
            raise ConfigError(f"`text.vocabulary` must have at least one letter, but is {self.symbols}")

    def __len__(self) -> int:
        """Count the symbols, the blank included: the width of the CTC head."""
        return len(self.symbols)

    @cached_property
    def _index(self) -> dict[str, int]:
        """Index of each character of a folded text that is a label; the blank is none.

        An imported vocabulary has its own spelling (a typographic apostrophe), which folded texts have not.
        """
        labels = {symbol: k for k, symbol in enumerate(self.symbols) if k != BLANK and len(symbol) == 1}
        folded = {fold(symbol, self.case): k for symbol, k in labels.items()}
        return {spelling: k for spelling, k in folded.items() if len(spelling) == 1} | labels

    def __contains__(self, character: object) -> bool:
        """Say whether a folded character is a label; the boundary's own character is none in a text."""
        return character in self._index and character != WORD_BOUNDARY

    def normalise(self, text: str) -> str:
        """Bring a text to what the labels can say.

        Args:
            text: a transcript as people write it.

        Returns:
            Folded words with single spaces. Outside the vocabulary, punctuation separates words ("well-known" is two)
            and everything else is dropped; `unknown_letters` counts both.
        """
        letters = (c if c in self or c.isspace() else " " if is_silent(c) else "" for c in fold(text, self.case))
        return " ".join("".join(letters).split())

    def fold(self, text: str) -> str:
        """Spell a text as references are spelt that it is compared with, whatever the spelling of the symbols."""
        return fold(text, self.case)

    def normalise_reference(self, text: str) -> str:
        """Bring a text to what it is scored against.

        Args:
            text: a transcript as people write it.

        Returns:
            Folded words with single spaces. Punctuation outside the vocabulary separates words, since nobody speaks
            it; letters and digits outside the vocabulary stay: the model cannot write them, and that is an error.
        """
        letters = (" " if c not in self and is_silent(c) else c for c in fold(text, self.case))
        return " ".join("".join(letters).split())

    def encode(self, text: str) -> list[int]:
        """Turn a text into labels, normalised, each word followed by the boundary (fairseq's `.ltr`).

        Returns:
            Indices in 1 to V - 1; empty where nothing of the text is in the vocabulary. `decode` gives
            `normalise(text)` back, in the spelling of the symbols.
        """
        text = self.normalise(text)
        return [self._index[c] for c in (text + " ").replace(" ", WORD_BOUNDARY)] if text else []

    def decode(self, ids: Iterable[int]) -> str:
        """Turn labels into text.

        Args:
            ids: indices after the CTC collapse, so repeats are meant; blanks and specials are skipped.

        Returns:
            Words with single spaces.
        """
        letters = [self.symbols[k] for k in ids if k != BLANK and len(self.symbols[k]) == 1]
        return " ".join("".join(letters).replace(WORD_BOUNDARY, " ").split())

    def unknown_letters(self, texts: Iterable[str]) -> Counter[str]:
        """Count the characters, white space apart, that are not in the vocabulary, after folding."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(c for c in fold(text, self.case) if c not in self and not c.isspace())
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Give the form that a checkpoint's `config.json` holds."""
        return {"symbols": list(self.symbols), "case": self.case, "keep": self.keep}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Vocabulary:
        """Rebuild a vocabulary from `to_dict`'s form.

        Raises:
            CheckpointError: it is not that form.
        """
        symbols, case, keep = stored.get("symbols"), stored.get("case"), stored.get("keep")
        whole = isinstance(symbols, list) and case in ("upper", "lower", "keep") and isinstance(keep, str)
        if not whole or not all(isinstance(symbol, str) for symbol in symbols or ()):
            must = "hold a vocabulary of symbols, case and keep"
            raise CheckpointError(f"`checkpoint` must {must}, but its vocabulary is {dict(stored)}")
        return cls(tuple(symbols or ()), str(case), str(keep))


def fold(text: str, case: str) -> str:
    """Spell the same letter the same way: NFC, one apostrophe, no invisible characters, one case.

    Args:
        text: any text.
        case: `upper`, `lower` or `keep`.
    """
    text = text.translate(_SPELLINGS)
    text = text.upper() if case == "upper" else text.lower() if case == "lower" else text
    return unicodedata.normalize("NFC", text)


def find_case(symbols: Iterable[str]) -> str:
    """Find which case of letters the labels have: `upper`, `lower`, or `keep` for both or neither."""
    letters = [symbol for symbol in symbols if len(symbol) == 1]
    if any(letter != letter.lower() for letter in letters):
        return "keep" if any(letter != letter.upper() for letter in letters) else "upper"
    return "lower" if any(letter != letter.upper() for letter in letters) else "keep"


def is_silent(character: str) -> bool:
    """Say whether a character is punctuation that nobody speaks; `'`, `%`, `&`, `@` and `#` are not."""
    if character == WORD_BOUNDARY:
        return True
    category = unicodedata.category(character)
    return (category.startswith("P") or category in ("Sk", "Cc")) and character not in _SPOKEN_SIGNS


def build_vocabulary(config: TextConfig, texts: Iterable[str]) -> Vocabulary:
    """Make the labels that `text.*` asks for.

    Args:
        config: `fairseq` gives its 32 symbols in its order; `data` gives the blank, the boundary and the letters and
            apostrophes of `texts`, sorted. Either way the characters of `text.keep` follow.
        texts: transcripts of the training data; not read for `fairseq`.

    Raises:
        ConfigError: `text.case` does not fit the vocabulary, or `text.keep` has a space or `|`.
        DataError: the transcripts have no letters.
    """
    keep = fold(config.keep, config.case)
    bad = [c for c in keep if c.isspace() or c == WORD_BOUNDARY]
    if bad:
        raise ConfigError(f"`text.keep` must be characters other than spaces and '|', but has {bad[0]!r}")
    if config.vocabulary == "data":
        symbols: tuple[str, ...] = ("<s>", WORD_BOUNDARY, *_find_letters(texts, config.case))
    else:
        if config.case != "upper":
            raise ConfigError(f"`text.case` must be upper with text.vocabulary=fairseq, but is {config.case!r}")
        symbols = FAIRSEQ_SYMBOLS
    extra = sorted(set(keep) - set(symbols))
    return Vocabulary((*symbols, *extra), config.case, "".join(extra))


def _find_letters(texts: Iterable[str], case: str) -> list[str]:
    """Sort the letters, combining marks and apostrophes that occur in the texts."""
    seen: set[str] = set()
    for text in texts:
        seen.update(fold(text, case))
    letters = [c for c in seen if c == "'" or unicodedata.category(c)[0] in "LM"]
    if not any(c.isalpha() for c in letters):
        raise DataError("`data.train` must have transcripts with letters for text.vocabulary=data, but has none")
    return sorted(letters)
