"""How a pretrained network is adapted by a few weights beside its own, and what such a checkpoint remembers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from speechssl.config.knobs import check, check_choice, knob
from speechssl.config.model import MAX_WIDTH

PROJECTIONS = ("query", "key", "value", "out")
"""The linear layers of attention."""

ADAPTER_DIM = 16
"""Width of new adapters: that of MMS."""

WEIGHTS = ("", "model", "ema")
"""Which weights of a checkpoint the key `weights` may name; empty: those that its training validated."""

_SMALL = {"lora": (".lora_down", ".lora_up"), "adapters": (".adapter.",)}
"""What the names of the weights hold that each way adds."""

_HEAD = ("head.", "conditioning.")
"""How the names of those begin that depend on the labels."""


@dataclass(kw_only=True)
class LoRAConfig:
    """Differences of low rank beside frozen weights (LoRA, arXiv 2106.09685)."""

    rank: int = knob(8, "rank r of each difference (adapt=lora)", "", "arXiv 2106.09685 §7.2")
    alpha: float = knob(16.0, "differences are scaled by alpha / rank (adapt=lora)", "", "arXiv 2106.09685 §4.1")
    projections: list[str] = knob(["query", "value"], "layers of attention that get one, of `query`, `key`, `value` and `out` (adapt=lora)", "", "arXiv 2106.09685 §7.1")

    def __post_init__(self) -> None:
        check(1 <= self.rank <= MAX_WIDTH, "lora.rank", f"between 1 and {MAX_WIDTH}", self.rank)
        check(0 < self.alpha < math.inf, "lora.alpha", "positive", self.alpha)
        given = set(self.projections)
        known = bool(given) and given <= set(PROJECTIONS) and len(given) == len(self.projections)
        check(known, "lora.projections", f"some of {', '.join(PROJECTIONS)}", self.projections)


@dataclass(kw_only=True)
class Adaptation:
    """What the checkpoint of an adapted network says of the weights that it does not hold.

    Attributes:
        adapt: `lora` or `adapters`.
        lora: used with `lora`.
        init: where the other weights are: the whole path of a checkpoint, or a Hub id or a bundle.
        weights, language: keys that chose among them.
        digest: SHA-256 of them, by name.
    """

    adapt: str
    init: str
    weights: str = ""
    language: str = ""
    digest: str = ""
    lora: LoRAConfig

    def __post_init__(self) -> None:
        check_choice("adapt", self.adapt, tuple(_SMALL))
        check_choice("weights", self.weights, WEIGHTS)

    def learns(self, name: str) -> bool:
        """Say whether the weight of this name, of a `SpeechModel`, learns; all others stay those of `init`."""
        return name.startswith(_HEAD) or any(part in name for part in _SMALL[self.adapt])
