"""Checkpoints of a run on disk: published in one step, verified before they are used, and rotated."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from speechssl.checkpoints.checksums import CHECKSUMS, write_checksums
from speechssl.checkpoints.crash_point import crash_point
from speechssl.checkpoints.header import Header, read_header, write_header
from speechssl.checkpoints.layout import LOGS
from speechssl.checkpoints.model_folder import AVERAGED, load_weights, write_model_files
from speechssl.checkpoints.provenance import Provenance, check_provenance
from speechssl.checkpoints.replacement import drop_replaced
from speechssl.checkpoints.rotation import list_damaged, list_published, restore_links, rotate, set_aside
from speechssl.checkpoints.state import Snapshot, TrainingState
from speechssl.checkpoints.validity import STATE, TENSORS, find_problem
from speechssl.durable import flush, flush_files, remove, writing
from speechssl.errors import CheckpointError
from speechssl.parsing import shorten

MARGIN_BYTES = 16 * 2**20
"""Room on disk beyond the tensors: headers, the log, and what others write meanwhile."""

_logger = logging.getLogger("speechssl")


class CheckpointStore:
    """The folder `checkpoints/` of a run.

    Args:
        folder: of the run.
        keep: how many of the newest checkpoints stay, beside the best one.
        provenance: what the run is made with.
    """

    def __init__(self, folder: Path, keep: int, provenance: Provenance | None = None) -> None:
        self.folder, self.keep = folder / "checkpoints", keep
        self.provenance = provenance or Provenance()
        self.num_damaged = 0

    def find_last(self) -> Path | None:
        """Find the newest published checkpoint, whole or not."""
        return next(reversed(list_published(self.folder)), None)

    def find_valid(self) -> Path | None:
        """Find the newest checkpoint that is whole, and clear what a crash left half-written.

        Damaged ones that are newer are named in the log, counted, and set aside.

        Returns:
            None where there are no checkpoints at all.

        Raises:
            CheckpointError: there are, but none is whole; or one is of a later version.
        """
        with writing(self.folder):
            self._recover()
        problems: dict[Path, str] = {}
        for checkpoint in reversed(list_published(self.folder)):
            problem = find_problem(checkpoint)
            if not problem:
                with writing(self.folder):
                    self._report(problems)
                return checkpoint
            problems[checkpoint] = problem
        if problems or list_damaged(self.folder):
            first = next(iter(problems.values()), "they were set aside as damaged")
            raise CheckpointError(
                f"`out` must hold a whole checkpoint to go on from, but none in {self.folder} is: {first} "
                "(overwrite=true starts over)"
            )
        return None

    def save(self, snapshot: Snapshot, is_best: bool) -> Path:
        """Write a checkpoint beside its place, flush it to disk, move it there in one step, and rotate the others.

        Args:
            snapshot: everything that goes in; the checkpoint is named after its update.
            is_best: point `best` at it.


        Raises:
            CheckpointError: a value is not finite, there is no room, or it cannot be written. The checkpoints before
                it are as they were.
        """
        check_finite(snapshot)
        target = self.folder / f"update-{snapshot.progress.update:07d}"
        scratch = self.folder / f".{target.name}.part"
        crash_point("start")
        try:
            # Not its parents: a run folder that was deleted meanwhile does not come back without its configuration.
            self.folder.mkdir(exist_ok=True)
            self._check_room(snapshot)
            shutil.rmtree(scratch, ignore_errors=True)
            self._write(scratch, snapshot)
            self._publish(scratch, target, is_best)
            drop_replaced(self.folder.parent)
            rotate(self.folder, self.keep, self._find_linked())
        except (OSError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise CheckpointError(
                f"`out` must be a place that can be written, but {target} could not be ({shorten(error)}); the "
                "checkpoints before it are whole"
            ) from error
        crash_point("end")
        return target

    def load(self, folder: Path, state: TrainingState, is_main: bool = True) -> Provenance:
        """Bring a training to the state of a checkpoint that `find_valid` found.

        Args:
            folder: of the checkpoint.
            state: of the training.
            is_main: whether this is the one process that writes, and points `last` and `best` there.

        Returns:
            What the run was made with until then.

        Raises:
            CheckpointError: something is missing in it, or does not fit the model.
            DataError: it was made with other utterances.
        """
        header = self._read_header(folder)
        check_provenance(header.provenance, self.provenance, self.folder.parent)
        try:
            tensors = safetensors.torch.load_file(folder / TENSORS)
            load_weights(state.model, folder, "out")
            averaged = {} if state.average is None else safetensors.torch.load_file(folder / AVERAGED)
            state.restore(migrate(tensors, header.version, state), header.progress, averaged)
        except (OSError, SafetensorError, ValueError, TypeError, LookupError) as error:
            raise _refuse(folder, error) from error
        state.progress.damaged_checkpoints += self.num_damaged
        if is_main:
            with writing(self.folder):
                self._point("last", folder)
                self._restore_best(header)
        self.provenance = _keep_precision(self.provenance, header.provenance)
        return header.provenance

    def finish(self) -> None:
        """Point `best` at the last checkpoint where no validation chose one."""
        last = self.find_last()
        if last is not None and not (self.folder / "best").exists():
            with writing(self.folder):
                self._point("best", last)

    def _read_header(self, folder: Path) -> Header:
        try:
            header = read_header(folder / STATE)
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise _refuse(folder, error) from error
        if header.version == 1:
            _logger.warning("%s is of an earlier version without checksums: it cannot be verified", folder.name)
        return header

    def _write(self, scratch: Path, snapshot: Snapshot) -> None:
        """Write all files and flush them, the checksums last: with them the checkpoint is whole."""
        write_model_files(scratch, snapshot.weights, snapshot.description)
        if snapshot.averaged:
            safetensors.torch.save_file(snapshot.averaged, scratch / AVERAGED, metadata={"format": "pt"})
        crash_point("weights")
        safetensors.torch.save_file(snapshot.tensors, scratch / TENSORS)
        crash_point("tensors")
        write_header(scratch / STATE, snapshot.progress, self.provenance)
        crash_point("header")
        flush_files(scratch)
        # What was logged up to here must reach the disk before the checkpoint does.
        for log in (self.folder.parent / name for name in LOGS):
            if log.is_file():
                flush(log)
        crash_point("flushed")
        write_checksums(scratch)
        crash_point("checksums")
        flush(scratch / CHECKSUMS)
        flush(scratch)
        crash_point("sealed")

    def _publish(self, scratch: Path, target: Path, is_best: bool) -> None:
        """Move a whole checkpoint to its place, and point `last` and `best` there only then."""
        aside = _aside(target)
        if target.exists():
            target.rename(aside)
            crash_point("replaced")
        scratch.rename(target)
        crash_point("renamed")
        flush(self.folder)
        flush(self.folder.parent)
        crash_point("published")
        self._point("last", target)
        crash_point("last")
        if is_best:
            self._point("best", target)
            crash_point("best")
        shutil.rmtree(aside, ignore_errors=True)

    def _recover(self) -> None:
        """Clear what a save left that was cut off, and put back what it was about to replace."""
        restore_links(self.folder)
        for aside in self.folder.glob(".update-*.replaced"):
            target = aside.with_name(aside.name[1:].removesuffix(".replaced"))
            if target.exists():
                remove(aside)
            else:
                aside.rename(target)
        # Earlier versions named scratch folders and links after their process.
        for scratch in (*self.folder.glob(".*.part"), *self.folder.glob(".last*"), *self.folder.glob(".best*")):
            remove(scratch)

    def _report(self, problems: dict[Path, str]) -> None:
        """Name damaged checkpoints in the log, count them, and set them aside."""
        for checkpoint, problem in problems.items():
            _logger.error("checkpoint %s is damaged: %s; an earlier one takes its place", checkpoint.name, problem)
            set_aside(checkpoint)
        self.num_damaged += len(problems)

    def _restore_best(self, header: Header) -> None:
        """Point `best` where it pointed when the checkpoint was saved; a crash or damage may have left it elsewhere."""
        best = self.folder / f"update-{header.progress.best_update:07d}"
        if header.progress.best_value is not None and best.is_dir():
            self._point("best", best)
        elif header.version > 1:
            (self.folder / "best").unlink(missing_ok=True)

    def _check_room(self, snapshot: Snapshot) -> None:
        need = snapshot.num_bytes + MARGIN_BYTES
        room = shutil.disk_usage(self.folder).free
        if room < need:
            raise CheckpointError(
                f"`out` must have room for a checkpoint, but {self.folder} has {room / 2**20:.0f} MiB free and "
                f"{need / 2**20:.0f} MiB are needed (the checkpoints before it are whole)"
            )

    def _find_linked(self) -> set[Path]:
        links = [self.folder / name for name in ("best", "last")]
        return {self.folder / os.readlink(link) for link in links if link.is_symlink()}

    def _point(self, name: str, target: Path) -> None:
        """Make `name` a relative link to a checkpoint, in one step."""
        scratch = self.folder / f".{name}"
        remove(scratch)
        scratch.symlink_to(target.name)
        scratch.replace(self.folder / name)


def _aside(target: Path) -> Path:
    """Where a checkpoint lies while another one of its update takes its place."""
    return target.with_name(f".{target.name}.replaced")


def _keep_precision(now: Provenance, stored: Provenance) -> Provenance:
    """Go on in the precision that the run began in."""
    return replace(now, precision=stored.precision or now.precision)


def _refuse(folder: Path, error: Exception) -> CheckpointError:
    problem = f"{folder} does not load ({shorten(error)})"
    return CheckpointError(f"`out` must hold a whole checkpoint, but {problem}")


def migrate(tensors: dict[str, Tensor], version: int, state: TrainingState) -> dict[str, Tensor]:
    """Give the tensors of an earlier version what that did not remember, as a training that begins has it."""
    if version > 1:
        return tensors
    migrated = {**{f"guard/{name}": value for name, value in state.guard.state().items()}, **tensors}
    numbers = "objective/collapse.numbers"
    if numbers in tensors and state.objective.watch is not None:
        begun = state.objective.watch.state()["collapse.numbers"]
        migrated[numbers] = torch.cat([tensors[numbers], begun[len(tensors[numbers]) :]])
    return migrated


NUMERIC = ("optimizer/",)
"""Parts of a snapshot that updates compute with. What others remember may be infinite before it is known."""


def check_finite(snapshot: Snapshot) -> None:
    """Make sure that a snapshot holds no NaN and no infinity, from which no run recovers.

    Raises:
        CheckpointError: naming the first tensor that does.
    """
    numeric = {name: value for name, value in snapshot.tensors.items() if name.startswith(NUMERIC)}
    for name, value in (*snapshot.weights.items(), *snapshot.averaged.items(), *numeric.items()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"a checkpoint must hold finite values only, but {name} does not after update "
                f"{snapshot.progress.update} (not published; the checkpoints before it are whole)"
            )
