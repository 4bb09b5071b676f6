"""Every knob of decoding, once; `F:` in a source means fairseq."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from speechssl.config.knobs import MAX_WORKERS, check, check_choice, check_finite, knob

WEIGHTS = {"lm_weight": 0.5, "word_bonus": 0.0, "blank_penalty": 1.0, "unknown_penalty": -9.0}
"""With a language model, where neither a key nor `speechssl tune` says otherwise: docs/decoding.md has the figures."""


@dataclass(kw_only=True)
class DecodingConfig:
    """From a recogniser's frames to text."""

    name: str = knob("greedy", "`greedy`, or `beam`: search over texts, with the language model that `decoding.lm` names")
    lm: str = knob("", "n-gram language model: ARPA file (.arpa or .arpa.gz) of words as the recogniser writes them; empty: none")
    lm_weight: Any = knob("", "weight of the language model's log probability; empty: what `tune` kept beside the recogniser, else 0.5")
    word_bonus: Any = knob("", "score added for each word, with `decoding.lm`; empty: as `tune` kept it, else 0", "nats", "F: word_score")
    unknown_penalty: Any = knob("", "score added for each word that the language model does not know; empty: as `tune` kept it, else -9", "nats")
    blank_penalty: Any = knob("", "taken from the blank's log probability at every frame before the search, against words that are left out; empty: as `tune` kept it, else 1 with `decoding.lm` and 0 without", "nats")
    beam_width: int = knob(50, "texts kept at each frame", "", "wav2vec 2.0 App. B")
    beam_threshold: float = knob(25.0, "drop a text whose score is this far below the best", "nats", "F: beam_threshold")
    symbol_min_prob: float = knob(1e-4, "smallest probability at which a symbol may extend a text; 0: any")
    nbest: int = knob(1, "likeliest texts of each utterance that `transcribe` lists with their scores, up to decoding.beam_width; 1: none beside the text")
    num_workers: int = knob(-1, "processes that search beside the model's; 0 searches in the main process; -1: as many as there are cores beside it, 8 at most")

    def __post_init__(self) -> None:
        check_choice("decoding.name", self.name, ("greedy", "beam"))
        check(self.name == "beam" or not self.lm, "decoding.lm", "left out with decoding=greedy (decoding=beam takes it)", self.lm)
        for name in self.given:
            value = getattr(self, name)
            check(isinstance(value, (int, float)) and not isinstance(value, bool), f"decoding.{name}", "a number, or empty", value)
            check_finite(f"decoding.{name}", value)
        penalty = self.blank_penalty or 0
        check(penalty >= 0, "decoding.blank_penalty", "at least 0", penalty)
        check(self.name == "beam" or not penalty, "decoding.blank_penalty", "left out with decoding=greedy (decoding=beam takes it)", penalty)
        check(self.beam_width >= 1, "decoding.beam_width", "at least 1", self.beam_width)
        check(1 <= self.nbest <= self.beam_width, "decoding.nbest", f"between 1 and decoding.beam_width, {self.beam_width}", self.nbest)
        check(self.name == "beam" or self.nbest == 1, "decoding.nbest", "1 with decoding=greedy (decoding=beam takes it)", self.nbest)
        check(-1 <= self.num_workers <= MAX_WORKERS, "decoding.num_workers", f"between 0 and {MAX_WORKERS}, or -1 to have it chosen", self.num_workers)
        check(self.beam_threshold > 0, "decoding.beam_threshold", "positive", self.beam_threshold)
        check(0 <= self.symbol_min_prob < 1, "decoding.symbol_min_prob", "at least 0 and less than 1", self.symbol_min_prob)

    @property
    def given(self) -> tuple[str, ...]:
        """The weights that are not left open."""
        return tuple(name for name in WEIGHTS if getattr(self, name) != "")

    def fill(self, weights: Mapping[str, float] = WEIGHTS) -> DecodingConfig:
        """Give the weights that were left open a value."""
        open_ones: dict[str, Any] = {name: weights[name] for name in WEIGHTS if name not in self.given}
        return replace(self, **open_ones)
