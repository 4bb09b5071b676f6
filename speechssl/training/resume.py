"""Resuming: what a run must remember to go on as if it had never stopped, and how it is found and given back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from speechssl.checkpoints.model_folder import collect_weights, describe_model
from speechssl.checkpoints.sharding import gather_whole
from speechssl.checkpoints.snapshot import Progress, Snapshot
from speechssl.checkpoints.store import CheckpointStore
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.protocol import Objective
from speechssl.training.average import WeightAverage
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.guard import NumericalGuard
from speechssl.training.optim import export_state, import_state

_logger = logging.getLogger("speechssl")


def resume(state: TrainingState, store: CheckpointStore, ranks: Ranks) -> str | None:
    """Give `state` back what the newest checkpoint that is whole holds, where there is one; every rank must call it.

    Returns:
        The precision that the run began in; None where the run is new.
    """
    found = store.find_valid() if ranks.is_main else None
    # One rank decides: another may see the folder of a network drive later.
    folder = ranks.broadcast(str(found or ""))
    if not folder:
        return None
    precision = store.load(Path(folder), state, ranks.is_main)
    _logger.info("resumed from %s", Path(folder).name)
    return precision


@dataclass
class TrainingState:
    """What changes while a run trains.

    Attributes:
        objective: with its module and what its watch remembers.
        optimizer: of the module.
        progress: counters.
        guard: what it has seen of losses and gradient norms.
        average: of the weights; None without `training.ema_decay`.
        validated: which weights are validated: `model`, or `ema` for their average.
    """

    objective: Objective
    optimizer: torch.optim.AdamW
    progress: Progress = field(default_factory=Progress)
    guard: NumericalGuard = field(default_factory=NumericalGuard)
    average: WeightAverage | None = None
    validated: str = "model"

    @property
    def model(self) -> SpeechModel:
        """The model; a probe has none, and no checkpoints."""
        module = self.objective.module
        assert isinstance(module, SpeechModel), f"a checkpoint holds a SpeechModel, not {type(module)}"
        return module

    @property
    def has_average(self) -> bool:
        """Whether a moving average of the weights is kept."""
        return self.average is not None

    def take_snapshot(self) -> Snapshot:
        """Gather everything; the tensors are the live ones, not copies.

        Every rank must call it; what is spread over them only rank 0 gets.
        """
        parts = {
            "optimizer": export_state(self.optimizer, self.model),
            "objective": {} if self.objective.watch is None else self.objective.watch.state(),
            "guard": self.guard.state(),
            "average": {} if self.average is None else self.average.state(),
        }
        tensors = gather_whole(
            {f"{part}/{name}": value for part, held in parts.items() for name, value in held.items()}
        )
        description = describe_model(self.model, self.progress.update, self.validated)
        weights = collect_weights(self.model)
        averaged = {} if self.average is None else {**weights, **gather_whole(self.average.collect())}
        return Snapshot(weights, tensors, description, self.progress, averaged)

    def restore(self, tensors: dict[str, Tensor], progress: Progress, averaged: dict[str, Tensor]) -> None:
        """Take back `tensors`, `progress` and `averaged` of a snapshot; the weights are loaded by `load_weights`.

        Raises:
            ValueError, LookupError: something is missing, or belongs to nothing.
        """

        def find(part: str) -> dict[str, Tensor]:
            return {name[len(part) :]: value for name, value in tensors.items() if name.startswith(part)}

        import_state(self.optimizer, self.model, find("optimizer/"))
        if self.objective.watch is not None:
            self.objective.watch.load_state(find("objective/"))
        self.guard.load_state(find("guard/"))
        if self.average is not None:
            self.average.load_state(find("average/"), averaged)
        self.progress = progress
