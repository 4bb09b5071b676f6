"""How letters are spelt: one code point a letter, one case, apostrophes told from quotes, nothing that is not seen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import chain

_DECORATION = re.compile(
    "[\u00ad\u034f\u061c\u0640\u07fa\u115f\u1160\u17b4\u17b5\u180a-\u180d\u180f\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""What changes the look, the direction or nothing: soft hyphens, tatweel and similar, variation selectors, word
joiners, byte-order marks, marks of direction, fillers (Unicode's Default_Ignorable_Code_Point without the joiners)."""

_UNSEEN_SPACES = str.maketrans({"\u200b": " ", "\u2800": " "})
"""The zero-width space, which is Khmer's, Lao's and Thai's space between words, and the blank of braille."""

JOINERS = frozenset("\u200c\u200d\u180e")
"""Unseen, but Persian, Sinhala, Mongolian and others spell with them inside of a word."""

_JOINERS_IN_A_ROW = re.compile("([\u200c\u200d\u180e])[\u200c\u200d\u180e]+")

_VIRAMA = 9
"""Unicode's combining class of the signs that take a vowel away; a joiner after one spells at the end of a word too."""

_EITHER = "'\u2019\uff07\u02bc\u02bb\u1fbd\u055a\u05f3"
"""Apostrophes inside of a word and at its edges (dogs', 'tis), unless two of them are quotes around words."""

_INSIDE = "\u2018\u201b`\u00b4\u2032"
"""Apostrophes inside of a word; at its edges quotes, accents and primes."""

_SPOKEN_SIGNS = frozenset("%&@#'")
"""What Unicode files under punctuation but people say, or spell with."""

_LOW_QUOTE = "\u201a"
"""Opens a quote in German, Polish and others."""

APOSTROPHES = frozenset(_EITHER + _INSIDE)

_MARKS = re.compile(f"[{_EITHER}{_INSIDE}{_LOW_QUOTE}]+")

_ELISIONS = re.compile(
    r"tisn?|twasn?|twere|twill|twould|em|im|er|n|till?|cause|cos|bout|round|neath|gainst|tween|[stkmrde]|\d.*"
)
"""What English and Dutch write with an apostrophe before it, which then opens no quote; digits too ('90s)."""

_UNWRITTEN = str.maketrans(
    {
        **{code: code - 0x1C90 + 0x10D0 for code in chain(range(0x1C90, 0x1CBB), range(0x1CBD, 0x1CC0))},
        **{code: code - 0xAB70 + 0x13A0 for code in range(0xAB70, 0xABC0)},
        **{code: code - 0x13F8 + 0x13F0 for code in range(0x13F8, 0x13FE)},
    }
)
"""From the case that is not used in running text to the usual one: Georgian Mtavruli, Cherokee small letters."""

_DOTS = re.compile("[iıİ]\u0307+")
"""An i with a second dot, as Python's lower case of İ is."""

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE")
"""How Unicode's names of letters begin in scripts that put no space between words."""

_MAX_ALPHABET = 40
"""Letters of the largest alphabet with ı (those of Turkic languages have at most 34), and some of loanwords."""

_SHARE_OF_I = 0.1
"""If at least this share of all i letters are ı or İ, then ı is a letter of its own; in Turkish it is a third."""


def fold(text: str, case: str, dotless_i: bool = False, own: Mapping[str, str] | None = None) -> str:
    """Spell the same letter the same way: NFC, one apostrophe, nothing unseen, one case.

    Args:
        text: any text.
        case: `upper`, `lower` or `keep`.
        dotless_i: i and ı are two letters with capitals of their own, İ and I; else all four are one letter.
        own: letters that are spelt so, whatever their case would be.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", _DECORATION.sub("", text).translate(_UNSEEN_SPACES))
        text = _drop_joiners(text)
    return change_case(_place_apostrophes(text), case, dotless_i, own)


def change_case(text: str, case: str, dotless_i: bool = False, own: Mapping[str, str] | None = None) -> str:
    """Bring letters to one case, as `fold` does; scripts with a case that nobody writes keep the other one."""
    if case != "keep" and text.isascii() and not dotless_i:
        return text.upper() if case == "upper" else text.lower()
    text = _DOTS.sub(lambda match: "İ" if match[0][0] == "İ" else "i", text)
    if case == "upper":
        text = text.replace("i", "İ") if dotless_i else text.replace("İ", "I")
        text = "".join(own.get(c) or c.upper() for c in text) if own else text.replace("ẞ", "ß").upper()
    elif case == "lower":
        text = text.replace("I", "ı") if dotless_i else text.replace("ı", "i")
        text = text.replace("İ", "i").lower()
    return unicodedata.normalize("NFC", text if case == "keep" else text.translate(_UNWRITTEN))


def spell_symbol(symbol: str, case: str, dotless_i: bool = False, own: Mapping[str, str] | None = None) -> str:
    """Spell a letter that stands alone, such as a label, as `fold` spells it inside of a word."""
    if symbol in APOSTROPHES:
        return "'"
    return symbol if symbol in JOINERS else change_case(_DECORATION.sub("", symbol), case, dotless_i, own)


def is_silent(character: str) -> bool:
    """Say whether a character is punctuation that nobody speaks; `'`, `%`, `&`, `@` and `#` are not."""
    if character == "|":  # the border of words in labels
        return True
    category = unicodedata.category(character)
    return (category.startswith("P") or category in ("Sk", "Cc")) and character not in _SPOKEN_SIGNS


def join_words(text: str) -> str:
    """Join words with single spaces; apostrophes alone are none."""
    return " ".join(word for word in text.split() if word.strip("'"))


def find_own(symbols: Iterable[str], case: str) -> dict[str, str]:
    """Find the labels that have no capital of one letter (ß, whose capital is SS), and how they are spelt."""
    if case != "upper":
        return {}
    labels = {symbol for symbol in symbols if len(symbol) == 1}
    own = {label: label for label in labels if len(label.upper()) > 1}
    if labels & {"ß", "ẞ"}:
        own |= dict.fromkeys(("ß", "ẞ"), "ß" if "ß" in labels else "ẞ")
    return own


def lacks_words(texts: Iterable[str]) -> bool:
    """Say whether texts have no word boundary: not one space, and most letters of a script that is written without."""
    unspaced = total = 0
    for text in texts:
        if len(text.split()) > 1:
            return False
        letters = [c for c in text if unicodedata.category(c)[0] == "L"]
        unspaced += sum(unicodedata.name(c, "").startswith(_UNSPACED) for c in letters)
        total += len(letters)
    return unspaced > total / 2


def has_dotless_i(texts: Iterable[str]) -> bool:
    """Say whether ı is a letter of its own in texts, as in Turkish; a name such as İstanbul does not make it one."""
    odd = total = 0
    for text in texts:
        count = text.count("ı") + text.count("İ") + text.count("I\u0307")
        odd, total = odd + count, total + text.count("i") + text.count("I") + count
    return odd > _SHARE_OF_I * total


def is_dotless_alphabet(symbols: Iterable[str], case: str) -> bool:
    """Say whether labels are those of a language in which ı is a letter: an alphabet with i, ı, and ğ or ş."""
    letters = {symbol for symbol in symbols if len(symbol) == 1 and symbol.isalpha()}
    pair = {"I", "İ"} if case == "upper" else {"i", "ı"}
    return pair <= letters and bool(letters & set("ğşĞŞ")) and len(letters) <= _MAX_ALPHABET


def _spells(character: str) -> bool:
    """Say whether a character is part of a word: a letter, a digit, or a mark on one; an apostrophe is a question."""
    if character in APOSTROPHES:
        return False
    return character.isalnum() or character in JOINERS or unicodedata.category(character)[0] == "M"


def _drop_joiners(text: str) -> str:
    """Drop the joiners that join nothing: at the edges of words, between signs, and all but the first of several."""
    if JOINERS.isdisjoint(text):
        return text
    text = _JOINERS_IN_A_ROW.sub(r"\1", text)
    return "".join(c for k, c in enumerate(text) if c not in JOINERS or _joins(text[k - 1 : k], text[k + 1 : k + 2]))


def _joins(before: str, after: str) -> bool:
    if not before or not _spells(before):
        return False
    return unicodedata.combining(before) == _VIRAMA or (bool(after) and _spells(after))


def _place_apostrophes(text: str) -> str:
    """Make `'` of each apostrophe and a space of each single quote; what they are, their place in the word tells.

    Between two letters, a mark is an apostrophe. Where none of its neighbours is a letter, it is a quote, and so are
    two in a row. At the edges of words, two marks around words are quotes; others are apostrophes where their kind can
    be one there. What is folded already stays as it is, so that texts and what is recognised from them compare.
    """
    if not _MARKS.search(text):
        return text
    while (placed := _Placing(text).run()) != text:
        text = placed
    return placed


class _Placing:
    """One pass over the apostrophes of a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.letters = list(text)
        self.openings: list[int] = []
        self.closings: list[int] = []

    def run(self) -> str:
        for match in _MARKS.finditer(self.text):
            self._sort(match.start(), match.end())
        for number, opening in enumerate(self.openings):
            until = self.openings[number + 1] if number + 1 < len(self.openings) else len(self.text)
            self._pair(opening, until)
        return "".join(self.letters)

    def _sort(self, start: int, end: int) -> None:
        """Tell by the neighbours what a mark is; at an edge, take it for lone until its other half is found."""
        before = start > 0 and _spells(self.text[start - 1])
        after = end < len(self.text) and _spells(self.text[end])
        mark, is_single = self.text[start], end == start + 1
        allowed = before or after if mark in _EITHER else before and after and mark != _LOW_QUOTE
        self.letters[start:end] = ["'" if is_single and allowed else " "] * (end - start)
        if is_single and after and not before:
            self.openings += [] if self._is_elision(start) else [start]
        elif not after and start > 0 and not self.text[start - 1].isspace():
            self.closings.append(end - 1)

    def _is_elision(self, start: int) -> bool:
        """Say whether the word after a mark is one that an apostrophe shortens; a quote around one word is none."""
        end = start + 1
        while end < len(self.text) and _spells(self.text[end]):
            end += 1
        word = self.text[start + 1 : end].lower()
        is_closed = _MARKS.match(self.text, end) is not None
        return word == "n" or (not is_closed and _ELISIONS.fullmatch(word) is not None)

    def _pair(self, opening: int, until: int) -> None:
        """Find the other half of a quote before the next one opens: rather after another letter than s (dogs')."""
        found = [k for k in self.closings if opening < k < until]
        if found:
            closing = next((k for k in found if self.text[k - 1] not in "sS"), found[0])
            self.letters[opening] = self.letters[closing] = " "
            self.closings.remove(closing)
