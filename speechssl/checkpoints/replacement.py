"""What a command finds in its run folder: put back where it is refused, gone with its own first checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from speechssl.checkpoints.layout import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    DECODING,
    ENVIRONMENT,
    LEFT_OUT,
    LOGS,
    REPORT,
    RESULT,
    TRACKERS,
    list_published,
)
from speechssl.durable import remove

ASIDE = ".replaced"
"""Folder inside a run folder, for what lies aside."""

COMPLETE = "complete"
"""File in it: a whole run lies there, and what else the run folder holds is the new one's."""

HEAD = (CONFIG, ENVIRONMENT, RESULT)
"""What every command writes anew."""

WHOLE = (CHECKPOINTS, "tensorboard", "wandb", *HEAD, *LOGS, LEFT_OUT, DATA, DECODING, TRACKERS, REPORT)
"""What a run writes, and so what overwrite=true replaces: checkpoints first and back last, since they make it a run."""


class Replacement:
    """Keeps what lay in a run folder until the command that goes on or starts over there has made an update.

    Args:
        folder: of the run.
        overwrite: whether the run there is replaced, and not only what every command writes anew. Where there is none,
            files of these names are somebody else's.
    """

    def __init__(self, folder: Path, overwrite: bool) -> None:
        is_run = (folder / CONFIG).exists() or bool(list_published(folder / CHECKPOINTS))
        self.folder, self.aside, self.overwrite = folder, folder / ASIDE, overwrite and is_run
        self.found = [name for name in WHOLE if os.path.lexists(folder / name)]

    def begin(self) -> None:
        """Set aside what will be replaced; a run that only goes on is never without its configuration meanwhile."""
        chosen = self.found if self.overwrite else [name for name in self.found if name in HEAD]
        if not chosen:
            return
        self.aside.mkdir()
        for name in chosen:
            if self.overwrite:
                (self.folder / name).rename(self.aside / name)
            else:
                # In one step: what is copied by half must not come back.
                shutil.copy2(self.folder / name, self.aside / f"{name}.part")
                (self.aside / f"{name}.part").rename(self.aside / name)
        if self.overwrite:
            (self.aside / COMPLETE).touch()

    def undo(self) -> None:
        """Leave the folder as it was: what was not found in it goes, what was set aside comes back."""
        for name in WHOLE:
            if name not in self.found:
                remove(self.folder / name)
        _put_back(self.folder)
        drop_replaced(self.folder)


def recover(folder: Path) -> None:
    """Clear up after a command that was killed: what it had replaced comes back, unless it had a checkpoint already."""
    if (folder / ASIDE).is_symlink():
        # Not ours: what lies where it leads is nobody's earlier run.
        (folder / ASIDE).unlink()
    if not list_published(folder / CHECKPOINTS):
        is_complete = (folder / ASIDE / COMPLETE).exists()
        for name in WHOLE if is_complete else ():
            if not os.path.lexists(folder / ASIDE / name):
                remove(folder / name)
        _put_back(folder)
    drop_replaced(folder)


def drop_replaced(folder: Path) -> None:
    """Delete what lies aside: the run has a checkpoint of its own."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Move back what lies aside, so that a kill at any point is followed by the rest of it."""
    aside = folder / ASIDE
    (aside / COMPLETE).unlink(missing_ok=True)
    for name in reversed(WHOLE):
        if not os.path.lexists(aside / name):
            continue
        if (aside / name).is_dir():
            remove(folder / name)
        (aside / name).replace(folder / name)
