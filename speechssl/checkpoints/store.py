"""Checkpoints of a run on disk: published in one step, verified before they are used, and rotated."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from speechssl.checkpoints.checksums import CHECKSUMS, find_damage, write_checksums
from speechssl.checkpoints.layout import CHECKPOINTS, LOGS, list_damaged, list_published
from speechssl.checkpoints.model_folder import AVERAGED, CONFIG, WEIGHTS, load_weights, write_model_files
from speechssl.checkpoints.replacement import drop_replaced
from speechssl.checkpoints.snapshot import (
    STATE,
    UNREADABLE,
    Header,
    Provenance,
    Restorable,
    Snapshot,
    read_header,
    write_header,
)
from speechssl.durable import flush, flush_files, remove, save_tensors, writing
from speechssl.errors import CheckpointError
from speechssl.parsing import shorten

TENSORS = "training.safetensors"
FILES = (CONFIG, WEIGHTS, STATE, TENSORS)
"""What a checkpoint must hold."""

MARGIN_BYTES = 16 * 2**20
"""Room on disk beyond the tensors: headers, the log, and what others write meanwhile."""

CRASH_AT = "SPEECHSSL_CRASH_AT"
"""`<point>` dies when it is reached first, `<point>:<n>` at the n-th time. For tests; without it nothing happens."""

_reached: dict[str, int] = {}

_logger = logging.getLogger("speechssl")


class CheckpointStore:
    """The folder `checkpoints/` of a run.

    Args:
        folder: of the run.
        keep: how many of the newest checkpoints stay, beside the best one.
        provenance: what the run is made with.
    """

    def __init__(self, folder: Path, keep: int, provenance: Provenance | None = None) -> None:
        self.folder, self.keep = folder / CHECKPOINTS, keep
        self.provenance = provenance or Provenance()
        self.num_damaged = 0

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
        snapshot.check_finite()
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
            self._rotate()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise CheckpointError(
                f"`out` must be a place that can be written, but {target} could not be ({shorten(error)}); the "
                "checkpoints before it are whole"
            ) from error
        crash_point("end")
        return target

    def load(self, folder: Path, state: Restorable, is_main: bool = True) -> str:
        """Bring a training to the state of a checkpoint that `find_valid` found.

        Args:
            folder: of the checkpoint.
            state: of the training.
            is_main: whether this is the one process that writes, and points `last` and `best` there.

        Returns:
            The precision that the run began in, in which it goes on.

        Raises:
            CheckpointError: something is missing in it, or does not fit the model.
            DataError: it was made with other utterances.
        """
        try:
            header = read_header(folder / STATE)
            header.provenance.check_same(self.provenance, self.folder.parent)
            tensors = safetensors.torch.load_file(folder / TENSORS)
            load_weights(state.model, folder, "out")
            averaged = safetensors.torch.load_file(folder / AVERAGED) if state.has_average else {}
            header.progress.damaged_checkpoints += self.num_damaged
            state.restore(tensors, header.progress, averaged)
        except (SafetensorError, *UNREADABLE) as error:
            problem = f"{folder} does not load ({shorten(error)})"
            raise CheckpointError(f"`out` must hold a whole checkpoint, but {problem}") from error
        if is_main:
            with writing(self.folder):
                self._point("last", folder)
                self._restore_best(header)
        precision = header.provenance.precision or self.provenance.precision
        self.provenance = replace(self.provenance, precision=precision)
        return precision

    def finish(self) -> None:
        """Point `best` at the last checkpoint where no validation chose one."""
        published = list_published(self.folder)
        if published and not (self.folder / "best").exists():
            with writing(self.folder):
                self._point("best", published[-1])

    def _write(self, scratch: Path, snapshot: Snapshot) -> None:
        """Write all files and flush them, the checksums last: with them the checkpoint is whole."""
        write_model_files(scratch, snapshot.weights, snapshot.description)
        if snapshot.averaged:
            save_tensors(scratch / AVERAGED, snapshot.averaged, {"format": "pt"})
        crash_point("weights")
        save_tensors(scratch / TENSORS, snapshot.tensors)
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
        # Where one of this update lies until the new one takes its place.
        aside = target.with_name(f".{target.name}.replaced")
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

    def _rotate(self) -> None:
        """Delete what is older than the newest whole checkpoints and not the best, and the damaged ones set aside.

        One that is cut off is not counted as whole, and goes with the old ones.
        """
        published = list_published(self.folder)
        whole = [path for path in published if not find_problem(path, is_quick=True)][-self.keep :]
        links = [self.folder / name for name in ("best", "last")]
        linked = {self.folder / os.readlink(link) for link in links if link.is_symlink()}
        old = [path for path in published[: published.index(whole[0])] if path not in linked] if whole else []
        for checkpoint in [*old, *list_damaged(self.folder)]:
            crash_point("rotation")
            # Out of sight in one step first, so that half of one is never found.
            hidden = checkpoint.with_name(f".{checkpoint.name}.part")
            remove(hidden)
            checkpoint.rename(hidden)
            remove(hidden)

    def _recover(self) -> None:
        """Clear what a save left that was cut off, and put back what it was about to replace."""
        self._restore_links()
        for aside in self.folder.glob(".update-*.replaced"):
            target = aside.with_name(aside.name[1:].removesuffix(".replaced"))
            if target.exists():
                remove(aside)
            else:
                aside.rename(target)
        for scratch in (*self.folder.glob(".*.part"), self.folder / ".last", self.folder / ".best"):
            remove(scratch)

    def _restore_links(self) -> None:
        """Give up copies that stand where `best` and `last` are links, as `cp -rL` leaves them.

        A copy whose checkpoint is gone takes its place, to be verified as any other; one that does not say which it is
        stays under another name.
        """
        for copy in (self.folder / name for name in ("best", "last")):
            if copy.is_symlink() or not os.path.lexists(copy):
                continue
            try:
                name = f"update-{read_header(copy / STATE).progress.update:07d}"
            except (CheckpointError, *UNREADABLE):
                name = f"damaged-update-{copy.name}"
            place = self.folder / name
            if place.is_dir() and find_problem(place) and not find_problem(copy):
                _set_aside(place)
            if os.path.lexists(place):
                remove(copy)
            else:
                copy.rename(place)

    def _report(self, problems: dict[Path, str]) -> None:
        """Name damaged checkpoints in the log, count them, and set them aside."""
        for checkpoint, problem in problems.items():
            _logger.error("checkpoint %s is damaged: %s; an earlier one takes its place", checkpoint.name, problem)
            _set_aside(checkpoint)
        self.num_damaged += len(problems)

    def _restore_best(self, header: Header) -> None:
        """Point `best` where it pointed when the checkpoint was saved; a crash or damage may have left it elsewhere."""
        best = self.folder / f"update-{header.progress.best_update:07d}"
        if header.progress.best_value is not None and best.is_dir():
            self._point("best", best)
        else:
            (self.folder / "best").unlink(missing_ok=True)

    def _check_room(self, snapshot: Snapshot) -> None:
        need = snapshot.num_bytes + MARGIN_BYTES
        room = shutil.disk_usage(self.folder).free
        if room < need:
            raise CheckpointError(
                f"`out` must have room for a checkpoint, but {self.folder} has {room / 2**20:.0f} MiB free and "
                f"{need / 2**20:.0f} MiB are needed (the checkpoints before it are whole)"
            )

    def _point(self, name: str, target: Path) -> None:
        """Make `name` a relative link to a checkpoint, in one step."""
        scratch = self.folder / f".{name}"
        remove(scratch)
        scratch.symlink_to(target.name)
        scratch.replace(self.folder / name)


def find_problem(checkpoint: Path, is_quick: bool = False) -> str:
    """Check a checkpoint: thoroughly before it is used, cheaply before others are deleted.

    Args:
        checkpoint: its folder.
        is_quick: compare the sizes of files instead of their SHA-256.

    Returns:
        What is wrong with it, as a clause; empty for one that is whole.

    Raises:
        CheckpointError: it is whole, and of a later version.
    """
    problem = find_damage(checkpoint, FILES, is_quick)
    if problem or is_quick:
        return problem
    try:
        read_header(checkpoint / STATE)
    except UNREADABLE as error:
        return f"{checkpoint / STATE} does not read ({shorten(error)})"
    return ""


def crash_point(name: str) -> None:
    """Die by SIGKILL here, as in a power cut, if the environment asks for it."""
    wanted, _, count = os.environ.get(CRASH_AT, "").partition(":")
    if wanted != name:
        return
    _reached[name] = _reached.get(name, 0) + 1
    if _reached[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def _set_aside(checkpoint: Path) -> None:
    """Take a damaged checkpoint out of the row; it stays for a look until the next one is published."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    remove(aside)
    checkpoint.rename(aside)
