"""From an utterance's logits to its text, how sure that is, and when each word was said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.inference.alignment import align_text
from speechssl.inference.decoding.beam import Decode
from speechssl.inference.decoding.lm_fit import Fit
from speechssl.inference.stretches import cut_stretches
from speechssl.inference.timed import Span
from speechssl.text.vocabulary import BLANK, Vocabulary


class Reading(NamedTuple):
    """What was recognised of an utterance.

    Attributes:
        text: empty where nothing was.
        confidence: how sure the recogniser is of it (`measure_confidence`); 0 where nobody asked.
        words, characters: in time; none where nobody asked.
        counts: what the decoder counted meanwhile (`Fit.counts`).
    """

    text: str
    confidence: float = 0.0
    words: tuple[Span, ...] = ()
    characters: tuple[Span, ...] = ()
    counts: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Reader:
    """Reads utterances off their logits; one that is longer than a minute stretch by stretch.

    Attributes:
        vocabulary: V symbols.
        decode: from logits (1, T, V) and valid frames (1,) to one text.
        frame_s: from one frame to the next, in seconds.
        has_confidence: measure how sure the texts are.
        has_times: align them as well.
        fit: counts the words that `decode` writes.
    """

    vocabulary: Vocabulary
    decode: Decode
    frame_s: float
    has_confidence: bool = False
    has_times: bool = False
    fit: Fit | None = None

    def read(self, pieces: Iterable[Tensor]) -> Reading:
        """Read consecutive logits (t, V)."""
        texts: list[str] = []
        words: list[Span] = []
        characters: list[Span] = []
        confidences: list[tuple[float, int]] = []
        ends_word = True
        before = self.fit.counts if self.fit else (0, 0, 0)
        for stretch in cut_stretches(pieces, self.vocabulary, self.frame_s):
            found = self._read_stretch(stretch.logits)
            if not found.text:
                ends_word |= stretch.ends_word
                continue
            texts += [" ", found.text] if ends_word and texts else [found.text]
            shifted = _shift(found.words, stretch.first * self.frame_s)
            if words and shifted and not ends_word:
                shifted[0] = _join(words.pop(), shifted[0])
            words += shifted
            characters += _shift(found.characters, stretch.first * self.frame_s)
            confidences.append((found.confidence, len(self.vocabulary.encode(found.text))))
            ends_word = stretch.ends_word
        after = self.fit.counts if self.fit else before
        counts = (after[0] - before[0], after[1] - before[1], after[2] - before[2])
        return Reading("".join(texts), _average(confidences), tuple(words), tuple(characters), counts)

    def _read_stretch(self, logits: Tensor) -> Reading:
        text = self.decode(logits[None], torch.tensor([len(logits)]))[0]
        confidence = measure_confidence(logits, text, self.vocabulary) if self.has_confidence else 0.0
        words, characters = align_text(logits, text, self.vocabulary, self.frame_s) if self.has_times else ((), ())
        return Reading(text, confidence, words, characters)


def _shift(spans: Sequence[Span], seconds: float) -> list[Span]:
    return [replace(span, start_s=span.start_s + seconds, end_s=span.end_s + seconds) for span in spans]


def _join(one: Span, other: Span) -> Span:
    """Make one word of two halves."""
    text = one.text + other.text
    confidence = (len(one.text) * one.confidence + len(other.text) * other.confidence) / len(text)
    return Span(text, one.start_s, other.end_s, confidence)


def _average(confidences: Sequence[tuple[float, int]]) -> float:
    """Give the geometric mean over the labels of several texts, each with its own and how many labels it has."""
    total = sum(count for _, count in confidences)
    if len(confidences) == 1 or not total or not all(confidence for confidence, _ in confidences):
        return min((confidence for confidence, _ in confidences), default=0.0)
    return math.exp(sum(count * math.log(confidence) for confidence, count in confidences) / total)


def measure_confidence(logits: Tensor, text: str, vocabulary: Vocabulary) -> float:
    """Measure how sure a recogniser is of a text: the probability that it gives to it, per symbol.

    That is exp(-CTC loss / symbols) of the text as if it were the transcript, summed over all paths that write it: a
    geometric mean over letters and word boundaries. A language model has a say in which text it is, not in how sure
    the recogniser is of it: a text that was chosen against what was heard has a low one.

    Args:
        logits: (T, V) of all frames of the utterance.
        text: what was decoded, greedily or by a beam search.
        vocabulary: V symbols.

    Returns:
        Between 0 and 1; 0 where nothing was recognised.
    """
    labels = torch.tensor(vocabulary.encode(text), dtype=torch.int64)
    if len(labels) == 0:
        return 0.0
    log_probs = logits.double().log_softmax(-1)[:, None].expand(-1, 2, -1)
    # With and without a boundary after the last word it is the same text.
    lengths, num_frames = torch.tensor([len(labels), len(labels) - 1]), torch.full((2,), len(logits))
    nats = F.ctc_loss(log_probs, labels.expand(2, -1), num_frames, lengths, BLANK, reduction="none")
    return float((torch.logsumexp(-nats, 0) / len(labels)).exp())
