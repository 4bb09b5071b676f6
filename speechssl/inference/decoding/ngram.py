"""Back-off n-gram language models of words: read from ARPA files, written to them, and asked for scores."""

from __future__ import annotations

import gzip
import io
import math
import re
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from speechssl.errors import DataError
from speechssl.parsing import open_regular, parsing

Spell = Callable[[str], str]
"""From a word to how it is spelt elsewhere."""

Row = tuple[float, str, float | None]
"""log10 of a probability, the n-gram, and log10 of its back-off weight where it has one."""

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIALS = frozenset({START, END, UNKNOWN})
UNKNOWN_IN_CAPITALS = "<UNK>"
"""As some toolkits spell it; KenLM takes both."""

MAX_LINE_BYTES = 16_384
"""Longest line of an ARPA file."""

MAX_ORDER = 16
"""Words of the longest n-gram of an ARPA file; KenLM is built for 6."""

MAX_IDLE_LINES = 1000
"""Lines of an ARPA file that say nothing: empty ones, and those before and after."""

MAX_EXPANSION, MAX_FREE_BYTES = 30, 4 * 2**20
"""A compressed ARPA file may unpack to so many times its size, and to so many bytes in any case. Numbers that were
estimated do not compress more than 10 times."""

_GZIP, _KENLM = b"\x1f\x8b", b"mmap lm http://kheafield.com/code"
_ASK_FOR_ARPA = "give the ARPA file that it was built from (lmplz writes it, build_binary made this of it)"

NEVER = -99.0
"""What ARPA files write for log10 of 0: nothing ever predicts `<s>`."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts some texts.

    Attributes:
        perplexity: 10 to the mean of -log10 p, over words and ends of sentences, unknown words included.
        num_words: words, ends not counted.
        num_unknown: those that the model does not know, each scored as `<unk>`.
    """

    perplexity: float
    num_words: int
    num_unknown: int


@dataclass
class Ngram:
    """A back-off model: p(w | h) = p(h w) where that is listed, else backoff(h) · p(w | h without its first word).

    A context is a string of words with single spaces, the last `order` - 1 at most; '' is the empty one.

    Attributes:
        order: words of the longest n-gram.
        log_probs: n-gram → log10 of its last word's probability.
        backoffs: context → log10 of its back-off weight; 0 where it is not listed.
        unknown: log10 probability of a word that is not in the vocabulary: that of `<unk>`, or in a model without it
            that of its rarest word.
    """

    order: int
    log_probs: Mapping[str, float]
    backoffs: Mapping[str, float]
    counts: list[int]
    unknown: float = field(init=False)

    def __post_init__(self) -> None:
        unknown = self.log_probs.get(UNKNOWN)
        self.unknown = min((self.log_probs[w] for w in self.words), default=NEVER) if unknown is None else unknown

    def __contains__(self, word: str) -> bool:
        """Say whether a word is in the vocabulary."""
        return word in self.log_probs and word not in SPECIALS

    @property
    def words(self) -> list[str]:
        """The vocabulary, without `<s>`, `</s>` and `<unk>`."""
        return [name for name in self.log_probs if " " not in name and name not in SPECIALS]

    def sections(self) -> list[tuple[int, Iterator[Row]]]:
        """Give the n-grams of each length: how many, and their rows in an ARPA file."""
        names: list[list[str]] = [[] for _ in range(self.order)]
        for name in self.log_probs:
            names[name.count(" ")].append(name)
        return [(len(own), ((self.log_probs[x], x, self.backoffs.get(x)) for x in own)) for own in names]

    def score(self, context: str, word: str) -> float:
        """Give log10 p(word | context); a word that is not in the vocabulary has the probability of `<unk>`."""
        if word not in self.log_probs:
            if UNKNOWN not in self.log_probs:
                return self.unknown
            word = UNKNOWN
        total = 0.0
        while context:
            found = self.log_probs.get(f"{context} {word}")
            if found is not None:
                return total + found
            total += self.backoffs.get(context, 0.0)
            context = context.partition(" ")[2]
        return total + self.log_probs[word]

    def advance(self, context: str, word: str) -> str:
        """Give the context after a word."""
        known = word if word in self.log_probs else UNKNOWN
        return " ".join([*context.split(), known][-(self.order - 1) :]) if self.order > 1 else ""

    def start(self) -> str:
        """Give the context in which a sentence starts."""
        return self.advance("", START)

    def score_sentence(self, words: Sequence[str]) -> float:
        """Give log10 p(words, end of sentence)."""
        context, total = self.start(), 0.0
        for word in words:
            total += self.score(context, word)
            context = self.advance(context, word)
        return total + self.score(context, END)

    def compute_perplexity(self, texts: Iterable[str]) -> Perplexity:
        """Compute the perplexity of texts: sentences of words with spaces between them."""
        total, num_words, num_ends, num_unknown = 0.0, 0, 0, 0
        for text in texts:
            words = text.split()
            total += self.score_sentence(words)
            num_words, num_ends = num_words + len(words), num_ends + 1
            num_unknown += sum(word not in self for word in words)
        exponent = -total / max(num_words + num_ends, 1)
        # A model may give a word any small probability, and no number is greater than 1.8e308.
        perplexity = 10**exponent if exponent < sys.float_info.max_10_exp else math.inf
        return Perplexity(perplexity, num_words, num_unknown)


def load_arpa(path: str | Path, key: str = "decoding.lm", spell: Spell | None = None) -> Ngram:
    """Read an ARPA file, plain or compressed by gzip.

    Args:
        path: the file.
        key: named in errors.
        spell: brings a word to another spelling. Of n-grams that then read alike, or stand twice, the likeliest is
            kept: the sum of their probabilities would count a context twice.

    Raises:
        DataError: it is not there, is no whole ARPA file, or is a binary of KenLM.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"`{key}` must be an ARPA file, but {path} {problem}")
    with parsing(f"`{key}` ({path})", "an ARPA file"), open_regular(path) as file:
        start = file.read(len(_KENLM))
        if start == _KENLM:
            raise DataError(f"`{key}` must be an ARPA file, but {path} is a binary of KenLM: {_ASK_FOR_ARPA}")
        file.seek(0)
        return _Reader(_read_lines(file, is_compressed=start.startswith(_GZIP)), spell).read()


def save_arpa(model: Ngram, path: str | Path) -> None:
    """Write an ARPA file, compressed where the name ends in .gz; what is read back scores alike to 1e-6 a word.

    The file gets its name when it is whole.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    is_compressed = path.suffix == ".gz"
    sections = model.sections()
    with gzip.open(partial, "wt", encoding="utf-8") if is_compressed else partial.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={count}\n" for n, (count, _) in enumerate(sections, 1))
        for n, (_, rows) in enumerate(sections, 1):
            file.write(f"\n\\{n}-grams:\n")
            for log_prob, name, backoff in rows:
                tail = "" if backoff is None else f"\t{backoff:.7f}"
                file.write(f"{log_prob:.7f}\t{name}{tail}\n")
        file.write("\n\\end\\\n")
    partial.replace(path)


def _read_lines(file: BinaryIO, is_compressed: bool) -> Iterator[bytes]:
    """Read lines within the limits on their length, and on what may come out of a compressed file."""
    lines: BinaryIO = io.BufferedReader(gzip.GzipFile(fileobj=file)) if is_compressed else file
    total, allowed = 0, MAX_FREE_BYTES
    while line := lines.readline(MAX_LINE_BYTES + 1):
        total += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"it has a line of more than {MAX_LINE_BYTES} bytes")
        if is_compressed and total > allowed:
            allowed = MAX_FREE_BYTES + MAX_EXPANSION * file.tell()
            if total > allowed:
                raise ValueError(f"more than {MAX_EXPANSION} times its size comes out of it")
        yield line


class _Reader:
    """Reads the lines of one ARPA file; a `ValueError` says what is wrong with which line.

    Words end at tabs and plain spaces only: there are words with other spaces of Unicode in them.
    """

    def __init__(self, lines: Iterable[bytes], spell: Spell | None) -> None:
        self.lines = self._count(lines)
        self.spell = spell
        self.number = self.idle = 0
        self.header = ""
        self.log_probs: dict[str, float] = {}
        self.backoffs: dict[str, float] = {}
        self.spellings: dict[str, str] = {UNKNOWN_IN_CAPITALS: UNKNOWN}

    def read(self) -> Ngram:
        counts = self._read_counts()
        for n in range(1, len(counts) + 1):
            found = self._read_section(n, counts[n - 1])
            follows = f"\\{n + 1}-grams:" if n < len(counts) else "\\end\\"
            if found != counts[n - 1]:
                raise ValueError(f"its head announces {counts[n - 1]} {n}-grams, and it has {found}")
            if self.header != follows:
                raise ValueError(f"line {self.number} must be {follows}, and is {self.header[:40]!r}")
        # What follows says nothing, but a compressed file has its checksum at its end.
        for _ in self.lines:
            self._count_idle("lines after \\end\\")
        return Ngram(len(counts), self.log_probs, self.backoffs, counts)

    def _count(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            self.number += 1
            yield line

    def _count_idle(self, what: str, more: int = 0) -> None:
        """Bound what says nothing, of which a small compressed file can have millions of lines."""
        self.idle += 1
        if self.idle > MAX_IDLE_LINES + more:
            raise ValueError(f"it has more than {MAX_IDLE_LINES + more} {what}")

    def _read_counts(self) -> list[int]:
        """Read the head, up to the line that begins the 1-grams."""
        self._find_start()
        counts: list[int] = []
        for line in self.lines:
            text = line.strip().decode("utf-8")
            match = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d{1,18})", text, re.ASCII)
            if match and int(match[1][:9]) == len(counts) + 1 <= MAX_ORDER:
                counts.append(int(match[2]))
            elif text == "\\1-grams:" and counts:
                return counts
            elif text:
                raise ValueError(f"line {self.number} of its head is {text[:40]!r}")
            self._count_idle("empty lines in its head")
        raise ValueError("it ends in its head")

    def _find_start(self) -> None:
        for line in self.lines:
            if line.removeprefix(BOM_UTF8).strip() == b"\\data\\":
                return
            if self.number == 1 and line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                raise ValueError("it is in UTF-16, not in UTF-8")
            self._count_idle("lines before \\data\\")
        raise ValueError("it has no line \\data\\")

    def _read_section(self, n: int, announced: int) -> int:
        """Read the n-grams of one length, up to the line that begins the next section; count them."""
        found = 0
        for line in self.lines:
            fields = line.split()
            if not fields:
                self._count_idle("empty lines")
                continue
            if fields[0].startswith(b"\\"):
                self.header = fields[0].decode("utf-8")
                return found
            found += 1
            if found > announced:
                raise ValueError(f"its head announces {announced} {n}-grams, and it has more")
            if len(fields) not in (n + 1, n + 2):
                raise ValueError(f"line {self.number} is no {n}-gram: {_show(line)}")
            self._add(fields, n)
        raise ValueError(f"it ends in its {n}-grams, without \\end\\")

    def _add(self, fields: Sequence[bytes], n: int) -> None:
        name = b" ".join(fields[1 : n + 1]).decode("utf-8")
        try:
            log_prob, backoff = float(fields[0]), float(fields[-1]) if len(fields) == n + 2 else 0.0
        except ValueError:
            raise ValueError(
                f"line {self.number} has no number where one must be: {_show(b' '.join(fields))}"
            ) from None
        # SRILM writes -inf for the back-off of a context that lists every word.
        if math.isnan(log_prob) or log_prob > 0 or math.isnan(backoff) or backoff == math.inf:
            raise ValueError(f"line {self.number} has a probability above 1: {_show(b' '.join(fields))}")
        name = self._spell_word(name) if n == 1 else self._spell_words(name)
        before = self.log_probs.get(name)
        # The recipe of Hugging Face adds a copy of the line of `<s>` as a second `</s>`: the less likely one is right.
        if before is not None:
            self._count_idle("n-grams that stand twice", len(self.log_probs))
            if log_prob >= before if name == END else log_prob <= before:
                return
        self.log_probs[name] = log_prob
        if backoff:
            self.backoffs[name] = backoff
        elif before is not None:
            self.backoffs.pop(name, None)

    def _spell_word(self, word: str) -> str:
        """Spell a word, and remember it for longer n-grams where that changes it."""
        if self.spell is not None and word not in SPECIALS and word not in self.spellings:
            spelt = self.spell(word)
            if spelt != word:
                self.spellings[word] = spelt
        return self.spellings.get(word, word)

    def _spell_words(self, name: str) -> str:
        # One entry is that of `<UNK>`, which stands in every table.
        if len(self.spellings) == 1 and UNKNOWN_IN_CAPITALS not in name:
            return name
        return " ".join(self.spellings.get(word, word) for word in name.split(" "))


def _show(line: bytes) -> str:
    return repr(line.strip()[:40].decode("utf-8", "replace"))
