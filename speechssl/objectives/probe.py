"""A probe of frozen, pooled features: a name or a number from a learned mix of states, or from each alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.loader import Batch
from speechssl.objectives.protocol import LossTerms, Metrics, Objective


class Probe(nn.Module):
    """One small network on a softmax-weighted mix of the states, or one on each state.

    Args:
        num_states: states of an utterance.
        dim: of a pooled state.
        num_outputs: classes; 1 for a number.
        hidden: units of one hidden layer with ReLU; 0: linear.
        is_mixed: mix the states, as SUPERB's weighted sum, from an even mix on. Otherwise every state has a network of
            its own (K = S), and they learn side by side as each would alone.
    """

    def __init__(self, num_states: int, dim: int, num_outputs: int, hidden: int = 0, is_mixed: bool = True) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(num_states), requires_grad=is_mixed)
        self.is_mixed = is_mixed
        count = 1 if is_mixed else num_states
        self.heads = nn.ModuleList(_make_head(dim, num_outputs, hidden) for _ in range(count))

    @property
    def weights(self) -> Tensor:
        """The learned mix: (S,), sums to 1."""
        return F.softmax(self.mix, dim=0)

    def combine(self, features: Float[Tensor, "B S D"]) -> Float[Tensor, "B D"]:
        """Mix the states of each utterance."""
        return torch.einsum("s,bsd->bd", self.weights, features)

    def forward(self, features: Float[Tensor, "B S D"]) -> Float[Tensor, "B K C"]:
        """Give the outputs of each network: K = 1 for the mix."""
        states = self.combine(features)[:, None] if self.is_mixed else features
        return torch.stack([head(states[:, k]) for k, head in enumerate(self.heads)], 1)


def _make_head(dim: int, num_outputs: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(dim, num_outputs)
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))


class ProbeObjective(Objective):
    """Cross-entropy over classes (whole labels), or the squared error of a number (labels with a point).

    A batch brings `features` (B, S, D) and `labels` (B, 1) as its inputs. The losses of several networks are added: no
    weight is in two of them.

    Args:
        probe: what is trained.
    """

    def __init__(self, probe: Probe) -> None:
        self.module: Probe = probe

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Sum the cross-entropy, in nats, or the squared error, over the utterances of a batch."""
        outputs, labels = self.module(batch.inputs["features"]), batch.inputs["labels"][:, 0]
        wanted = labels[:, None].expand(outputs.shape[:2])
        if labels.is_floating_point():
            loss = (outputs[..., 0] - wanted).square().sum()
            right = torch.zeros((), dtype=torch.float64, device=loss.device)
        else:
            loss = F.cross_entropy(outputs.flatten(0, 1), wanted.flatten(), reduction="sum")
            right = (outputs.argmax(-1) == wanted).double().mean(1).sum()
        return LossTerms(loss, torch.tensor(len(labels), device=loss.device), {"right": right})

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Loss an utterance, and the share that was right."""
        count = float(terms.count)
        return {"loss": float(terms.sum) / count, "accuracy": float(terms.stats["right"]) / count}
