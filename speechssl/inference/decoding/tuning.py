"""Search for the weights of a beam with a language model: those with the fewest wrong words on development speech.

First a coarse grid on a part of the utterances, then the best of it on all of them, then one weight after the other up
and down in steps that halve. All on logits that are there already, and with a narrow beam; the best are measured
again with the full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from torch import Tensor

from speechssl.config.decoding import DecodingConfig
from speechssl.evaluation.wer import compute_error_rates
from speechssl.inference.decoding.beam import BeamSearch
from speechssl.inference.decoding.ngram import Ngram
from speechssl.progress import Progress
from speechssl.text.vocabulary import Vocabulary

GRID = {"lm_weight": (0.25, 0.5, 1.0), "word_bonus": (-1.0, 0.0, 1.0), "blank_penalty": (0.0, 1.0, 2.0)}
"""Where the search begins. Weight and penalty go together: more of the one wants more of the other."""

STEPS = {"lm_weight": 0.125, "word_bonus": 0.5, "blank_penalty": 0.5, "unknown_penalty": 2.0}
"""First steps up and down; each is halved once."""

NARROW_BEAM = 16
"""Half the time of a beam of 50."""

COARSE_WORDS, NUM_FINALISTS = 600, 3
"""Words of the references that the grid is tried on, and points of it that are tried on all, or with the full beam."""


@dataclass(frozen=True)
class Point:
    """One set of weights, and the error rates with it in percent."""

    lm_weight: float
    word_bonus: float
    blank_penalty: float
    unknown_penalty: float
    beam_width: int
    num_utterances: int
    wer: float
    cer: float


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        config: the start, with the best weights; its beam is as wide as it was.
        best: the last line of `points`: these weights on all utterances with that beam.
        start: where it began, on all utterances with that beam.
        points: every point tried, in order; those of the grid are on fewer utterances.
    """

    config: DecodingConfig
    best: Point
    start: Point
    points: tuple[Point, ...]


def tune(
    logits: Sequence[Tensor],
    references: Sequence[str],
    lm: Ngram,
    vocabulary: Vocabulary,
    config: DecodingConfig | None = None,
    key: str = "data.valid",
) -> Tuning:
    """Search for weights on development speech: never on what is reported.

    Args:
        logits: n utterances (T, V), scores of each symbol in each frame.
        references: n texts, normalised by `Vocabulary.normalise_reference`.
        lm: n-gram in the recogniser's spelling, as `load_lm` gives it.
        vocabulary: V symbols.
        config: what else there is to decoding; its weights are tried too, so that nothing worse comes out. None: the
            defaults of `decoding=beam`.
        key: the key that errors name.

    Raises:
        DataError: the references have no word.
    """
    assert len(logits) == len(references), f"{len(logits)} utterances, {len(references)} references"
    config = (config or DecodingConfig(name="beam")).fill()
    trial = _Trial(logits, references, BeamSearch(vocabulary, config, lm), key)
    with Progress("tune", unit="sets of weights") as trial.progress:
        return _search(trial, config)


def _search(trial: _Trial, config: DecodingConfig) -> Tuning:
    narrow = replace(config, beam_width=min(config.beam_width, NARROW_BEAM))
    grid = [replace(narrow, **dict[str, Any](zip(GRID, values, strict=True))) for values in product(*GRID.values())]
    part, everything = _choose_part(trial.references), range(len(trial.references))
    coarse = sorted(grid, key=lambda weights: trial.run(weights, part))
    best = min([narrow, *coarse[:NUM_FINALISTS]], key=lambda weights: trial.run(weights, everything))
    for halvings in (0, 1):
        best = _climb(trial, best, 0.5**halvings, everything)
    # What is best with a narrow beam need not be with the full one.
    whole = [point for point in trial.points.values() if point.num_utterances == len(everything)]
    finalists = sorted(whole, key=lambda point: (point.wer, point.cer))[:NUM_FINALISTS]
    wide = [replace(config, **dict[str, Any]((name, getattr(point, name)) for name in STEPS)) for point in finalists]
    best = min([*wide, config], key=lambda weights: trial.run(weights, everything))
    return Tuning(best, trial.find(best, everything), trial.find(config, everything), tuple(trial.points.values()))


class _Trial:
    """Decodes and scores; what was tried once is remembered."""

    def __init__(self, logits: Sequence[Tensor], references: Sequence[str], search: BeamSearch, key: str) -> None:
        self.log_probs = [row.double().log_softmax(-1).cpu().numpy() for row in logits]
        self.references, self.search, self.key = references, search, key
        self.points: dict[tuple[object, ...], Point] = {}
        self.progress = Progress("tune")

    def run(self, config: DecodingConfig, part: Sequence[int]) -> tuple[float, float]:
        """Give WER and CER of some utterances, in percent."""
        point = self.find(config, part)
        return point.wer, point.cer

    def find(self, config: DecodingConfig, part: Sequence[int]) -> Point:
        weights = {name: getattr(config, name) for name in (*STEPS, "beam_width")}
        key = (*weights.values(), len(part))
        if key not in self.points:
            search = self.search.reweigh(config)
            texts = [search.vocabulary.fold(search.search(self.log_probs[k])[0]) for k in part]
            rates = compute_error_rates([self.references[k] for k in part], texts, self.key)
            self.points[key] = Point(**weights, num_utterances=len(part), wer=rates[0], cer=rates[1])
            self.progress.advance(wer=rates[0])
        return self.points[key]


def _choose_part(references: Sequence[str]) -> range:
    """Take every so-manieth utterance, so that speakers of a sorted list all have some."""
    num_words = sum(len(text.split()) for text in references)
    return range(0, len(references), max(1, num_words // COARSE_WORDS))


def _climb(trial: _Trial, best: DecodingConfig, scale: float, part: Sequence[int]) -> DecodingConfig:
    """Move one weight after the other while that helps, until a round changes none."""
    while True:
        before = best
        for name, step in STEPS.items():
            for move in (step * scale, -step * scale):
                best = _move(trial, best, name, move, part)
        if best == before:
            return best


def _move(trial: _Trial, best: DecodingConfig, name: str, move: float, part: Sequence[int]) -> DecodingConfig:
    """Move one weight as far as that helps."""
    while name != "blank_penalty" or best.blank_penalty + move >= 0:
        moved = replace(best, **{name: getattr(best, name) + move})
        if trial.run(moved, part) >= trial.run(best, part):
            break
        best = moved
    return best
