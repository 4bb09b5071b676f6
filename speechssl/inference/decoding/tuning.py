"""Search for the weights of a beam with a language model: those with the fewest wrong words on development speech.

First a coarse grid on a part of the utterances, then the best of it on all of them, then one weight after the other up
and down in steps that halve. All on logits that are there already, and with a narrow beam; the best are measured
again with the full one.

A step of a weight that only ranks texts is tried on the lists of texts that the searches before have left, and
searched for only where it makes their best ones better. What is taken from the blank changes the frames themselves,
and is always searched for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from torch import Tensor

from speechssl.config.decoding import DecodingConfig
from speechssl.evaluation.wer import compute_error_rates
from speechssl.inference.decoding.beam import BeamSearch
from speechssl.inference.decoding.hypotheses import Hypothesis, find_log_probs
from speechssl.inference.decoding.ngram import Ngram
from speechssl.inference.decoding.processes import Submit, choose_workers, searching
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
        points: every point searched for, in order; those of the grid are on fewer utterances.
        texts: of all utterances, as the best weights find them.
    """

    config: DecodingConfig
    best: Point
    start: Point
    points: tuple[Point, ...]
    texts: tuple[str, ...]


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
    search, num_workers = BeamSearch(vocabulary, config, lm), choose_workers(config.num_workers, len(logits))
    with Progress("tune", unit="sets of weights") as progress, searching(search, num_workers) as submit:
        return _search(_Trial(logits, references, vocabulary, submit, progress, key), config)


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
    texts = tuple(listed[0].text for listed in trial.listed[_identify(best)])
    points = tuple(trial.points.values())
    return Tuning(best, trial.find(best, everything), trial.find(config, everything), points, texts)


class _Trial:
    """Decodes and scores; what was tried once is remembered."""

    def __init__(
        self,
        logits: Sequence[Tensor],
        references: Sequence[str],
        vocabulary: Vocabulary,
        submit: Submit,
        progress: Progress,
        key: str,
    ) -> None:
        self.log_probs = [find_log_probs(row) for row in logits]
        self.references, self.vocabulary, self.submit, self.progress = references, vocabulary, submit, progress
        self.key = key
        self.points: dict[tuple[object, ...], Point] = {}
        self.listed: dict[tuple[object, ...], list[list[Hypothesis]]] = {}

    def run(self, config: DecodingConfig, part: Sequence[int]) -> tuple[float, float]:
        """Give WER and CER of some utterances, in percent."""
        point = self.find(config, part)
        return point.wer, point.cer

    def find(self, config: DecodingConfig, part: Sequence[int]) -> Point:
        identity = _identify(config)
        key = (*identity, len(part))
        if key not in self.points:
            begun = [self.submit(self.log_probs[k], config.beam_width, config) for k in part]
            listed = [future.result() for future in begun]
            if len(part) == len(self.references):
                self.listed[identity] = listed
            rates = self._score([best[0].text for best in listed], part)
            weights = {name: getattr(config, name) for name in (*STEPS, "beam_width")}
            self.points[key] = Point(**weights, num_utterances=len(part), wer=rates[0], cer=rates[1])
            self.progress.advance(wer=rates[0])
        return self.points[key]

    def promises(self, moved: DecodingConfig, best: DecodingConfig) -> bool:
        """Say whether a move makes the texts better that are the best of all that was found with this blank penalty."""
        if moved.blank_penalty != best.blank_penalty:
            return True
        lists = [
            listed
            for identity, listed in self.listed.items()
            if identity[list(STEPS).index("blank_penalty")] == best.blank_penalty
        ]
        found = [[text for listed in lists for text in listed[k]] for k in range(len(self.references))]
        rates = []
        for weights in (moved, best):
            by_weight = partial(_weigh, weights)
            texts = [max(listed, key=by_weight).text for listed in found]
            rates.append(self._score(texts, range(len(texts))))
        return rates[0] < rates[1]

    def _score(self, texts: Sequence[str], part: Sequence[int]) -> tuple[float, float]:
        folded = [self.vocabulary.fold(text) for text in texts]
        return compute_error_rates([self.references[k] for k in part], folded, self.key)


def _identify(config: DecodingConfig) -> tuple[object, ...]:
    return tuple(getattr(config, name) for name in (*STEPS, "beam_width"))


def _weigh(config: DecodingConfig, text: Hypothesis) -> float:
    """Give the total score of a text with other weights."""
    added = config.word_bonus * len(text.text.split()) + config.unknown_penalty * text.num_unknown
    return float(text.acoustic + config.lm_weight * text.lm + added)


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
        if not trial.promises(moved, best) or trial.run(moved, part) >= trial.run(best, part):
            break
        best = moved
    return best
