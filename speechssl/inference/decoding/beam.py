"""Beam search over CTC prefixes, with an n-gram of words at word ends.

A prefix is what a path has written so far: its letters, with one boundary between words and perhaps one after the last.
The probability of a prefix is summed over all paths that write it (Graves et al. 2006, §3.2; Hannun et al. 2014), kept
apart by whether they end in a pause: after a pause the same letter is a new one. What `Vocabulary.decode` skips counts
as a pause (the blank, `<pad>` and its kin), and a boundary after a boundary, or before any letter, writes nothing, so
that nothing that makes the same text competes with itself. With a wide enough beam the result is the best text, to
rounding.

Pieces of words are symbols as letters are, but for where a word ends: where the next piece begins with `▁`. One text
has many ways to be cut; their probabilities are added among the prefixes that are alive at the end.

A text scores ln P(text | audio) + `lm_weight` · ln P(words, end) + `word_bonus` · words + `unknown_penalty` · words
that the n-gram does not know; without an n-gram the first of these alone. `blank_penalty` changes the frames before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from torch import Tensor

from speechssl.config.decoding import WEIGHTS, DecodingConfig
from speechssl.inference.decoding.hypotheses import FloatArray, Hypothesis, find_log_probs
from speechssl.inference.decoding.lm_fit import Beginnings
from speechssl.inference.decoding.ngram import END, Ngram
from speechssl.text.vocabulary import BLANK, Vocabulary

IntArray = npt.NDArray[np.int64]
ROOT, NOWHERE = 0, -2
"""The empty prefix, and the index of a symbol that there is none of; -1 is the symbol of the root."""


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
        ended: prefix → score and context after the word that it stands in.
    """

    parents: list[int] = field(default_factory=lambda: [-1])
    symbols: list[int] = field(default_factory=lambda: [-1])
    words: list[str] = field(default_factory=lambda: [""])
    contexts: list[str] = field(default_factory=lambda: [""])
    scores: list[float] = field(default_factory=lambda: [0.0])
    foreseen: list[float] = field(default_factory=lambda: [0.0])
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    ended: dict[int, tuple[float, str]] = field(default_factory=dict)


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
        symbols, mark = vocabulary.symbols, vocabulary.boundary
        # Some vocabularies of pieces have no `▁` that stands alone.
        self.boundary = symbols.index(mark) if mark in symbols else NOWHERE
        # Where there are no words, a language model has labels for words, and each begins another.
        is_word = not vocabulary.has_words and vocabulary.pieces is None
        self.ends_word = np.array(
            [k in vocabulary.labels and (is_word or symbol[:1] == mark) for k, symbol in enumerate(symbols)]
        )
        # The model's words are spelt as texts are, whatever the spelling of an imported vocabulary.
        self.spellings = ["".join(map(vocabulary.fold_symbol, symbol.removeprefix(mark))) for symbol in symbols]
        self.places: dict[str, list[int]] = defaultdict(list)
        for k, spelling in enumerate(self.spellings):
            if not self.ends_word[k]:
                self.places[spelling].append(k)
        self.pauses = [k for k in range(len(vocabulary)) if k not in vocabulary.labels]
        self.letters = np.array(sorted(vocabulary.labels), dtype=np.int64)
        self.begun = Beginnings(lm, vocabulary) if lm else None
        self._set_weights(config)

    def _set_weights(self, config: DecodingConfig) -> None:
        self.config = config.fill(WEIGHTS if self.lm else WEIGHTS | {"blank_penalty": 0.0})
        self.onward: dict[str, FloatArray] = {}
        self.all_unknown = np.full(len(self.vocabulary), self._foresee("\0"))
        pairs = zip(self.spellings, self.ends_word.tolist(), strict=True)
        self.starts = np.array([self._foresee(spelling) if ends else 0.0 for spelling, ends in pairs])

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
        for word in self.vocabulary.split(text):
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
        idle = frame[self.boundary] if self.boundary != NOWHERE else -np.inf
        other = np.where(is_open, total + idle, beam.other + frame[np.maximum(ends, 0)])
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
        onward = np.concatenate([self._foresee_next(tree.words[prefix], active) for prefix in alive])
        ranks += onward.reshape(len(alive), -1)
        ends = np.flatnonzero(self.ends_word[active])
        if len(ends):
            after = np.array([self._end_word(tree, prefix)[0] for prefix in alive])
            ranks[:, ends] = grown[:, ends] + after[:, None] + self.starts[active[ends]]
        return ranks

    def _foresee(self, word: str) -> float:
        """Guess what a word that has begun will score at its end: as its likeliest ending does on its own.

        It only ranks: without it, texts that put off their boundaries would crowd out those that have paid for theirs.
        """
        if self.lm is None or self.begun is None or not word:
            return 0.0
        begun = self.begun.get(word)
        return self._weigh(self.lm.unknown if begun is None else begun, begun is not None)

    def _foresee_next(self, word: str, active: IntArray) -> FloatArray:
        """Guess what a word will score with each of some symbols after it; those that end it get no guess of use."""
        if self.vocabulary.pieces is not None:
            pairs = zip(active.tolist(), self.ends_word[active].tolist(), strict=True)
            return np.array([0.0 if ends else self._foresee(word + self.spellings[symbol]) for symbol, ends in pairs])
        return self._foresee_letters(word)[active]

    def _foresee_letters(self, word: str) -> FloatArray:
        """Guess what a word will score with each letter after it, (V,)."""
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
        if self.ends_word[symbol]:
            score, context = self._end_word(tree, prefix)
            word = ""
        word += self.spellings[symbol]
        fresh = len(tree.parents)
        tree.parents.append(prefix)
        tree.symbols.append(symbol)
        tree.words.append(word)
        tree.contexts.append(context)
        tree.scores.append(score)
        tree.foreseen.append(score + self._foresee(word))
        tree.children[prefix, symbol] = fresh
        return fresh

    def _end_word(self, tree: _Prefixes, prefix: int) -> tuple[float, str]:
        """Give the score and the context of a prefix with the word that it stands in at its end, if it is in one."""
        word, context, score = tree.words[prefix], tree.contexts[prefix], tree.scores[prefix]
        if self.lm is None or not word:
            return score, context
        found = tree.ended.get(prefix)
        if found is None:
            found = score + self._score_word(context, word), self.lm.advance(context, word)
            tree.ended[prefix] = found
        return found

    def _finish(self, tree: _Prefixes, beam: _Beam, number: int) -> list[Hypothesis]:
        """Score the last words and the end, and add prefixes that are one text but for a last boundary."""
        scores: dict[str, float] = {}
        extras: dict[str, float] = {}
        totals = np.logaddexp(beam.pause, beam.other)
        for prefix, total in zip(beam.prefixes.tolist(), totals.tolist(), strict=True):
            text = self._spell(tree, prefix)
            scores[text] = float(np.logaddexp(scores.get(text, -np.inf), total))
            if self.lm is not None and text not in extras:
                score, context = self._end_word(tree, prefix)
                extras[text] = score + self._score_end(context)
        totals_of = {text: score + extras.get(text, 0.0) for text, score in scores.items()}
        best = sorted(scores, key=lambda text: -totals_of[text])[:number]
        return [Hypothesis(text, totals_of[text], scores[text], *self._score_words(text)) for text in best]

    def _score_words(self, text: str) -> tuple[float, int]:
        """Give ln P(words, end) of the language model, and how many words it does not know."""
        if self.lm is None:
            return 0.0, 0
        words = [self.spell(word) for word in self.vocabulary.split(text)]
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
