"""The seam between what is learned and the trainer, which knows nothing else of either."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from speechssl.config.model import ModelConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch, Collate, collate_nothing
from speechssl.model.masking import BoolArray, sample_masks
from speechssl.model.speech_model import SpeechModel
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
    """What a watch says of an update; empty strings where all is well.

    Attributes:
        problem: why the run is lost.
        warning: what often comes before that.
    """

    problem: str = ""
    warning: str = ""


class Watch(Protocol):
    """Judges a run update by update, and remembers what it needs for that across a resume."""

    def observe(self, terms: LossTerms, metrics: Metrics, update: int) -> Health:
        """Judge an update that was made."""
        ...

    def is_candidate(self, metrics: Metrics) -> bool:
        """Say whether a checkpoint with these validation metrics may become the best one."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered, for the checkpoint."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        ...


class Objective(ABC):
    """What is learned, as the trainer knows it: `module`, `compute`, `summarise` and, where it is watched, `watch`.

    Its part of the loader is what `make_collate` makes. All other members have an answer here that suits most.

    Attributes:
        module: everything that is trained and saved; a `SpeechModel` where there are checkpoints.
        watch: None where nothing is watched.
        best_metric: the metric whose lowest validation value marks the best checkpoint.
        tie_metric: the metric whose lower value decides between two that are equal by `best_metric`; empty: none does.
    """

    module: nn.Module
    watch: Watch | None = None
    best_metric: str = "loss"
    tie_metric: str = ""

    @abstractmethod
    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward of update `update` (from 1). In evaluation mode nothing is drawn."""

    @abstractmethod
    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Turn the terms of a whole update, or of a whole validation, into the metrics that are logged."""

    def make_collate(self) -> Collate:
        """Make what draws masks and targets in the loader's workers: immutable, a function of (audio, seed, number).

        Called whenever the loader opens, so that it may hold what a checkpoint brought.
        """
        return collate_nothing

    def is_trained(self, name: str, update: int) -> bool:
        """Say whether the parameter of this name (of `module`) gets a gradient in update `update`.

        Several processes wait for the gradient of every parameter that does.
        """
        is_frozen = isinstance(self.module, SpeechModel) and self.module.config.feature_gradient_scale == 0
        return not is_frozen or ".encoder." not in name

    def find_depth(self, name: str) -> int:
        """Find how many blocks below the head the parameter of this name lies: `training.layer_lr_decay` goes by it."""
        return 0


@dataclass(frozen=True)
class Beginning:
    """What a run offers an objective that must make something before the first update.

    Attributes:
        goes_on: the run goes on from a checkpoint, which holds what was made then.
        total_s: seconds of `data.train`.
        listen: `listen(seconds)` gives the batches of the first so many seconds of training, without `inputs`.
        share: `share(make)` gives every process what `make()` returns on the first one, the only one that listens.
    """

    goes_on: bool
    total_s: float
    listen: Callable[[float], Iterator[Batch]]
    share: Callable[[Callable[[], bytes]], bytes]


def draw_masks(examples: Sequence[Example], config: ModelConfig, rng: np.random.Generator) -> list[BoolArray]:
    """Draw the mask of each row of a sub-batch: (T,) bool, True where masked."""
    return sample_masks([config.count_frames(len(example.waveform)) for example in examples], config.mask, rng)


def draw_kept_layers(model: SpeechModel, seed: int, update: int) -> Tensor | None:
    """Draw which blocks LayerDrop keeps in this update: a function of (seed, update), the same on every rank.

    Returns:
        (L,) bool, or None where nothing can be dropped: in evaluation mode, or without LayerDrop.
    """
    prob = model.config.layer_drop_prob
    if prob == 0 or not model.training:
        return None
    return torch.from_numpy(make_rng(seed, "layer drop", update).random(model.num_layers) > prob)
