"""Beam search over CTC prefixes, with an n-gram of words at word ends.

A prefix is what a path has written so far: its letters, with one boundary between words and perhaps one after the last.
The probability of a prefix is summed over all paths that write it (Graves et al. 2006, §3.2; Hannun et al. 2014), kept
apart by whether they end in a pause: after a pause the same letter is a new one. What `Vocabulary.decode` skips counts
as a pause (the blank, `<pad>` and its kin), and a boundary after a boundary, or before any letter, writes nothing, so
that nothing that makes the same text competes with itself. With a wide enough beam the result is the best text, to
rounding.

A text scores ln P(text | audio) + `lm_weight` · ln P(words, end) + `word_bonus` · words + `unknown_penalty` · words
that the n-gram does not know; without an n-gram the first of these alone. `blank_penalty` changes the frames before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from speechssl.config.decoding import WEIGHTS, DecodingConfig
from speechssl.inference.decoding.greedy import greedy_decode
from speechssl.inference.decoding.hypotheses import FloatArray, Hypothesis, find_log_probs
from speechssl.inference.decoding.lm_fit import Beginnings, Fit, load_lm
from speechssl.inference.decoding.ngram import END, Ngram
from speechssl.text.vocabulary import BLANK, WORD_BOUNDARY, Vocabulary

IntArray = npt.NDArray[np.int64]
Decode = Callable[[Tensor, Tensor], list[str]]
"""Logits (B, T, V) and valid frames (B,) → B texts."""

ROOT = 0


@dataclass(frozen=True)
class Decoder:
    """A way to read texts off logits, and what a result says of it.

    Attributes:
        decode: logits to texts.
        facts: how that is done.
        fit: of the language model's words and the recogniser's, where there is a language model.
        search: the beam search; None: greedy.
    """

    decode: Decode
    facts: dict[str, Any]
    fit: Fit | None = None
    search: BeamSearch | None = None

    def count_greedy(self, logits: Tensor) -> None:
        """Count the words that greedy decoding reads off logits (T, V)."""
        if self.fit is not None and self.search is not None:
            texts = greedy_decode(logits[None], torch.tensor([len(logits)]), self.search.vocabulary)
            self.fit.greedy_words += len(texts[0].split())

    def count_text(self, text: str) -> None:
        """Count the words of a text that the search found."""
        if self.fit is not None and self.search is not None and self.search.lm is not None:
            self.fit.count([self.search.spell(word) for word in text.split()], self.search.lm)

    def describe(self) -> dict[str, Any]:
        """Give what a result says when all texts are decoded, and warn of a language model that does not fit them."""
        if self.fit is None:
            return self.facts
        self.fit.warn_of_unknown()
        return self.facts | {"beam": self.facts["beam"] | self.fit.describe()}


def build_decoder(config: DecodingConfig, vocabulary: Vocabulary, weights_from: str = "") -> Decoder:
    """Build the decoder that `decoding.*` asks for.

    Args:
        config: weights that it leaves open have their defaults.
        vocabulary: of the recogniser.
        weights_from: where its weights are from, for the result; empty: `keys` where it has some, else `defaults`.

    Raises:
        DataError: `decoding.lm` is no ARPA file, or has no word that the recogniser can write.
    """
    facts: dict[str, Any] = {"decoding": config.name}
    if config.name == "greedy":
        return Decoder(lambda logits, num_frames: greedy_decode(logits, num_frames, vocabulary), facts)
    search = BeamSearch(vocabulary, config, load_lm(config.lm, vocabulary) if config.lm else None)
    names: tuple[str, ...] = ("blank_penalty", "beam_width", "beam_threshold", "symbol_min_prob")
    keys: dict[str, Any] = {name: getattr(search.config, name) for name in names}
    lm, begun = search.lm, search.begun
    if lm is None or begun is None:
        return Decoder(search.decode, facts | {"beam": keys}, search=search)
    names = ("lm", "lm_weight", "word_bonus", "unknown_penalty")
    keys |= {name: getattr(search.config, name) for name in names}
    keys |= {"weights_from": weights_from or ("keys" if config.given else "defaults"), "lm_ngrams": lm.counts}

    def decode(logits: Tensor, num_frames: Tensor) -> list[str]:
        texts = search.decode(logits, num_frames)
        for text, row, length in zip(texts, logits, num_frames.tolist(), strict=True):
            decoder.count_greedy(row[:length])
            decoder.count_text(text)
        return texts

    decoder = Decoder(decode, facts | {"beam": keys}, Fit(len(lm.words), len(begun.words)), search)
    return decoder


@dataclass
class _Prefixes:
    """All prefixes of one search, as a tree; the root is the empty one. Parallel lists, one item a prefix.

    Attributes:
        parents, symbols: the prefix before, and the symbol that came to it.
        words: letters since the last boundary.
        contexts: what the language model remembers of the words before.
        scores: what the words before have scored: language model, bonus and penalty.
        foreseen: that, and what the word that has begun will score by guess.
        children: (prefix, symbol) → prefix.
    """

    parents: list[int] = field(default_factory=lambda: [-1])
    symbols: list[int] = field(default_factory=lambda: [-1])
    words: list[str] = field(default_factory=lambda: [""])
    contexts: list[str] = field(default_factory=lambda: [""])
    scores: list[float] = field(default_factory=lambda: [0.0])
    foreseen: list[float] = field(default_factory=lambda: [0.0])
    children: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass
class _Beam:
    """The prefixes that are alive: which, and ln of the probability of their paths that end in a pause or do not."""

    prefixes: IntArray
    pause: FloatArray
    other: FloatArray


def penalise_blank(log_probs: FloatArray, penalty: float) -> FloatArray:
    """Take so many nats from the blank of each frame, and let the probabilities sum to 1 again.

    A weak recogniser is sure of little but the blank, and leaves out what it is not sure of.

    Args:
        log_probs: (T, V) ln of each symbol's probability; returned as it is where the penalty is 0.
        penalty: nats.
    """
    if not penalty:
        return log_probs
    penalised = log_probs.copy()
    penalised[:, BLANK] -= penalty
    shares: FloatArray = np.logaddexp.reduce(penalised, axis=1, keepdims=True)
    return penalised - shares


class BeamSearch:
    """Finds the best text of each row of logits.

    Args:
        vocabulary: of the recogniser.
        config: `decoding.*`.
        lm: n-gram in the recogniser's spelling; None for the acoustic score alone.
    """

    def __init__(self, vocabulary: Vocabulary, config: DecodingConfig, lm: Ngram | None = None) -> None:
        self.vocabulary, self.lm = vocabulary, lm
        self.boundary = vocabulary.symbols.index(WORD_BOUNDARY)
        # The model's words are spelt as texts are, whatever the spelling of an imported vocabulary.
        self.spellings = [vocabulary.fold_symbol(symbol) for symbol in vocabulary.symbols]
        self.places: dict[str, list[int]] = defaultdict(list)
        for k, spelling in enumerate(self.spellings):
            self.places[spelling].append(k)
        self.pauses = [k for k, symbol in enumerate(vocabulary.symbols) if k == BLANK or len(symbol) != 1]
        self.letters = np.array([k for k in range(len(vocabulary)) if k not in self.pauses], dtype=np.int64)
        self.begun = Beginnings(lm, vocabulary) if lm else None
        self._set_weights(config)

    def _set_weights(self, config: DecodingConfig) -> None:
        self.config = config.fill(WEIGHTS if self.lm else WEIGHTS | {"blank_penalty": 0.0})
        self.onward: dict[str, FloatArray] = {}
        self.all_unknown = np.full(len(self.vocabulary), self._foresee("\0"))

    def reweigh(self, config: DecodingConfig) -> BeamSearch:
        """Make the same search with other weights, quickly: what it knows of the language model is shared."""
        other = copy(self)
        other._set_weights(config)
        return other

    def spell(self, word: str) -> str:
        """Spell a decoded word as the language model's are."""
        return "".join(map(self.vocabulary.fold_symbol, word))

    def decode(self, logits: Float[Tensor, "B T V"], num_frames: Int[Tensor, " B"]) -> list[str]:
        """Find the best text of each row.

        Args:
            logits: (B, T, V) scores of each symbol, of which the log-softmax is taken.
            num_frames: (B,) int64 valid frames of each row; frames beyond are not read.

        Returns:
            B texts; empty where silence is the best.
        """
        assert logits.shape[-1] == len(self.vocabulary), f"{logits.shape[-1]} logits, {len(self.vocabulary)} symbols"
        rows = zip(find_log_probs(logits), num_frames.tolist(), strict=True)
        return [self.search(row[:length])[0] for row, length in rows]

    def search(self, log_probs: FloatArray) -> tuple[str, float]:
        """Find the best text of one utterance and its score; see `list_best`."""
        best = self.list_best(log_probs)[0]
        return best.text, best.total

    def list_best(self, log_probs: FloatArray, number: int = 1) -> list[Hypothesis]:
        """Find the best texts of one utterance, best first: as many, or as the beam has left.

        Args:
            log_probs: (T, V) ln of each symbol's probability.
            number: how many texts at most.
        """
        log_probs = penalise_blank(log_probs, self.config.blank_penalty)
        tree = _Prefixes(contexts=[self.lm.start() if self.lm else ""])
        beam = _Beam(np.zeros(1, dtype=np.int64), np.zeros(1), np.full(1, -np.inf))
        least = math.log(self.config.symbol_min_prob) if self.config.symbol_min_prob else -np.inf
        for frame in log_probs:
            beam = self._step(tree, beam, frame, least)
        return self._finish(tree, beam, number)

    def score_text(self, text: str) -> float:
        """Give what the language model, bonus and penalty add to the score of a text."""
        if self.lm is None:
            return 0.0
        context, total = self.lm.start(), 0.0
        for word in text.split():
            total += self._score_word(context, word)
            context = self.lm.advance(context, word)
        return total + self._score_end(context)

    def _step(self, tree: _Prefixes, beam: _Beam, frame: FloatArray, least: float) -> _Beam:
        """Read one frame: every prefix stays, or goes on with one of the symbols that are likely enough."""
        active = self.letters[frame[self.letters] > least]
        total = np.logaddexp(beam.pause, beam.other)
        ends = np.array([tree.symbols[p] for p in beam.prefixes], dtype=np.int64)
        # After a boundary, and at the start, a boundary writes nothing, whether a pause stood before it or not.
        is_open = (ends == self.boundary) | (ends == -1)
        pause = total + np.logaddexp.reduce(frame[self.pauses])
        other = np.where(is_open, total + frame[self.boundary], beam.other + frame[np.maximum(ends, 0)])
        grown = np.where(active == ends[:, None], beam.pause[:, None], total[:, None]) + frame[active]
        grown[is_open[:, None] & (active == self.boundary)] = -np.inf
        self._merge(tree, beam, active, grown, other)
        return self._select(tree, beam, active, grown, pause, other)

    def _merge(self, tree: _Prefixes, beam: _Beam, active: IntArray, grown: FloatArray, other: FloatArray) -> None:
        """Add what grows into a prefix that is alive already to that prefix."""
        slots = {prefix: slot for slot, prefix in enumerate(beam.prefixes.tolist())}
        columns = {symbol: column for column, symbol in enumerate(active.tolist())}
        for slot, prefix in enumerate(beam.prefixes.tolist()):
            row, column = slots.get(tree.parents[prefix]), columns.get(tree.symbols[prefix])
            if row is not None and column is not None:
                other[slot] = np.logaddexp(other[slot], grown[row, column])
                grown[row, column] = -np.inf

    def _select(
        self, tree: _Prefixes, beam: _Beam, active: IntArray, grown: FloatArray, pause: FloatArray, other: FloatArray
    ) -> _Beam:
        """Keep the best prefixes, those that stayed and those that grew alike."""
        before = np.array([tree.foreseen[prefix] for prefix in beam.prefixes.tolist()])
        ranks = np.concatenate([np.logaddexp(pause, other) + before, self._rank(tree, beam, active, grown).ravel()])
        near = np.flatnonzero((ranks > -np.inf) & (ranks >= ranks.max() - self.config.beam_threshold))
        order = near[np.argsort(-ranks[near], kind="stable")[: self.config.beam_width]]
        size, alive = len(beam.prefixes), beam.prefixes.tolist()
        stay, grow = order[order < size], order[order >= size] - size
        rows, columns = np.divmod(grow, max(len(active), 1))
        fresh = [
            self._grow(tree, alive[row], int(active[column]))
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        return _Beam(
            np.concatenate([beam.prefixes[stay], np.array(fresh, dtype=np.int64)]),
            np.concatenate([pause[stay], np.full(len(fresh), -np.inf)]),
            np.concatenate([other[stay], grown[rows, columns]]),
        )

    def _rank(self, tree: _Prefixes, beam: _Beam, active: IntArray, grown: FloatArray) -> FloatArray:
        """Add to the paths of each prefix that grew what its words score, the word included that a boundary ends."""
        alive = beam.prefixes.tolist()
        before = np.array([tree.scores[prefix] for prefix in alive])
        ranks: FloatArray = grown + before[:, None]
        if self.lm is None:
            return ranks
        onward = np.concatenate([self._foresee_next(tree.words[prefix]) for prefix in alive])
        ranks += onward.reshape(len(alive), -1)[:, active]
        for column in np.flatnonzero(active == self.boundary).tolist():
            for row in np.flatnonzero(grown[:, column] > -np.inf).tolist():
                ended = self._grow(tree, alive[row], self.boundary)
                ranks[row, column] = grown[row, column] + tree.scores[ended]
        return ranks

    def _foresee(self, word: str) -> float:
        """Guess what a word that has begun will score at its end: as its likeliest ending does on its own.

        It only ranks: without it, texts that put off their boundaries would crowd out those that have paid for theirs.
        """
        if self.lm is None or self.begun is None or not word:
            return 0.0
        begun = self.begun.get(word)
        return self._weigh(self.lm.unknown if begun is None else begun, begun is not None)

    def _foresee_next(self, word: str) -> FloatArray:
        """Guess what a word will score with each symbol after it, (V,)."""
        assert self.begun is not None
        found = self.onward.get(word)
        if found is None:
            found = self.all_unknown
            if not word or self.begun.get(word) is not None:
                found = found.copy()
                for letter, log_prob in self.begun.get_next(word).items():
                    found[self.places[letter]] = self._weigh(log_prob, is_known=True)
            self.onward[word] = found
        return found

    def _grow(self, tree: _Prefixes, prefix: int, symbol: int) -> int:
        """Give the prefix that a symbol makes of another."""
        found = tree.children.get((prefix, symbol))
        if found is not None:
            return found
        word, context, score = tree.words[prefix], tree.contexts[prefix], tree.scores[prefix]
        if symbol != self.boundary:
            word += self.spellings[symbol]
        elif self.lm is not None:
            score += self._score_word(context, word)
            context, word = self.lm.advance(context, word), ""
        else:
            word = ""
        fresh = len(tree.parents)
        tree.parents.append(prefix)
        tree.symbols.append(symbol)
        tree.words.append(word)
        tree.contexts.append(context)
        tree.scores.append(score)
        tree.foreseen.append(score + self._foresee(word))
        tree.children[prefix, symbol] = fresh
        return fresh

    def _finish(self, tree: _Prefixes, beam: _Beam, number: int) -> list[Hypothesis]:
        """Score the last words and the end, and add prefixes that are one text but for a last boundary."""
        scores: dict[str, float] = {}
        extras: dict[str, float] = {}
        totals = np.logaddexp(beam.pause, beam.other)
        for prefix, total in zip(beam.prefixes.tolist(), totals.tolist(), strict=True):
            text = self._spell(tree, prefix)
            scores[text] = float(np.logaddexp(scores.get(text, -np.inf), total))
            if self.lm is not None and text not in extras:
                whole = self._grow(tree, prefix, self.boundary) if tree.words[prefix] else prefix
                extras[text] = tree.scores[whole] + self._score_end(tree.contexts[whole])
        totals_of = {text: score + extras.get(text, 0.0) for text, score in scores.items()}
        best = sorted(scores, key=lambda text: -totals_of[text])[:number]
        return [Hypothesis(text, totals_of[text], scores[text], *self._score_words(text)) for text in best]

    def _score_words(self, text: str) -> tuple[float, int]:
        """Give ln P(words, end) of the language model, and how many words it does not know."""
        if self.lm is None:
            return 0.0, 0
        words = [self.spell(word) for word in text.split()]
        context, total = self.lm.start(), 0.0
        for word in words:
            total += self.lm.score(context, word)
            context = self.lm.advance(context, word)
        total += self.lm.score(context, END) if END in self.lm.log_probs else 0.0
        return math.log(10) * total, sum(word not in self.lm for word in words)

    def _spell(self, tree: _Prefixes, prefix: int) -> str:
        symbols = []
        while prefix != ROOT:
            symbols.append(tree.symbols[prefix])
            prefix = tree.parents[prefix]
        return self.vocabulary.decode(reversed(symbols))

    def _score_word(self, context: str, word: str) -> float:
        assert self.lm is not None
        return self._weigh(self.lm.score(context, word), word in self.lm)

    def _weigh(self, log_prob: float, is_known: bool) -> float:
        """Turn a word's probability, as log10, into what it adds to a score."""
        penalty = 0.0 if is_known else self.config.unknown_penalty
        score: float = self.config.lm_weight * math.log(10) * log_prob + self.config.word_bonus + penalty
        return score

    def _score_end(self, context: str) -> float:
        assert self.lm is not None
        return self.config.lm_weight * math.log(10) * self.lm.score(context, END) if END in self.lm.log_probs else 0.0
