"""Everything that a run must remember to go on as if it had never stopped, gathered into a snapshot and given back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from speechssl.interop.checkpoint import collect_weights, describe_model
from speechssl.model.sharding import gather_whole
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.protocol import Objective
from speechssl.training.optim import export_state, import_state


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        update: completed updates.
        audio_s: seconds of audio seen.
        best_value: lowest validation metric so far; None before the first.
        best_update: the update it was reached at.
    """

    update: int = 0
    audio_s: float = 0.0
    best_value: float | None = None
    best_update: int = 0


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        weights: of the model, by name.
        tensors: all else that changes: `optimizer/…`, `objective/…`.
        description: of the model, to build it again.
        progress: counters.
    """

    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    description: dict[str, Any]
    progress: Progress


@dataclass
class TrainingState:
    """What changes while a run trains.

    Attributes:
        objective: with its module and what its health check remembers.
        optimizer: of the module.
        progress: counters.
    """

    objective: Objective
    optimizer: torch.optim.AdamW
    progress: Progress = field(default_factory=Progress)

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
        parts = {"optimizer": export_state(self.optimizer, self.model), "objective": self.objective.state()}
        tensors = gather_whole(
            {f"{part}/{name}": value for part, held in parts.items() for name, value in held.items()}
        )
        description = describe_model(self.model, self.progress.update)
        return Snapshot(collect_weights(self.model), tensors, description, self.progress)

    def restore(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Take back `tensors` and `progress` of a snapshot; the weights are loaded by `load_weights`.

        Raises:
            ValueError, LookupError: something is missing, or belongs to nothing.
        """
        import_state(self.optimizer, self.model, _strip(tensors, "optimizer/"))
        self.objective.load_state(_strip(tensors, "objective/"))
        self.progress = progress


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
