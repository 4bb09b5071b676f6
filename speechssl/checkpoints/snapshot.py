"""What a checkpoint holds beside the model: tensors, and `training.json`, how far the run has come and with what."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from speechssl.errors import CheckpointError, DataError
from speechssl.model.speech_model import SpeechModel

STATE = "training.json"

VERSION = 3
"""Version of the training state; 1 and 2 were never released."""

NUMERIC = ("optimizer/",)
"""Parts of a snapshot that updates compute with. What others remember may be infinite before it is known."""

UNREADABLE = (OSError, ValueError, TypeError, LookupError, RecursionError)
"""What reading a damaged header raises."""

T = TypeVar("T")

_logger = logging.getLogger("speechssl")


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        update: completed updates.
        audio_s: seconds of audio seen.
        best_value: lowest validation metric so far; None before the first.
        best_update: the update it was reached at.
        best_tie: the metric that decided between equal ones there.
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
class Provenance:
    """What the updates of a run are a function of, beside its configuration.

    Attributes:
        precision: that `precision=auto` stood for.
        data: digest of the ids and lengths behind each key, such as `data.train`, and of the transcripts where they are
            learned from.
        versions: of packages whose arithmetic may differ.
    """

    precision: str = ""
    data: dict[str, str] | None = None
    versions: dict[str, str | None] = field(default_factory=dict)

    def check_same(self, now: Provenance, folder: Path) -> None:
        """Compare what a checkpoint was made with and what the run in `folder` would go on with.

        Raises:
            DataError: the utterances are others, so the plan would be another one.
        """
        for key, digest in (now.data or {}).items():
            name, _, part = key.partition(" ")
            if self.data is not None and self.data.get(key) != digest:
                raise DataError(
                    f"`{name}` must hold the utterances that the run in {folder} began with, but their "
                    f"{'transcripts' if part else 'ids or lengths'} have changed (another out= starts a new run)"
                )
        if self.precision and self.precision != now.precision:
            _logger.warning(
                "precision=auto would be %s here, but the run began in %s and stays with it",
                now.precision,
                self.precision,
            )
        for name, version in now.versions.items():
            before = self.versions.get(name, version)
            if before != version:
                _logger.warning(
                    "the checkpoint is of %s %s, and this is %s: last bits may differ", name, before, version
                )


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
        return sum(value.nbytes for held in (self.weights, self.tensors, self.averaged) for value in held.values())

    def copy(self) -> Snapshot:
        """Copy everything to CPU memory of its own, which later updates do not touch."""
        parts = {"weights": self.weights, "tensors": self.tensors, "averaged": self.averaged}
        copies: dict[str, Any] = {
            part: {name: value.detach().to("cpu", copy=True) for name, value in held.items()}
            for part, held in parts.items()
        }
        return replace(self, **copies, progress=replace(self.progress))

    def check_finite(self) -> None:
        """Make sure that there is no NaN and no infinity, from which no run recovers.

        Raises:
            CheckpointError: naming the first tensor that has one.
        """
        numeric = {name: value for name, value in self.tensors.items() if name.startswith(NUMERIC)}
        for name, value in (*self.weights.items(), *self.averaged.items(), *numeric.items()):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise CheckpointError(
                    f"a checkpoint must hold finite values only, but {name} does not after update "
                    f"{self.progress.update} (not published; the checkpoints before it are whole)"
                )


class Restorable(Protocol):
    """What takes a checkpoint back: the state of a training."""

    @property
    def model(self) -> SpeechModel:
        """Gets the weights."""
        ...

    @property
    def has_average(self) -> bool:
        """Whether the moving average of the weights is wanted too."""
        ...

    def restore(self, tensors: dict[str, Tensor], progress: Progress, averaged: dict[str, Tensor]) -> None:
        """Take back these parts of a snapshot.

        Raises:
            ValueError, LookupError: something is missing, or belongs to nothing.
        """
        ...


class Header(NamedTuple):
    """What `training.json` says."""

    progress: Progress
    provenance: Provenance


def write_header(path: Path, progress: Progress, provenance: Provenance) -> None:
    """Write a header."""
    content = {"version": VERSION, "progress": asdict(progress), "provenance": asdict(provenance)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_header(path: Path) -> Header:
    """Read a header.

    Raises:
        CheckpointError: it is of a later version.
        OSError, ValueError, TypeError, LookupError, RecursionError: it does not read, or something is missing in it.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    version = content["version"]
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"`out` must hold checkpoints of version {VERSION} or earlier, but {path.parent} is of version {version}, "
            "which a later speechssl wrote"
        )
    if version != VERSION:
        raise ValueError(f"{path.name} has the version {version!r}")
    return Header(_build(Progress, content["progress"]), _build(Provenance, content["provenance"]))


def _build(kind: type[T], values: dict[str, Any]) -> T:
    """Build a record from plain values: every field must be there, and nothing else."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if set(values) != names:
        raise ValueError(f"{kind.__name__} must have {sorted(names)}, but has {sorted(values)}")
    return kind(**values)
