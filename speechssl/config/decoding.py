"""Every knob of decoding, once; `F:` in a source means fairseq."""

from __future__ import annotations

from dataclasses import dataclass

from speechssl.config.knobs import check, check_choice, check_finite, knob


@dataclass(kw_only=True)
class DecodingConfig:
    """From a recogniser's frames to text."""

    name: str = knob("greedy", "`greedy`, or `beam`: search over texts, with the language model that `decoding.lm` names")
    lm: str = knob("", "n-gram language model: ARPA file (.arpa or .arpa.gz) of words as the recogniser writes them; empty: none")
    lm_weight: float = knob(0.87, "weight of the language model's log probability", "", "F: 2 for its log10")
    word_bonus: float = knob(-1.0, "score added for each word, with `decoding.lm`", "nats", "F: word_score")
    unknown_penalty: float = knob(-5.0, "score added for each word that the language model does not know", "nats")
    blank_penalty: float = knob(0.0, "taken from the blank's log probability at every frame before the search, against words that are left out; 0: none", "nats")
    beam_width: int = knob(50, "texts kept at each frame", "", "wav2vec 2.0 App. B")
    beam_threshold: float = knob(25.0, "drop a text whose score is this far below the best", "nats", "F: beam_threshold")
    symbol_min_prob: float = knob(1e-4, "smallest probability at which a symbol may extend a text; 0: any")

    def __post_init__(self) -> None:
        check_choice("decoding.name", self.name, ("greedy", "beam"))
        check(self.name == "beam" or not self.lm, "decoding.lm", "left out with decoding=greedy (decoding=beam takes it)", self.lm)
        check_finite("decoding.lm_weight", self.lm_weight)
        check_finite("decoding.word_bonus", self.word_bonus)
        check_finite("decoding.unknown_penalty", self.unknown_penalty)
        check_finite("decoding.blank_penalty", self.blank_penalty)
        check(self.blank_penalty >= 0, "decoding.blank_penalty", "at least 0", self.blank_penalty)
        given = self.name == "beam" or not self.blank_penalty
        check(given, "decoding.blank_penalty", "left out with decoding=greedy (decoding=beam takes it)", self.blank_penalty)
        check(self.beam_width >= 1, "decoding.beam_width", "at least 1", self.beam_width)
        check(self.beam_threshold > 0, "decoding.beam_threshold", "positive", self.beam_threshold)
        check(0 <= self.symbol_min_prob < 1, "decoding.symbol_min_prob", "at least 0 and less than 1", self.symbol_min_prob)
