"""Checkpoints of a run on disk: published in one step, found again, and rotated."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from speechssl.errors import CheckpointError
from speechssl.interop.checkpoint import AVERAGED, load_weights, write_model_files
from speechssl.interop.damage import first_line
from speechssl.training.state import Progress, Snapshot, TrainingState

STATE, TENSORS = "training.json", "training.safetensors"


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

    def save(self, snapshot: Snapshot, is_best: bool) -> Path:
        """Write a checkpoint beside its place, flush it to disk, and move it there in one step.

        Args:
            snapshot: everything that goes in; the checkpoint is named after its update.
            is_best: point `best` at it.
        """
        target = self.folder / f"update-{snapshot.progress.update:07d}"
        scratch = self.folder / f".{target.name}.{os.getpid()}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        write_model_files(scratch, snapshot.weights, snapshot.description)
        safetensors.torch.save_file(snapshot.tensors, scratch / TENSORS)
        if snapshot.averaged:
            safetensors.torch.save_file(snapshot.averaged, scratch / AVERAGED, metadata={"format": "pt"})
        (scratch / STATE).write_text(json.dumps(asdict(snapshot.progress), indent=2) + "\n", encoding="utf-8")
        _flush(scratch)
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
        self._point("last", target)
        if is_best:
            self._point("best", target)
        self._rotate()
        return target

    def load(self, folder: Path, state: TrainingState) -> None:
        """Bring a training to the state of a checkpoint.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        load_weights(state.model, folder, "out")
        try:
            tensors = safetensors.torch.load_file(folder / TENSORS)
            progress = Progress(**json.loads((folder / STATE).read_text(encoding="utf-8")))
            averaged = {} if state.average is None else safetensors.torch.load_file(folder / AVERAGED)
            state.restore(tensors, progress, averaged)
        except (OSError, SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
            problem = f"{folder} does not load ({first_line(error)})"
            raise CheckpointError(f"`out` must hold a whole checkpoint, but {problem}") from error

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


def _flush(folder: Path) -> None:
    """Flush the files of a folder, and the folder, to disk."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
