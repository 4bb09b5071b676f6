"""Estimate an n-gram from text: interpolated modified Kneser-Ney (Chen and Goodman 1999, §3), pruned by choice.

Words and n-grams are numbers in arrays, so that ten million words take about a gigabyte. What is larger is for KenLM's
`lmplz` to count; its ARPA files are read alike.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechssl.errors import DataError
from speechssl.inference.decoding.ngram import END, NEVER, SPECIALS, START, UNKNOWN
from speechssl.inference.decoding.ngram_packed import FloatArray, IntArray, Level, PackedNgram, SmallIntArray

BoolArray = npt.NDArray[np.bool_]
Discounts = tuple[float, float, float]

FALLBACK: Discounts = (0.5, 1.0, 1.5)
"""Discounts where a text is too small or too regular to estimate them (KenLM's `--discount_fallback`)."""

_SIGNS = (UNKNOWN, START)
"""The first two numbers of words."""


@dataclass
class _Counted:
    """The n-grams of one length, numbered by where they were seen first.

    Attributes:
        prefixes, suffixes: number of each without its last and without its first word.
        words: number of its last word.
        counts: how often it was seen.
        is_start: whether it begins a sentence.
    """

    prefixes: SmallIntArray
    suffixes: SmallIntArray
    words: SmallIntArray
    counts: IntArray
    is_start: BoolArray


def train_ngram(texts: Iterable[str], order: int = 4, prune: Sequence[int] = ()) -> PackedNgram:
    """Estimate a model of words.

    Every word of the texts is in its vocabulary, and `<unk>` has what unigrams leave to unseen words.

    Args:
        texts: sentences, words with white space between them, in the spelling that is to be scored.
        order: words of the longest n-gram.
        prune: an n-gram of n words that was seen so many times or less is left out, and what it had goes to the
            back-off of its context, as KenLM's `lmplz --prune` does: 0 for words, then never less than before; the
            last number stands for longer ones too. Empty: nothing is left out.

    Returns:
        A model in which the probabilities of each context sum to 1.

    Raises:
        DataError: no text has a word, or one has a word such as `<s>`.
    """
    assert order >= 1, order
    assert not prune or (prune[0] == 0 and list(prune) == sorted(prune)), prune
    words, tokens = _number_words(texts)
    levels: list[Level] = []
    counted = _count(tokens, order, len(words))
    del tokens
    lower, is_kept = np.empty(0), []
    for n in range(order):
        grams = counted.pop(0)
        counts = _adjust(grams, counted[0] if counted else None)
        is_kept.append(grams.counts > (prune[min(n, len(prune) - 1)] if prune and n else -1))
        if not n:
            lower, level = _estimate_words(grams, counts)
        else:
            lower, level, levels[-1].backoffs[:] = _estimate_longer(grams, counts, lower, is_kept[-1])
        levels.append(level)
    return PackedNgram(words, _leave_out(levels, is_kept) if any(prune) else levels)


def estimate_discounts(counts: IntArray) -> Discounts:
    """Estimate what is taken from n-grams seen once, twice, and more often (Chen and Goodman 1999, eq. 26).

    Args:
        counts: adjusted counts of the n-grams of one length.

    Returns:
        Each between 0 and the count that it is taken from; `FALLBACK` where a count of counts is 0 or one comes out
        of that range.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 < d < k for k, d in enumerate(found, 1)) else FALLBACK


def _number_words(texts: Iterable[str]) -> tuple[list[str], SmallIntArray]:
    """Number the words by where they come first; give them, and the texts in numbers with `<s>` and `</s>` around."""
    numbers = {sign: number for number, sign in enumerate(_SIGNS)}
    tokens = array("i")
    for text in texts:
        words = text.split()
        if not words:
            continue
        if special := SPECIALS.intersection(words):
            raise DataError(f"a text must be words, but one has the sign {min(special)}: {text[:60]!r}")
        tokens.extend([numbers.setdefault(word, len(numbers)) for word in (START, *words, END)])
    if not tokens:
        raise DataError("a text must have words, but there are none")
    return list(numbers), np.frombuffer(tokens, dtype=np.int32)


def _count(tokens: SmallIntArray, order: int, num_words: int) -> list[_Counted]:
    """Count the n-grams of each length. Their numbers at each place of the text make those of the next length."""
    start = _SIGNS.index(START)
    none = np.zeros(num_words, dtype=np.int32)
    all_words = np.arange(num_words, dtype=np.int32)
    levels = [_Counted(none, none, all_words, np.bincount(tokens, minlength=num_words), all_words == start)]
    numbers = tokens
    for n in range(2, order + 1):
        places = np.flatnonzero(numbers[: max(len(tokens) - n + 1, 0)] >= 0)
        places = places[tokens[places + n - 1] != start]
        keys = numbers[places].astype(np.int64) * num_words + tokens[places + n - 1]
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        is_new = np.ones(len(keys), dtype=bool)
        is_new[1:] = keys[1:] != keys[:-1]
        del keys
        groups = (np.cumsum(is_new) - 1).astype(np.int32)
        # Numbered in the order of the text: the sums below are then the same whatever counts, to the last bit.
        firsts = by_key[is_new]
        by_place = np.argsort(firsts)
        ranks = np.empty(len(firsts), dtype=np.int32)
        ranks[by_place] = np.arange(len(firsts), dtype=np.int32)
        counts, at = np.bincount(groups)[by_place], places[firsts[by_place]]
        prefixes = numbers[at]
        grams = _Counted(prefixes, numbers[at + 1], tokens[at + n - 1], counts, levels[-1].is_start[prefixes])
        levels.append(grams)
        numbers = np.full(len(tokens), -1, dtype=np.int32)
        numbers[places[by_key]] = ranks[groups]
    return levels


def _adjust(grams: _Counted, longer: _Counted | None) -> IntArray:
    """Replace the counts of shorter n-grams by how many words they were seen after (Kneser and Ney 1995).

    The longest keep their counts, and so do those that begin a sentence, which nothing comes before.
    """
    if longer is None:
        return grams.counts
    kinds = np.bincount(longer.suffixes, minlength=len(grams.counts))
    return np.where(grams.is_start, grams.counts, kinds)


def _estimate_words(grams: _Counted, counts: IntArray) -> tuple[FloatArray, Level]:
    """Estimate the words alone; nothing ever predicts `<s>`, and `<unk>` gets what is left."""
    counts = counts[len(_SIGNS) :]
    discounts = _list_discounts(counts)
    total = float(counts.sum())
    # One after the other, as the contexts of longer n-grams are summed.
    freed = float(np.bincount(np.zeros(len(counts), dtype=np.int64), weights=discounts)[0])
    # `</s>`, `<unk>` and the words can follow; `<s>` cannot.
    uniform = 1 / (len(counts) + 1)
    unknown = max(freed / total * uniform, 10**NEVER)
    probs = np.concatenate([[unknown, 10**NEVER], (counts - discounts) / total + freed / total * uniform])
    log_probs = _log10(probs)
    log_probs[_SIGNS.index(START)] = NEVER
    return probs, Level(grams.prefixes, grams.words, log_probs, np.full(len(probs), np.nan))


def _estimate_longer(
    grams: _Counted, counts: IntArray, lower: FloatArray, is_kept: BoolArray
) -> tuple[FloatArray, Level, FloatArray]:
    """Estimate n-grams from the probabilities of those one word shorter, and the back-off weights of these."""
    discounts = np.where(is_kept, _list_discounts(counts), counts)
    totals = np.bincount(grams.prefixes, weights=counts, minlength=len(lower))
    freed = np.bincount(grams.prefixes, weights=discounts, minlength=len(lower))
    seen = totals > 0
    shares = np.divide(freed, totals, out=np.full(len(lower), np.nan), where=seen)
    probs = (counts - discounts) / totals[grams.prefixes] + shares[grams.prefixes] * lower[grams.suffixes]
    backoffs = np.full(len(lower), np.nan)
    backoffs[seen] = _log10(np.maximum(shares[seen], 10**NEVER))
    return probs, Level(grams.prefixes, grams.words, _log10(probs), np.full(len(probs), np.nan)), backoffs


def _leave_out(levels: list[Level], is_kept: list[BoolArray]) -> list[Level]:
    """Leave out n-grams. All that those begin with which are kept is kept too, since it was seen as often or more."""
    kept: list[Level] = []
    numbers = np.zeros(len(levels[0].words), dtype=np.int32)
    for level, own in zip(levels, is_kept, strict=True):
        columns = (level.words[own], level.log_probs[own], level.backoffs[own])
        kept.append(Level(numbers[level.prefixes[own]], *columns))
        numbers = (np.cumsum(own) - 1).astype(np.int32)
    return kept


def _list_discounts(counts: IntArray) -> FloatArray:
    discounts: FloatArray = np.array(estimate_discounts(counts))[np.minimum(counts, 3) - 1]
    return discounts


def _log10(values: FloatArray) -> FloatArray:
    # Not NumPy's, which on some machines differs in the last bit.
    return np.fromiter(map(math.log10, values), dtype=np.float64, count=len(values))
