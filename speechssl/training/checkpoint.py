"""Checkpoints of a run: weights, optimizer and counters, published in one step and found again."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from speechssl.errors import CheckpointError
from speechssl.interop.checkpoint import load_weights, save_model
from speechssl.interop.damage import first_line
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.protocol import Objective
from speechssl.training.optim import export_state, import_state

STATE, TENSORS = "training.json", "training.safetensors"


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


class CheckpointStore:
    """The folder `checkpoints/` of a run.

    Args:
        folder: of the run.
        keep: how many of the newest checkpoints stay, beside the best one.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def find_last(self) -> Path | None:
        """Find the newest published checkpoint."""
        last = self.folder / "last"
        return last.resolve() if last.exists() else None

    def save(self, objective: Objective, optimizer: torch.optim.AdamW, progress: Progress, is_best: bool) -> Path:
        """Write a checkpoint beside its place, flush it to disk, and move it there in one step.

        Args:
            objective: what is trained.
            optimizer: its optimizer.
            progress: counters; the checkpoint is named after the update.
            is_best: point `best` at it.
        """
        target = self.folder / f"update-{progress.update:07d}"
        scratch = self.folder / f".{target.name}.{os.getpid()}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        module = objective.module
        assert isinstance(module, SpeechModel), f"a checkpoint holds a SpeechModel, not {type(module)}"
        save_model(module, scratch, progress.update)
        tensors = {f"optimizer/{k}": v.contiguous() for k, v in export_state(optimizer, module).items()}
        tensors |= {f"objective/{k}": v.contiguous() for k, v in objective.state().items()}
        safetensors.torch.save_file(tensors, scratch / TENSORS)
        (scratch / STATE).write_text(json.dumps(asdict(progress), indent=2) + "\n", encoding="utf-8")
        _flush(scratch)
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
        self._point("last", target)
        if is_best:
            self._point("best", target)
        self._rotate()
        return target

    def load(self, folder: Path, objective: Objective, optimizer: torch.optim.AdamW) -> Progress:
        """Bring objective and optimizer to the state of a checkpoint.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        module = objective.module
        assert isinstance(module, SpeechModel), f"a checkpoint holds a SpeechModel, not {type(module)}"
        load_weights(module, folder, "out")
        try:
            tensors = safetensors.torch.load_file(folder / TENSORS)
            progress = Progress(**json.loads((folder / STATE).read_text(encoding="utf-8")))
            import_state(optimizer, module, _strip(tensors, "optimizer/"))
            objective.load_state(_strip(tensors, "objective/"))
        except (OSError, SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
            problem = f"{folder} does not load ({first_line(error)})"
            raise CheckpointError(f"`out` must hold a whole checkpoint, but {problem}") from error
        return progress

    def finish(self) -> None:
        """Point `best` at the last checkpoint where no validation chose one."""
        last = self.find_last()
        if last is not None and not (self.folder / "best").exists():
            self._point("best", last)

    def _point(self, name: str, target: Path) -> None:
        """Make `name` a relative link to a checkpoint, in one step."""
        scratch = self.folder / f".{name}.{os.getpid()}"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(target.name)
        scratch.replace(self.folder / name)

    def _rotate(self) -> None:
        """Delete all but the newest checkpoints and the best one, and what an earlier crash left half-written."""
        kept = {(self.folder / name).resolve() for name in ("best", "last") if (self.folder / name).exists()}
        published = sorted(self.folder.glob("update-*"))
        for folder in published[: -self.keep]:
            if folder.resolve() not in kept:
                shutil.rmtree(folder)
        for scratch in self.folder.glob(".update-*.part"):
            shutil.rmtree(scratch)


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _flush(folder: Path) -> None:
    """Flush the files of a folder, and the folder, to disk."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
