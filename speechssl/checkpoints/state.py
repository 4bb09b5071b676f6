"""Everything that a run must remember to go on as if it had never stopped, gathered into a snapshot and given back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoints.model_folder import collect_weights, describe_model
from speechssl.checkpoints.sharding import gather_whole
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.protocol import Objective
from speechssl.training.average import WeightAverage
from speechssl.training.guard import NumericalGuard
from speechssl.training.optim import export_state, import_state


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        update: completed updates.
        audio_s: seconds of audio seen.
        best_value: lowest validation metric so far; None before the first.
        best_update: the update it was reached at.
        best_tie: the metric that decided between equal ones there; None where it is unknown.
        validated_update: the update of the last complete validation; -1 before the first. A run that was stopped
            inside a validation makes it first when it goes on.
        damaged_checkpoints: how many were found damaged when the run went on, and passed over.
    """

    update: int = 0
    audio_s: float = 0.0
    best_value: float | None = None
    best_update: int = 0
    best_tie: float | None = None
    validated_update: int = -1
    damaged_checkpoints: int = 0


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        weights: of the model, by name.
        tensors: all else that changes: `optimizer/…`, `objective/…`, `guard/…`, `average/…`.
        description: of the model, to build it again.
        progress: counters.
        averaged: the moving average of the weights, by the same names; empty without one.
    """

    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    description: dict[str, Any]
    progress: Progress
    averaged: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        parts = (self.weights, self.tensors, self.averaged)
        return sum(value.nbytes for held in parts for value in held.values())

    def copy(self) -> Snapshot:
        """Copy everything to CPU memory of its own, which later updates do not touch."""
        return replace(
            self,
            weights=_copy(self.weights),
            tensors=_copy(self.tensors),
            averaged=_copy(self.averaged),
            progress=replace(self.progress),
        )


@dataclass
class TrainingState:
    """What changes while a run trains.

    Attributes:
        objective: with its module and what its health check remembers.
        optimizer: of the module.
        progress: counters.
        guard: what it has seen of losses and gradient norms.
        average: of the weights; None without `training.ema_decay`.
    """

    objective: Objective
    optimizer: torch.optim.AdamW
    progress: Progress = field(default_factory=Progress)
    guard: NumericalGuard = field(default_factory=NumericalGuard)
    average: WeightAverage | None = None

    @property
    def model(self) -> SpeechModel:
        """The model; a probe has none, and no checkpoints."""
        module = self.objective.module
        assert isinstance(module, SpeechModel), f"a checkpoint holds a SpeechModel, not {type(module)}"
        return module

    def take_snapshot(self) -> Snapshot:
        """Gather everything; the tensors are the live ones, not copies.

        Every rank must call it; what is spread over them only rank 0 gets.
        """
        parts = {
            "optimizer": export_state(self.optimizer, self.model),
            "objective": self.objective.state(),
            "guard": self.guard.state(),
            "average": {} if self.average is None else self.average.state(),
        }
        tensors = gather_whole(
            {f"{part}/{name}": value for part, held in parts.items() for name, value in held.items()}
        )
        description = describe_model(self.model, self.progress.update)
        weights = collect_weights(self.model)
        averaged = {} if self.average is None else {**weights, **gather_whole(self.average.collect())}
        return Snapshot(weights, tensors, description, self.progress, averaged)

    def restore(self, tensors: dict[str, Tensor], progress: Progress, averaged: dict[str, Tensor]) -> None:
        """Take back `tensors`, `progress` and `averaged` of a snapshot; the weights are loaded by `load_weights`.

        Raises:
            ValueError, LookupError: something is missing, or belongs to nothing.
        """
        import_state(self.optimizer, self.model, _strip(tensors, "optimizer/"))
        self.objective.load_state(_strip(tensors, "objective/"))
        self.guard.load_state(_strip(tensors, "guard/"))
        if self.average is not None:
            self.average.load_state(_strip(tensors, "average/"), averaged)
        self.progress = progress


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
