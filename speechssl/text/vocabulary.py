"""CTC labels: from transcripts to symbols and back.

A transcript goes through two steps. *Folding* spells the same letter the same way (`text.spelling`): Unicode NFC,
one apostrophe, one case. Then each character either is in the vocabulary or not. Outside it, a character is *silent*
(punctuation: it separates words and nobody speaks it) or *spoken* (a letter, a digit, `%`): labels lose both, a
reference that is scored loses only the silent ones, so that what a model cannot write counts against it.

A label is a letter, or with a sentencepiece model (`text.pieces`) a piece: several letters, the space before a word as
`▁` among them. Which texts it can write is decided by its letters either way.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any

from speechssl.config.data import NORMALISERS, TextConfig
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.parsing import parsing
from speechssl.text.keep import WORD_BOUNDARY as WORD_BOUNDARY
from speechssl.text.keep import read_keep, read_label
from speechssl.text.normalise import find_normaliser
from speechssl.text.pieces import WORD_START, Pieces, train_pieces
from speechssl.text.spelling import (
    JOINERS,
    find_own,
    fold,
    has_dotless_i,
    is_dotless_alphabet,
    lacks_words,
    spell_symbol,
)
from speechssl.text.spelling import is_silent as is_silent

BLANK = 0
"""Index of the CTC blank, whatever its symbol is called."""

FAIRSEQ_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""fairseq's dictionary for LibriSpeech: four specials, of which `<s>` is the blank, then letters by frequency."""

KINDS_OF_PIECES = ("bpe", "unigram")
"""Values of `text.vocabulary` for which a sentencepiece model is trained."""

_SPECIAL = re.compile(r"<.+>|\[.+\]|madeupword\d+", re.DOTALL)
"""Symbols that write nothing: in brackets, and what fairseq fills its dictionaries up with."""

_ODD_SHARE = 0.1
"""An imported vocabulary still has one case if no more than this share of its letters are in the other one."""


class _Table(dict[int, str]):
    """What becomes of each character, for `str.translate`; found for each at its first occurrence."""

    def __init__(self, decide: Callable[[str], str]) -> None:
        super().__init__()
        self.decide = decide

    def __missing__(self, code: int) -> str:
        self[code] = found = self.decide(chr(code))
        return found


@dataclass(frozen=True)
class Vocabulary:
    """The labels of a CTC head, and how text is brought to them.

    Attributes:
        symbols: label of each index; 0 is the CTC blank, `|` the word boundary. A symbol in brackets (`<pad>`, `[UNK]`)
            is no label; other symbols of several characters (`tʃ`) are.
        case: `upper`, `lower` or `keep`: what folding does to letters.
        keep: the characters that `text.keep` added to the vocabulary.
        dotless_i: i and ı are two letters, as in Turkish; None: as the symbols say.
        pieces: the model whose pieces the symbols are; None: each is a letter, and the word boundary is one of them.
        normaliser: what a text goes through before it is folded (`text.normalise`); `none` leaves all to the folding.

    Raises:
        ConfigError: a symbol comes twice, or there is no letter, or the symbols are not the pieces.
    """

    symbols: tuple[str, ...]
    case: str = "upper"
    keep: str = ""
    dotless_i: bool | None = None
    pieces: Pieces | None = None
    normaliser: str = "none"

    def __post_init__(self) -> None:
        if self.dotless_i is None:
            object.__setattr__(self, "dotless_i", is_dotless_alphabet(self.symbols, self.case))
        twice = [symbol for symbol, count in Counter(self.symbols).items() if count > 1]
        if twice:
            raise ConfigError(f"`text.vocabulary` must have each symbol once, but has {twice[0]!r} twice")
        if self.pieces is not None and self.symbols != self.pieces.symbols:
            raise ConfigError("`text.vocabulary` must have the pieces of its model as symbols, but has others")
        if len(self.symbols) < 2 or not self._letters:
            raise ConfigError(f"`text.vocabulary` must have at least one letter, but is {_show(self.symbols)}")

    def __len__(self) -> int:
        """Count the symbols, the blank included: the width of the CTC head."""
        return len(self.symbols)

    @property
    def boundary(self) -> str:
        """The symbol of the space between words: after a word among letters, before it among pieces."""
        return WORD_BOUNDARY if self.pieces is None else WORD_START

    @cached_property
    def labels(self) -> frozenset[int]:
        """Indices that write something, the boundary among them; the blank and specials write nothing."""
        if self.pieces is not None:
            return self.pieces.written - {BLANK}
        return frozenset(k for k, symbol in enumerate(self.symbols) if k != BLANK and not _SPECIAL.fullmatch(symbol))

    @cached_property
    def has_words(self) -> bool:
        """Say whether texts of these labels have spaces between words; in Chinese or Thai nobody writes them."""
        if self.pieces is None:
            return WORD_BOUNDARY in self.symbols[1:]
        return not lacks_words(["".join(self._letters)])

    @cached_property
    def _long(self) -> dict[str, int]:
        """Index of each label of several letters, as it is spelt in a folded text."""
        found = [k for k in sorted(self.labels) if len(self.symbols[k]) > 1 and self.pieces is None]
        return {"".join(map(self.fold_symbol, self.symbols[k])): k for k in found}

    @cached_property
    def _labels_in_text(self) -> re.Pattern[str]:
        """What labels look like in a folded text, the longest first."""
        return re.compile("|".join(map(re.escape, sorted({*self._index, *self._long}, key=len, reverse=True))))

    @cached_property
    def _index(self) -> dict[str, int]:
        """Index of each character of a folded text that is a label; the blank is none.

        An imported vocabulary has its own spelling (a typographic apostrophe), which folded texts have not.
        """
        labels = {self.symbols[k]: k for k in sorted(self.labels) if len(self.symbols[k]) == 1}
        folded = {self.fold_symbol(symbol): k for symbol, k in labels.items()}
        return {spelling: k for spelling, k in folded.items() if len(spelling) == 1} | labels

    @cached_property
    def _own_spelling(self) -> dict[int, str]:
        """From folded letters to those of the pieces, where the two differ."""
        return {ord(c): self.symbols[k] for c, k in self._index.items() if c != self.symbols[k]}

    @cached_property
    def _label_table(self) -> dict[int, str]:
        return _Table(lambda c: c if c in self or c.isspace() else " " if is_silent(c) else "")

    @cached_property
    def _reference_table(self) -> dict[int, str]:
        return _Table(lambda c: " " if c not in self and is_silent(c) else c)

    @cached_property
    def _letters(self) -> frozenset[str]:
        return frozenset(self._index).union(*self._long) - {WORD_BOUNDARY, self.boundary}

    def can_write(self, word: str) -> bool:
        """Say whether all characters of a folded word are labels."""
        return self._letters.issuperset(word)

    @cached_property
    def _own(self) -> dict[str, str]:
        return find_own(self.symbols, self.case)

    def __contains__(self, character: object) -> bool:
        """Say whether a folded character is a label; the boundary's own character is none in a text."""
        return character in self._letters

    def cut(self, word: str) -> list[tuple[str, int | None]]:
        """Cut a folded word into labels: what each writes, and its index; None for a run that no label writes."""
        found: list[tuple[str, int | None]] = []
        if self.pieces is not None:
            for is_known, run in groupby(word, self.__contains__):
                part = "".join(run)
                ids = self.pieces.encode(part.translate(self._own_spelling)) if is_known else []
                found += [(self.symbols[k].removeprefix(WORD_START), k) for k in ids] or [(part, None)]
            return found
        index, end = self._index | self._long, 0
        for match in self._labels_in_text.finditer(word):
            if match[0] not in self._letters:
                continue
            found += [(word[end : match.start()], None)] if match.start() > end else []
            found.append((match[0], index[match[0]]))
            end = match.end()
        return found + ([(word[end:], None)] if end < len(word) else [])

    def normalise(self, text: str) -> str:
        """Bring a text to what the labels can say.

        Args:
            text: a transcript as people write it.

        Returns:
            Folded words with single spaces. Outside the vocabulary, punctuation separates words ("well-known" is two)
            and everything else is dropped; `unknown_letters` counts both.
        """
        return self._join(self.fold(text).translate(self._label_table))

    def fold(self, text: str) -> str:
        """Spell a text as references are spelt that it is compared with, whatever the spelling of the symbols."""
        if self.normaliser != "none":
            text = find_normaliser(self.normaliser, "text.normaliser")(text)
        return fold(text, self.case, bool(self.dotless_i), self._own)

    def fold_symbol(self, symbol: str) -> str:
        """Spell a label as `fold` spells it in a word."""
        return spell_symbol(symbol, self.case, bool(self.dotless_i), self._own) if len(symbol) == 1 else symbol

    def normalise_reference(self, text: str) -> str:
        """Bring a text to what it is scored against.

        Args:
            text: a transcript as people write it.

        Returns:
            Folded words with single spaces. Punctuation outside the vocabulary separates words, since nobody speaks
            it; letters and digits outside the vocabulary stay: the model cannot write them, and that is an error.
        """
        return self._join(self.fold(text).translate(self._reference_table))

    def _join(self, text: str) -> str:
        """Join words with single spaces, or with none where nobody writes them; apostrophes alone are no words."""
        return (" " if self.has_words else "").join(word for word in text.split() if word.strip("'"))

    def split(self, text: str) -> list[str]:
        """Split a decoded text into what a language model takes for words: labels, where there are no words."""
        return text.split() if self.has_words or self.pieces is not None else self._labels_in_text.findall(text)

    def encode(self, text: str) -> list[int]:
        """Turn a text into labels, normalised: pieces, or letters with the boundary after each word (fairseq's `.ltr`).

        Returns:
            Indices in 1 to V - 1; empty where nothing of the text is in the vocabulary. `decode` gives
            `normalise(text)` back, in the spelling of the symbols.
        """
        text = self.normalise(text)
        if self.pieces is not None:
            return self.pieces.encode(text.translate(self._own_spelling))
        if not text:
            return []
        spelt = (text + " ").replace(" ", WORD_BOUNDARY) if self.has_words else text
        index = self._index | self._long
        return [index[label] for label in self._labels_in_text.findall(spelt)]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn labels into text.

        Args:
            ids: indices after the CTC collapse, so repeats are meant; blanks and specials are skipped.

        Returns:
            Words with single spaces.
        """
        text = "".join(self.symbols[k] for k in ids if k in self.labels)
        return " ".join(text.replace(self.boundary, " ").split())

    def unknown_letters(self, texts: Iterable[str]) -> Counter[str]:
        """Count the characters, white space apart, that are not in the vocabulary, after folding."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(c for c in self.fold(text) if c not in self and not c.isspace())
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Give the form that a checkpoint's `config.json` holds."""
        stored = {"symbols": list(self.symbols), "case": self.case, "keep": self.keep, "dotless_i": self.dotless_i}
        stored["normaliser"] = self.normaliser
        if self.pieces is not None:
            stored["pieces"] = base64.b64encode(self.pieces.to_bytes()).decode()
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Vocabulary:
        """Rebuild a vocabulary from `to_dict`'s form.

        Raises:
            CheckpointError: it is not that form.
        """
        symbols, case, keep = stored.get("symbols"), stored.get("case"), stored.get("keep")
        # Before there was this field, capitals were made of i and ı alike.
        dotless_i = stored.get("dotless_i", False if case == "upper" else None)
        whole = isinstance(symbols, list) and case in ("upper", "lower", "keep") and isinstance(keep, str)
        whole = whole and (dotless_i is None or isinstance(dotless_i, bool))
        normaliser = stored.get("normaliser", "none")
        whole = whole and isinstance(stored.get("pieces", ""), str) and normaliser in NORMALISERS
        if not whole or not all(isinstance(symbol, str) for symbol in symbols or ()):
            must = "hold a vocabulary of symbols, case and keep"
            raise CheckpointError(f"`checkpoint` must {must}, but its vocabulary is {_show(stored.values())}")
        pieces = None
        if "pieces" in stored:
            with parsing("`checkpoint`", "hold a sentencepiece model as pieces", CheckpointError, "its vocabulary"):
                pieces = Pieces.from_bytes(base64.b64decode(stored["pieces"], validate=True))
        return cls(tuple(symbols or ()), str(case), str(keep), dotless_i, pieces, str(normaliser))


def find_case(symbols: Iterable[str]) -> str:
    """Find which case of letters the labels have: `upper`, `lower`, or `keep` for both or neither.

    A letter without another case of one letter (ß) has no say, and one in ten may be odd.
    """
    letters = [symbol for symbol in symbols if len(symbol) == 1]
    upper = sum(letter != letter.lower() for letter in letters if len(letter.lower()) == 1)
    lower = sum(letter != letter.upper() for letter in letters if len(letter.upper()) == 1)
    if upper and lower <= _ODD_SHARE * upper:
        return "upper"
    return "lower" if lower and upper <= _ODD_SHARE * lower else "keep"


def build_vocabulary(config: TextConfig, texts: Iterable[str], init: Vocabulary | None = None) -> Vocabulary:
    """Make the labels that `text.*` asks for.

    Args:
        config: `fairseq` gives its 32 symbols in its order; `data` gives the blank, the boundary and the letters,
            apostrophes and joiners of `texts`, sorted; `init` gives those of `init`. The characters of `text.keep`
            follow. `bpe` and `unigram` give pieces of what `data` would give.
        texts: transcripts of the training data; read for `data` and pieces alone.
        init: labels of the recogniser that training begins with, if it is one.

    Raises:
        ConfigError: `text.case` does not fit the vocabulary, `text.keep` has what cannot be a label, there is no
            `init` for `text.vocabulary=init`,
            `text.normaliser` is another than its or not installed, or the texts do not give `text.num_pieces` pieces.
        DataError: the transcripts have no letters.
    """
    if config.vocabulary == "init":
        return _extend(init, config)
    texts = list(texts) if config.vocabulary != "fairseq" else []
    if config.normaliser != "none":
        texts = [find_normaliser(config.normaliser, "text.normaliser")(text) for text in texts]
    kept = unicodedata.normalize("NFC", read_keep(config.keep))
    dotless_i, own = has_dotless_i(texts or [kept]), find_own(kept, config.case)
    keep = {spelling for c in kept for spelling in read_label(c, spell_symbol(c, config.case, dotless_i, own))}
    if config.vocabulary != "fairseq":
        letters = _find_letters(fold(text, config.case, dotless_i, own) for text in texts)
        symbols: tuple[str, ...] = ("<s>", *letters) if lacks_words(texts) else ("<s>", WORD_BOUNDARY, *letters)
    else:
        if config.case != "upper":
            raise ConfigError(f"`text.case` must be upper with text.vocabulary=fairseq, but is {config.case!r}")
        symbols = FAIRSEQ_SYMBOLS
    extra = sorted(keep - set(symbols))
    vocabulary = Vocabulary((*symbols, *extra), config.case, "".join(extra), dotless_i, None, config.normaliser)
    if config.vocabulary not in KINDS_OF_PIECES:
        return vocabulary
    letters = [symbol for symbol in vocabulary.symbols[1:] if symbol != WORD_BOUNDARY]
    pieces = train_pieces(map(vocabulary.normalise, texts), config.vocabulary, config.num_pieces, letters)
    return replace(vocabulary, symbols=pieces.symbols, pieces=pieces)


def _extend(init: Vocabulary | None, config: TextConfig) -> Vocabulary:
    """Add the characters of `text.keep` to the labels of a recogniser."""
    if init is None:
        raise ConfigError("`text.vocabulary` must be another unless `init` is a recogniser, but is init")
    if config.normaliser not in ("none", init.normaliser):
        must = f"{init.normaliser} with text.vocabulary=init, as that recogniser was trained"
        raise ConfigError(f"`text.normaliser` must be {must}, but is {config.normaliser}")
    kept = unicodedata.normalize("NFC", read_keep(config.keep))
    if kept and init.pieces is not None:
        raise ConfigError(f"`text.keep` must be empty where the labels of `init` are pieces, but is {config.keep[:80]}")
    labels = {spelling for c in kept for spelling in read_label(c, init.fold_symbol(c))}
    extra = "".join(sorted(label for label in labels if label not in init))
    return replace(init, symbols=(*init.symbols, *extra), keep=init.keep + extra) if extra else init


def _show(symbols: Iterable[object]) -> str:
    """Show the first of many symbols in a message."""
    shown = [f"{symbol!r:.20}" for symbol in islice(symbols, 11)]
    return ", ".join(shown[:10]) + (" …" if len(shown) > 10 else "")


def _find_letters(texts: Iterable[str]) -> list[str]:
    """Sort the letters, combining marks, apostrophes and joiners that occur in folded texts."""
    seen = set().union(*texts)
    letters = [c for c in seen if c == "'" or c in JOINERS or unicodedata.category(c)[0] in "LM"]
    if not any(c.isalpha() for c in letters):
        raise DataError("`data.train` must have transcripts with letters for text.vocabulary=data, but has none")
    return sorted(letters)
