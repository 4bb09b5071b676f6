"""CTC labels: from transcripts to symbols and back.

A transcript goes through two steps. *Folding* spells the same letter the same way (`text.spelling`): Unicode NFC,
one apostrophe, one case. Then each character either is in the vocabulary or not. Outside it, a character is *silent*
(punctuation: it separates words and nobody speaks it) or *spoken* (a letter, a digit, `%`): labels lose both, a
reference that is scored loses only the silent ones, so that what a model cannot write counts against it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from speechssl.advice import spell
from speechssl.config.data import TextConfig
from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.text.spelling import JOINERS, find_own, fold, has_dotless_i, is_dotless_alphabet, spell_symbol

BLANK = 0
"""Index of the CTC blank, whatever its symbol is called."""

WORD_BOUNDARY = "|"
"""The symbol that stands for the space between words and, as in fairseq's labels, after the last one."""

FAIRSEQ_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""fairseq's dictionary for LibriSpeech: four specials, of which `<s>` is the blank, then letters by frequency."""

_ESCAPE = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}")

_ODD_SHARE = 0.1
"""An imported vocabulary still has one case if no more than this share of its letters are in the other one."""

_SPOKEN_SIGNS = frozenset("%&@#'")
"""What Unicode files under punctuation but people say, or spell with."""


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
        symbols: label of each index; 0 is the CTC blank, `|` the word boundary. A symbol of more than one character
            (`<pad>`) is never a label.
        case: `upper`, `lower` or `keep`: what folding does to letters.
        keep: the characters that `text.keep` added to the vocabulary.
        dotless_i: i and ı are two letters, as in Turkish; None: as the symbols say.

    Raises:
        ConfigError: a symbol comes twice, or there is no word boundary, or nothing but blank and boundary.
    """

    symbols: tuple[str, ...]
    case: str = "upper"
    keep: str = ""
    dotless_i: bool | None = None

    def __post_init__(self) -> None:
        if self.dotless_i is None:
            object.__setattr__(self, "dotless_i", is_dotless_alphabet(self.symbols, self.case))
        twice = [symbol for symbol, count in Counter(self.symbols).items() if count > 1]
        if twice:
            raise ConfigError(f"`text.vocabulary` must have each symbol once, but has {twice[0]!r} twice")
        if WORD_BOUNDARY not in self.symbols[1:]:
            shown = _show(self.symbols)
            raise ConfigError(f"`text.vocabulary` must have the boundary '|' after the blank, but is {shown}")
        if len(self.symbols) < 3:
            raise ConfigError(f"`text.vocabulary` must have at least one letter, but is {_show(self.symbols)}")

    def __len__(self) -> int:
        """Count the symbols, the blank included: the width of the CTC head."""
        return len(self.symbols)

    @cached_property
    def _index(self) -> dict[str, int]:
        """Index of each character of a folded text that is a label; the blank is none.

        An imported vocabulary has its own spelling (a typographic apostrophe), which folded texts have not.
        """
        labels = {symbol: k for k, symbol in enumerate(self.symbols) if k != BLANK and len(symbol) == 1}
        folded = {self.fold_symbol(symbol): k for symbol, k in labels.items()}
        return {spelling: k for spelling, k in folded.items() if len(spelling) == 1} | labels

    @cached_property
    def _label_table(self) -> dict[int, str]:
        return _Table(lambda c: c if c in self or c.isspace() else " " if is_silent(c) else "")

    @cached_property
    def _reference_table(self) -> dict[int, str]:
        return _Table(lambda c: " " if c not in self and is_silent(c) else c)

    @cached_property
    def _letters(self) -> frozenset[str]:
        return frozenset(self._index) - {WORD_BOUNDARY}

    def can_write(self, word: str) -> bool:
        """Say whether all characters of a folded word are labels."""
        return self._letters.issuperset(word)

    @cached_property
    def _own(self) -> dict[str, str]:
        return find_own(self.symbols, self.case)

    def __contains__(self, character: object) -> bool:
        """Say whether a folded character is a label; the boundary's own character is none in a text."""
        return character in self._letters

    def find_index(self, character: str) -> int:
        """Give the index of a folded character that is a label, or of the boundary.

        Raises:
            KeyError: it is none.
        """
        return self._index[character]

    def normalise(self, text: str) -> str:
        """Bring a text to what the labels can say.

        Args:
            text: a transcript as people write it.

        Returns:
            Folded words with single spaces. Outside the vocabulary, punctuation separates words ("well-known" is two)
            and everything else is dropped; `unknown_letters` counts both.
        """
        return _join_words(self.fold(text).translate(self._label_table))

    def fold(self, text: str) -> str:
        """Spell a text as references are spelt that it is compared with, whatever the spelling of the symbols."""
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
        return _join_words(self.fold(text).translate(self._reference_table))

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
            counts.update(c for c in self.fold(text) if c not in self and not c.isspace())
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Give the form that a checkpoint's `config.json` holds."""
        return {"symbols": list(self.symbols), "case": self.case, "keep": self.keep, "dotless_i": self.dotless_i}

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
        if not whole or not all(isinstance(symbol, str) for symbol in symbols or ()):
            must = "hold a vocabulary of symbols, case and keep"
            raise CheckpointError(f"`checkpoint` must {must}, but its vocabulary is {_show(stored.values())}")
        return cls(tuple(symbols or ()), str(case), str(keep), dotless_i)


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


def is_silent(character: str) -> bool:
    """Say whether a character is punctuation that nobody speaks; `'`, `%`, `&`, `@` and `#` are not."""
    if character == WORD_BOUNDARY:
        return True
    category = unicodedata.category(character)
    return (category.startswith("P") or category in ("Sk", "Cc")) and character not in _SPOKEN_SIGNS


def build_vocabulary(config: TextConfig, texts: Iterable[str], init: Vocabulary | None = None) -> Vocabulary:
    """Make the labels that `text.*` asks for.

    Args:
        config: `fairseq` gives its 32 symbols in its order; `data` gives the blank, the boundary and the letters,
            apostrophes and joiners of `texts`, sorted; `init` gives those of `init`. The characters of `text.keep`
            follow.
        texts: transcripts of the training data; read for `data` alone.
        init: labels of the recogniser that training begins with, if it is one.

    Raises:
        ConfigError: `text.case` does not fit the vocabulary, `text.keep` has what cannot be a label, or there is no
            `init` for `text.vocabulary=init`.
        DataError: the transcripts have no letters.
    """
    if config.vocabulary == "init":
        return _extend(init, config)
    texts = list(texts) if config.vocabulary == "data" else []
    kept = unicodedata.normalize("NFC", read_keep(config.keep))
    dotless_i, own = has_dotless_i(texts or [kept]), find_own(kept, config.case)
    keep = {spelling for c in kept for spelling in _read_label(c, spell_symbol(c, config.case, dotless_i, own))}
    if config.vocabulary == "data":
        letters = _find_letters(fold(text, config.case, dotless_i, own) for text in texts)
        symbols: tuple[str, ...] = ("<s>", WORD_BOUNDARY, *letters)
    else:
        if config.case != "upper":
            raise ConfigError(f"`text.case` must be upper with text.vocabulary=fairseq, but is {config.case!r}")
        symbols = FAIRSEQ_SYMBOLS
    extra = sorted(keep - set(symbols))
    return Vocabulary((*symbols, *extra), config.case, "".join(extra), dotless_i)


def _extend(init: Vocabulary | None, config: TextConfig) -> Vocabulary:
    """Add the characters of `text.keep` to the labels of a recogniser."""
    if init is None:
        raise ConfigError("`text.vocabulary` must be fairseq or data unless `init` is a recogniser, but is init")
    kept = unicodedata.normalize("NFC", read_keep(config.keep))
    labels = {spelling for c in kept for spelling in _read_label(c, init.fold_symbol(c))}
    extra = "".join(sorted(label for label in labels if label not in init))
    return replace(init, symbols=(*init.symbols, *extra), keep=init.keep + extra) if extra else init


def read_keep(keep: str) -> str:
    r"""Read `text.keep`, in which `\xHH`, `\uHHHH` and `\UHHHHHHHH` stand for one character, as in Python.

    Raises:
        ConfigError: there is no such character.
    """
    try:
        return _ESCAPE.sub(lambda match: chr(int(match[0][2:], 16)), keep)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"`text.keep` must be characters of Unicode, but is {keep[:80]}") from error


def write_keep(letters: Iterable[str]) -> str:
    r"""Write `text.keep=…` so that a shell and the grammar of overrides read it as these letters.

    What cannot be seen, or means something to one of the two, is an escape such as `\u200c`.
    """
    # A mark behind a letter would be one with it.
    ordered = sorted(letters, key=lambda c: not unicodedata.combining(c))
    return spell("text.keep", "".join(c if _is_plain(c) else _escape(c) for c in ordered))


def name_letters(counts: Mapping[str, int] | Iterable[str], most: int = 20) -> str:
    """List the first of some characters, with how often each was seen where that is given.

    What cannot be seen by itself is named by its number.
    """
    times = {c: f" {n} ×" for c, n in counts.items()} if isinstance(counts, Mapping) else dict.fromkeys(counts, "")
    named = [(f"{c!r}" if _is_plain(c) or c.isascii() else f"U+{ord(c):04X}") + n for c, n in times.items()]
    more = f" and {len(named) - most:,} others" if len(named) > most else ""
    return ", ".join(named[:most]) + more


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_plain(character: str) -> bool:
    """Say whether a character is seen by itself and means nothing to a shell or a grammar in double quotes."""
    return unicodedata.category(character)[0] in "LNSP" and character not in "'\"\\${}`!"


def _read_label(character: str, spelling: str) -> str:
    """Check that a character of `text.keep` can be a label, and give how it is spelt."""
    if not spelling:
        code = f"U+{ord(character):04X}"
        raise ConfigError(f"`text.keep` must be what spells words, but {code} is left out of every text")
    if spelling.isspace() or spelling == WORD_BOUNDARY or unicodedata.category(character) == "Cs":
        raise ConfigError(f"`text.keep` must be characters other than spaces and '|', but has {character!r}")
    return spelling


def _show(symbols: Iterable[object]) -> str:
    """Show the first of many symbols in a message."""
    shown = [f"{symbol!r:.20}" for symbol in islice(symbols, 11)]
    return ", ".join(shown[:10]) + (" …" if len(shown) > 10 else "")


def _join_words(text: str) -> str:
    """Join words with single spaces; apostrophes alone are none."""
    return " ".join(word for word in text.split() if word.strip("'"))


def _find_letters(texts: Iterable[str]) -> list[str]:
    """Sort the letters, combining marks, apostrophes and joiners that occur in folded texts."""
    seen = set().union(*texts)
    letters = [c for c in seen if c == "'" or c in JOINERS or unicodedata.category(c)[0] in "LM"]
    if not any(c.isalpha() for c in letters):
        raise DataError("`data.train` must have transcripts with letters for text.vocabulary=data, but has none")
    return sorted(letters)
