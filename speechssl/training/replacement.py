"""What a command finds in its run folder: put back where it is refused, gone with its own first checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from speechssl.training.metrics import NAME, SKIPPED
from speechssl.training.rotation import list_published
from speechssl.training.run_folder import CONFIG, ENVIRONMENT, RESULT

ASIDE = ".replaced"
"""Folder inside a run folder, for what lies aside."""

HEAD = (CONFIG, ENVIRONMENT, RESULT)
"""What every command writes anew."""

WHOLE = ("checkpoints", "tensorboard", "wandb", *HEAD, NAME, SKIPPED, "trackers.json", "report.html")
"""What a run writes, and so what overwrite=true replaces: checkpoints first, since with them there is a run."""


class Replacement:
    """Keeps what lay in a run folder until the command that goes on or starts over there has made an update.

    Args:
        folder: of the run.
        overwrite: whether the whole run is replaced, and not only what every command writes anew.
    """

    def __init__(self, folder: Path, overwrite: bool) -> None:
        self.folder, self.aside, self.overwrite = folder, folder / ASIDE, overwrite
        self.names = WHOLE if overwrite or not (folder / CONFIG).exists() else HEAD

    def begin(self) -> None:
        """Set aside what will be replaced; a run that only goes on is never without its configuration meanwhile."""
        for name in WHOLE if self.overwrite else HEAD:
            path = self.folder / name
            if not path.exists():
                continue
            self.aside.mkdir(exist_ok=True)
            if self.overwrite:
                path.rename(self.aside / name)
            else:
                shutil.copy2(path, self.aside / name)

    def undo(self) -> None:
        """Leave the folder as it was."""
        for name in self.names:
            _remove(self.folder / name)
        _put_back(self.folder)
        drop_replaced(self.folder)


def recover(folder: Path) -> None:
    """Clear up after a command that was killed: what it had replaced comes back, unless it had a checkpoint already."""
    if not list_published(folder / "checkpoints"):
        _put_back(folder)
    drop_replaced(folder)


def drop_replaced(folder: Path) -> None:
    """Delete what lies aside: the run has a checkpoint of its own."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)


def _put_back(folder: Path) -> None:
    for path in [folder / ASIDE / name for name in WHOLE if (folder / ASIDE / name).exists()]:
        _remove(folder / path.name)
        path.rename(folder / path.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
