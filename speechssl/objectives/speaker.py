"""Speaker identification on frozen, pooled features: a linear classifier, on one layer or on a learned mix of all."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.loader import Batch
from speechssl.objectives.protocol import LossTerms, Metrics, Objective


class SpeakerProbe(nn.Module):
    """Mixes the states of an utterance with softmax weights and classifies it.

    Args:
        num_states: states to mix; 1 leaves nothing to learn about the mix.
        dim: of a pooled state.
        num_speakers: classes.

    Initialisation: an even mix, as SUPERB's weighted sum.
    """

    def __init__(self, num_states: int, dim: int, num_speakers: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(num_states))
        self.linear = nn.Linear(dim, num_speakers)

    @property
    def weights(self) -> Tensor:
        """The learned mix: (num_states,), sums to 1."""
        return F.softmax(self.mix, dim=0)

    def combine(self, features: Float[Tensor, "B S D"]) -> Float[Tensor, "B D"]:
        """Mix the states of each utterance."""
        return torch.einsum("s,bsd->bd", self.weights, features)

    def forward(self, features: Float[Tensor, "B S D"]) -> Float[Tensor, "B C"]:
        """Give the logits of each speaker."""
        logits: Tensor = self.linear(self.combine(features))
        return logits


class SpeakerObjective(Objective):
    """Cross-entropy over speakers; a batch brings `features` (B, S, D) and `labels` (B, 1) as its inputs.

    Args:
        probe: what is trained.
    """

    def __init__(self, probe: SpeakerProbe) -> None:
        self.module: SpeakerProbe = probe

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Sum the cross-entropy, in nats, over the utterances of a batch."""
        logits, labels = self.module(batch.inputs["features"]), batch.inputs["labels"][:, 0]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        right = (logits.argmax(-1) == labels).sum().double()
        return LossTerms(loss, torch.tensor(len(labels), device=logits.device), {"right": right})

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Loss in nats an utterance, and the share that was right."""
        count = float(terms.count)
        return {"loss": float(terms.sum) / count, "accuracy": float(terms.stats["right"]) / count}
