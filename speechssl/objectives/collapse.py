"""Notices a pretraining run that has collapsed, by two signs that must hold for long.

Healthy runs pass through hard perplexities of 3 % of the codebook, so one sign at one moment says nothing.
Sources of the signs and remedies: fairseq issues 3109, 3300, 3661, 3735; transformers issues 12934, 14387.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechssl.losses import compute_perplexity

HELD_UPDATES = 300
FRAMES = 10_000
PERPLEXITY_PER_GROUP = 1.5
REMOVED_SHARE = 0.5
LOSS_MARGIN_BITS = 0.02
SPREAD_SHARE = 0.01

REMEDIES = (
    "What has helped others: a lower training.lr, more audio an update (training.update_s), longer crops, "
    "a longer warm-up (training.warmup_share), a model with layer norm and a normalised waveform; "
    "training.on_collapse=warn goes on regardless"
)


class CollapseWatch:
    """Counts for how many updates the signs of a collapse have held.

    The two collapses that are known: all frames get the same codes (hard perplexity near 1 in each codebook, and
    most negatives equal the target), or all similarities become equal (the loss is that of guessing, and context
    vectors do not differ between frames).

    Args:
        num_groups: codebooks G.
        num_codes: codes V.
        num_negatives: K.
    """

    def __init__(self, num_groups: int, num_codes: int, num_negatives: int) -> None:
        self.num_groups = num_groups
        self.chance_bits = math.log2(num_negatives + 1)
        self.counts = torch.zeros(num_groups, num_codes, dtype=torch.float64)
        self.perplexity = float("inf")
        self.held = 0
        self.first_spread = 0.0

    def observe(self, code_counts: Tensor, metrics: dict[str, float | list[float]], update: int) -> str:
        """Take in one update.

        Args:
            code_counts: (G, V) how often each code was chosen.
            metrics: of the update.
            update: its number.

        Returns:
            What is wrong, once the signs have held for 300 updates; otherwise an empty string.
        """
        if self.first_spread == 0.0:
            self.first_spread = float(_scalar(metrics["context_spread"]))
        self.counts += code_counts.cpu()
        if float(self.counts[0].sum()) >= FRAMES:
            self.perplexity = float(compute_perplexity(self.counts / self.counts.sum(-1, keepdim=True)).sum())
            self.counts.zero_()
        sign = self._find_sign(metrics)
        self.held = self.held + 1 if sign else 0
        if self.held < HELD_UPDATES:
            return ""
        return f"pretraining has collapsed: for {self.held} updates up to {update}, {sign}. {REMEDIES}."

    def has_signs(self, metrics: dict[str, float | list[float]]) -> bool:
        """Say whether metrics of a validation show a collapse."""
        hard = metrics["hard_perplexity"]
        perplexity = sum(hard) if isinstance(hard, list) else hard
        return bool(self._same_codes(perplexity, metrics) or self._all_equal(metrics))

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered."""
        numbers = torch.tensor([self.perplexity, float(self.held), self.first_spread], dtype=torch.float64)
        return {"collapse.counts": self.counts.clone(), "collapse.numbers": numbers}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what was remembered."""
        self.counts = state["collapse.counts"].clone()
        self.perplexity, held, self.first_spread = state["collapse.numbers"].tolist()
        self.held = int(held)

    def _find_sign(self, metrics: dict[str, float | list[float]]) -> str:
        if self._same_codes(self.perplexity, metrics):
            removed = 100 * _scalar(metrics["removed_negatives"])
            figures = f"hard perplexity {self.perplexity:.2f}, {removed:.0f} % of negatives removed"
            return f"all frames got the same codes ({figures})"
        if self._all_equal(metrics):
            guessing = f"the loss is that of guessing ({self.chance_bits:.2f} bits)"
            return f"{guessing} and context vectors no longer differ between frames"
        return ""

    def _same_codes(self, perplexity: float, metrics: dict[str, float | list[float]]) -> bool:
        few = perplexity < PERPLEXITY_PER_GROUP * self.num_groups
        return few and _scalar(metrics["removed_negatives"]) > REMOVED_SHARE

    def _all_equal(self, metrics: dict[str, float | list[float]]) -> bool:
        guessing = abs(_scalar(metrics["loss_contrastive"]) - self.chance_bits) < LOSS_MARGIN_BITS
        return guessing and _scalar(metrics["context_spread"]) < SPREAD_SHARE * self.first_spread


def _scalar(value: float | list[float]) -> float:
    assert isinstance(value, float | int), f"a number was expected, not {value!r}"
    return float(value)
