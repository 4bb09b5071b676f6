"""Estimate an n-gram from text: interpolated modified Kneser-Ney (Chen and Goodman 1999, §3), unpruned.

For texts that fit in memory, some millions of words. What is larger is for KenLM's `lmplz` to count; its ARPA files are
read alike.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from speechssl.errors import DataError
from speechssl.inference.decoding.ngram import END, NEVER, SPECIALS, START, UNKNOWN, Ngram

Gram = tuple[str, ...]
Discounts = tuple[float, float, float]

FALLBACK: Discounts = (0.5, 1.0, 1.5)
"""Discounts where a text is too small or too regular to estimate them (KenLM's `--discount_fallback`)."""


@dataclass
class _Context:
    """What followed a context: the sum of the counts, and the mass that discounts set free."""

    total: float = 0.0
    freed: float = 0.0


def train_ngram(texts: Iterable[str], order: int = 4) -> Ngram:
    """Estimate a model of words.

    Every word of the texts is in its vocabulary, and `<unk>` has what unigrams leave to unseen words.

    Args:
        texts: sentences, words with white space between them, in the spelling that is to be scored.
        order: words of the longest n-gram.

    Returns:
        A model in which the probabilities of each context sum to 1.

    Raises:
        DataError: no text has a word, or one has a word such as `<s>`.
    """
    assert order >= 1, order
    counts = _adjust(_count(texts, order))
    log_probs: dict[str, float] = {UNKNOWN: 0.0, START: NEVER}
    backoffs: dict[str, float] = {}
    # `</s>`, `<unk>` and the words can follow; `<s>` cannot.
    uniform = 1 / (len(counts[0]) + 1)
    lower: dict[Gram, float] = {}
    for grams in counts:
        discounts = estimate_discounts(grams)
        contexts = _gather(grams, discounts)
        probs = {
            gram: (count - _discount(count, discounts)) / contexts[gram[:-1]].total
            + contexts[gram[:-1]].freed / contexts[gram[:-1]].total * (lower[gram[1:]] if len(gram) > 1 else uniform)
            for gram, count in grams.items()
        }
        if not lower:
            log_probs[UNKNOWN] = math.log10(max(contexts[()].freed / contexts[()].total * uniform, 10**NEVER))
        log_probs |= {" ".join(gram): math.log10(prob) for gram, prob in probs.items()}
        for context, sums in contexts.items():
            if context:
                backoffs[" ".join(context)] = math.log10(max(sums.freed / sums.total, 10**NEVER))
        lower = probs
    sizes = [len(grams) + (2 if n == 0 else 0) for n, grams in enumerate(counts)]
    return Ngram(order, log_probs, backoffs, sizes)


def estimate_discounts(counts: Mapping[Gram, int]) -> Discounts:
    """Estimate what is taken from n-grams seen once, twice, and more often (Chen and Goodman 1999, eq. 26).

    Args:
        counts: adjusted counts of the n-grams of one length.

    Returns:
        Each between 0 and the count that it is taken from; `FALLBACK` where a count of counts is 0 or one comes out
        of that range.
    """
    seen = Counter(counts.values())
    n1, n2, n3, n4 = (seen[k] for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 < d < k for k, d in enumerate(found, 1)) else FALLBACK


def _count(texts: Iterable[str], order: int) -> list[Counter[Gram]]:
    """Count the n-grams of each length, `<s>` before and `</s>` after each sentence."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for text in texts:
        words = text.split()
        if not words:
            continue
        if special := SPECIALS & set(words):
            raise DataError(f"a text must be words, but one has the sign {min(special)}: {text[:60]!r}")
        padded = (START, *words, END)
        for n, grams in enumerate(counts, 1):
            grams.update(padded[k : k + n] for k in range(len(padded) - n + 1))
    if not counts[0]:
        raise DataError("a text must have words, but there are none")
    del counts[0][(START,)]
    return counts


def _adjust(counts: list[Counter[Gram]]) -> list[dict[Gram, int]]:
    """Replace the counts of shorter n-grams by how many words they were seen after (Kneser and Ney 1995).

    The longest keep their counts, and so do those that begin a sentence, which nothing comes before.
    """
    adjusted: list[dict[Gram, int]] = []
    for grams, longer in zip(counts, [*counts[1:], None], strict=True):
        if longer is None:
            adjusted.append(dict(grams))
            continue
        kinds = Counter(gram[1:] for gram in longer)
        adjusted.append({gram: count if gram[0] == START else kinds[gram] for gram, count in grams.items()})
    return adjusted


def _gather(grams: Mapping[Gram, int], discounts: Discounts) -> dict[Gram, _Context]:
    contexts: dict[Gram, _Context] = defaultdict(_Context)
    for gram, count in grams.items():
        context = contexts[gram[:-1]]
        context.total += count
        context.freed += _discount(count, discounts)
    return contexts


def _discount(count: int, discounts: Discounts) -> float:
    return discounts[min(count, 3) - 1]
