"""From an utterance's logits to its text, how sure that is, and when each word was said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.inference.alignment import align_text
from speechssl.inference.decoding.decoder import Decoder
from speechssl.inference.decoding.hypotheses import Hypothesis, find_log_probs
from speechssl.inference.decoding.processes import searching
from speechssl.inference.stretches import Stretch, cut_stretches
from speechssl.inference.timed import Span
from speechssl.text.vocabulary import BLANK, Vocabulary


class Reading(NamedTuple):
    """What was recognised of an utterance.

    Attributes:
        text: empty where nothing was.
        confidence: how sure the recogniser is of it (`measure_confidence`); 0 where nobody asked.
        words, characters: in time; none where nobody asked.
        counts: what the decoder counted meanwhile (`Fit.counts`).
        hypotheses: of a beam search, the best texts, best first; of audio that is longer than a minute the best alone.
    """

    text: str
    confidence: float = 0.0
    words: tuple[Span, ...] = ()
    characters: tuple[Span, ...] = ()
    counts: tuple[int, int, int] = (0, 0, 0)
    hypotheses: tuple[Hypothesis, ...] = ()


class _Part(NamedTuple):
    """A stretch whose texts are being searched for."""

    stretch: Stretch
    found: Future[list[Hypothesis]]


@dataclass(frozen=True)
class Reader:
    """Reads utterances off their logits; one that is longer than a minute stretch by stretch.

    Attributes:
        vocabulary: V symbols.
        decoder: greedy, or a beam search.
        frame_s: from one frame to the next, in seconds.
        has_confidence: measure how sure the texts are.
        has_times: align them as well.
    """

    vocabulary: Vocabulary
    decoder: Decoder
    frame_s: float
    has_confidence: bool = False
    has_times: bool = False

    def read(self, pieces: Iterable[Tensor]) -> Reading:
        """Read consecutive logits (t, V)."""
        with self.searching(0) as begin:
            return begin(pieces).result()

    @contextmanager
    def searching(self, num_workers: int) -> Iterator[Callable[[Iterable[Tensor]], Begun]]:
        """Give the function that begins to read consecutive logits (t, V); a beam search goes over processes.

        Raises:
            ConfigError: one of the processes was killed.
        """
        if self.decoder.search is None:
            yield lambda pieces: Begun(self, pieces, self._decode)
            return
        number = self.decoder.search.config.nbest
        with searching(self.decoder.search, num_workers) as submit:
            yield lambda pieces: Begun(self, pieces, lambda logits: submit(find_log_probs(logits), number))

    def _decode(self, logits: Tensor) -> Future[list[Hypothesis]]:
        found: Future[list[Hypothesis]] = Future()
        found.set_result([Hypothesis(self.decoder.decode(logits[None], torch.tensor([len(logits)]))[0])])
        return found


class Begun:
    """An utterance whose texts are being searched for.

    Args:
        reader: what is wanted of it.
        pieces: (t, V) consecutive logits; none where the utterance is too short for a frame.
        search: begins the search of a stretch.
    """

    def __init__(
        self, reader: Reader, pieces: Iterable[Tensor], search: Callable[[Tensor], Future[list[Hypothesis]]]
    ) -> None:
        self._reader, self._parts = reader, list[_Part]()
        needs_logits = reader.has_confidence or reader.has_times
        before = self._count()
        for stretch in cut_stretches(pieces, reader.vocabulary, reader.frame_s):
            reader.decoder.count_greedy(stretch.logits)
            kept = stretch if needs_logits else stretch._replace(logits=stretch.logits[:0])
            self._parts.append(_Part(kept, search(stretch.logits)))
        self._counts = _subtract(self._count(), before)

    def done(self) -> bool:
        """Say whether all searches are done."""
        return all(part.found.done() for part in self._parts)

    def result(self) -> Reading:
        """Wait for the searches, and put together what they found."""
        reader, before = self._reader, self._count()
        texts: list[str] = []
        words: list[Span] = []
        characters: list[Span] = []
        confidences: list[tuple[float, int]] = []
        ends_word = True
        for stretch, found in self._parts:
            text = found.result()[0].text
            reader.decoder.count_text(text)
            if not text:
                ends_word |= stretch.ends_word
                continue
            texts += [" ", text] if ends_word and texts else [text]
            own_words, own_characters = self._align(stretch, text)
            if words and own_words and not ends_word:
                own_words[0] = _join(words.pop(), own_words[0])
            words += own_words
            characters += own_characters
            if reader.has_confidence:
                confidence = measure_confidence(stretch.logits, text, reader.vocabulary)
                confidences.append((confidence, len(reader.vocabulary.encode(text))))
            ends_word = stretch.ends_word
        found_counts = _subtract(self._count(), before)
        begun = self._counts
        counts = found_counts[0] + begun[0], found_counts[1] + begun[1], found_counts[2] + begun[2]
        whole = "".join(texts)
        return Reading(whole, _average(confidences), tuple(words), tuple(characters), counts, self._list_best(whole))

    def _align(self, stretch: Stretch, text: str) -> tuple[list[Span], list[Span]]:
        """Align the text of a stretch, in the time of the utterance."""
        if not self._reader.has_times:
            return [], []
        words, characters = align_text(stretch.logits, text, self._reader.vocabulary, self._reader.frame_s)
        start_s = stretch.first * self._reader.frame_s
        return _shift(words, start_s), _shift(characters, start_s)

    def _list_best(self, text: str) -> tuple[Hypothesis, ...]:
        lists = [part.found.result() for part in self._parts]
        if len(lists) == 1:
            return tuple(lists[0])
        best = [found[0] for found in lists] or [Hypothesis()]
        total, acoustic, lm = (math.fsum(scores) for scores in zip(*(one[1:4] for one in best), strict=True))
        return (Hypothesis(text, total, acoustic, lm, sum(one.num_unknown for one in best)),)

    def _count(self) -> tuple[int, int, int]:
        fit = self._reader.decoder.fit
        return fit.counts if fit else (0, 0, 0)


def _subtract(after: tuple[int, int, int], before: tuple[int, int, int]) -> tuple[int, int, int]:
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


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
    # With and without a boundary after the last word it is the same text.
    shorter = len(labels) - (vocabulary.pieces is None and vocabulary.has_words)
    log_probs = logits.double().log_softmax(-1)[:, None].expand(-1, 2, -1)
    lengths, num_frames = torch.tensor([len(labels), shorter]), torch.full((2,), len(logits))
    nats = F.ctc_loss(log_probs, labels.expand(2, -1), num_frames, lengths, BLANK, reduction="none")
    nats = nats if shorter < len(labels) else nats[:1]
    return float((torch.logsumexp(-nats, 0) / len(labels)).exp())
