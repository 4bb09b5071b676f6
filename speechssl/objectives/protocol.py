"""The seam between what is learned and the trainer, which knows nothing else of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from speechssl.config.model import ModelConfig
from speechssl.data.loader import Batch
from speechssl.seeds import make_rng

Metrics = dict[str, float | list[float]]


@dataclass
class LossTerms:
    """A loss as a sum and what to divide it by, of one forward or, added up, of a whole update.

    Attributes:
        sum: scalar, differentiable; already weighted so that dividing by `count` gives the update's loss.
        count: scalar, how many items (masked frames, utterances) the sum is over.
        stats: further sums, on the device and without gradient, that `Objective.summarise` turns into metrics.
    """

    sum: Tensor
    count: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> LossTerms:
        """Drop the graph."""
        return LossTerms(self.sum.detach(), self.count, self.stats)

    def zero(self) -> LossTerms:
        """Give terms of the same shape that add nothing; no graph."""
        stats = {name: torch.zeros_like(value) for name, value in self.stats.items()}
        return LossTerms(torch.zeros_like(self.sum), torch.zeros_like(self.count), stats)

    def blank(self) -> LossTerms:
        """Give terms of the same shape of which nothing is known."""
        stats = {name: torch.full_like(value, torch.nan, dtype=torch.float64) for name, value in self.stats.items()}
        unknown = torch.full_like(self.sum, torch.nan)
        return LossTerms(unknown, unknown, stats)


def add_terms(parts: Sequence[LossTerms]) -> LossTerms:
    """Add up the terms of the forwards of one update; the sum in float64, as it is over several processes."""
    stats = {name: torch.stack([part.stats[name] for part in parts]).sum(0) for name in parts[0].stats}
    total = torch.stack([part.sum.double() for part in parts]).sum()
    return LossTerms(total, torch.stack([part.count for part in parts]).sum(), stats)


@dataclass(frozen=True)
class Health:
    """What an objective that is watched says of an update; empty strings where all is well.

    Attributes:
        problem: why the run is lost.
        warning: what often comes before that.
    """

    problem: str = ""
    warning: str = ""


class Objective(Protocol):
    """What the trainer asks of an objective."""

    best_metric: str
    """Metric whose lowest validation value marks the best checkpoint."""

    tie_metric: str
    """Metric whose lower value decides between two that are equal by `best_metric`; the same one where none does."""

    @property
    def module(self) -> nn.Module:
        """Everything that is trained and saved."""
        ...

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward of update `update` (from 1). In evaluation mode nothing is drawn."""
        ...

    def is_trained(self, name: str, update: int) -> bool:
        """Say whether the parameter of this name (of `module`) gets a gradient in update `update`."""
        ...

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Turn the terms of a whole update, or of a whole validation, into the metrics that are logged."""
        ...

    def check_health(self, terms: LossTerms, metrics: Metrics, update: int) -> Health | None:
        """Judge an update that was made; None where nothing is watched."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what `check_health` remembers, for the checkpoint."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        ...

    def is_candidate(self, metrics: Metrics) -> bool:
        """Say whether a checkpoint with these validation metrics may become the best one."""
        ...


def draw_kept_layers(config: ModelConfig, seed: int, update: int) -> Tensor | None:
    """Draw which blocks LayerDrop keeps in this update: a function of (seed, update), the same on every rank.

    Returns:
        (L,) bool, or None where nothing can be dropped.
    """
    if config.layer_drop_prob == 0:
        return None
    return torch.from_numpy(make_rng(seed, "layer drop", update).random(config.num_layers) > config.layer_drop_prob)
