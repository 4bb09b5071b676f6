"""Back-off n-gram language models of words: read from ARPA files, written to them, and asked for scores."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from speechssl.errors import DataError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIALS = frozenset({START, END, UNKNOWN})
UNKNOWN_IN_CAPITALS = "<UNK>"
"""As some toolkits spell it; KenLM takes both."""

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
    log_probs: dict[str, float]
    backoffs: dict[str, float]
    counts: list[int]
    unknown: float = field(init=False)

    def __post_init__(self) -> None:
        words = [p for name, p in self.log_probs.items() if " " not in name and name not in SPECIALS]
        self.unknown = self.log_probs.get(UNKNOWN, min(words, default=NEVER))

    def __contains__(self, word: str) -> bool:
        """Say whether a word is in the vocabulary."""
        return word in self.log_probs and word not in SPECIALS

    @property
    def words(self) -> list[str]:
        """The vocabulary, without `<s>`, `</s>` and `<unk>`."""
        return [name for name in self.log_probs if " " not in name and name not in SPECIALS]

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
        return Perplexity(10 ** (-total / max(num_words + num_ends, 1)), num_words, num_unknown)


def load_arpa(path: str | Path, key: str = "decoding.lm") -> Ngram:
    """Read an ARPA file, plain or `.gz`.

    Args:
        path: the file.
        key: named in errors.

    Raises:
        DataError: it is not there, or is no whole ARPA file.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"`{key}` must be an ARPA file, but {path} {problem}")
    try:
        with _open(path) as file:
            return _Reader(file).read()
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"`{key}` must be an ARPA file, but {path} is none: {error}") from error


def save_arpa(model: Ngram, path: str | Path) -> None:
    """Write an ARPA file, compressed where the name ends in .gz; what is read back scores alike to 1e-6 a word.

    The file gets its name when it is whole.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    sections: list[list[str]] = [[] for _ in range(model.order)]
    for name, log_prob in model.log_probs.items():
        backoff = model.backoffs.get(name)
        tail = "" if backoff is None else f"\t{backoff:.7f}"
        sections[name.count(" ")].append(f"{log_prob:.7f}\t{name}{tail}\n")
    with _create(partial, is_compressed=path.suffix == ".gz") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(rows)}\n" for n, rows in enumerate(sections, 1))
        for n, rows in enumerate(sections, 1):
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(rows)
        file.write("\n\\end\\\n")
    partial.replace(path)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _create(path: Path, is_compressed: bool) -> TextIO:
    if is_compressed:
        return gzip.open(path, "wt", encoding="utf-8")
    return path.open("w", encoding="utf-8")


class _Reader:
    """Reads the lines of one ARPA file; a `ValueError` says what is wrong with which line."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = self._count(lines)
        self.number = 0
        self.log_probs: dict[str, float] = {}
        self.backoffs: dict[str, float] = {}

    def read(self) -> Ngram:
        counts = self._read_counts()
        for n in range(1, len(counts) + 1):
            found = self._read_section(n)
            if found != counts[n - 1]:
                raise ValueError(f"its head announces {counts[n - 1]} {n}-grams, and it has {found}")
        return Ngram(len(counts), self.log_probs, self.backoffs, counts)

    def _count(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self.number += 1
            yield line

    def _read_counts(self) -> list[int]:
        """Read the head, up to the line that begins the 1-grams."""
        if not any(line.strip() == "\\data\\" for line in self.lines):
            raise ValueError("it has no line \\data\\")
        counts: list[int] = []
        for line in self.lines:
            match = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line.strip())
            if match and int(match[1]) == len(counts) + 1:
                counts.append(int(match[2]))
            elif line.strip() == "\\1-grams:" and counts:
                return counts
            elif line.strip():
                raise ValueError(f"line {self.number} of its head is {line.strip()[:40]!r}")
        raise ValueError("it ends in its head")

    def _read_section(self, n: int) -> int:
        """Read the n-grams of one length, up to the line that begins the next section; count them."""
        before = len(self.log_probs)
        for line in self.lines:
            fields = line.split()
            if not fields:
                continue
            if fields[0].startswith("\\"):
                # The next section, or the end; which of them it must be, the counts tell.
                return len(self.log_probs) - before
            if len(fields) not in (n + 1, n + 2):
                raise ValueError(f"line {self.number} is no {n}-gram: {line.strip()[:40]!r}")
            self._add(fields, n)
        raise ValueError(f"it ends in its {n}-grams, without \\end\\")

    def _add(self, fields: Sequence[str], n: int) -> None:
        name = " ".join(UNKNOWN if word == UNKNOWN_IN_CAPITALS else word for word in fields[1 : n + 1])
        try:
            log_prob, backoff = float(fields[0]), float(fields[-1]) if len(fields) == n + 2 else 0.0
        except ValueError:
            raise ValueError(f"line {self.number} has no number where one must be: {' '.join(fields)[:40]!r}") from None
        # SRILM writes -inf for the back-off of a context that lists every word.
        if math.isnan(log_prob) or log_prob > 0 or math.isnan(backoff):
            raise ValueError(f"line {self.number} has a probability above 1: {' '.join(fields)[:40]!r}")
        self.log_probs[name] = log_prob
        if backoff:
            self.backoffs[name] = backoff
