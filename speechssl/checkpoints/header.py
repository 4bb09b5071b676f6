"""The head of a checkpoint's training state, `training.json`: its version, how far the run has come, and with what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from speechssl.checkpoints.provenance import Provenance
from speechssl.checkpoints.state import Progress
from speechssl.errors import CheckpointError

VERSION = 3
"""Version of the training state. 1 was the bare counters, and had no checksums; 2 remembered one metric of the best."""

T = TypeVar("T")


@dataclass(frozen=True)
class Header:
    """What `training.json` says.

    Attributes:
        progress: counters.
        provenance: what the run was made with.
        version: that the file had before it was migrated.
    """

    progress: Progress
    provenance: Provenance = field(default_factory=Provenance)
    version: int = VERSION


def write_header(path: Path, progress: Progress, provenance: Provenance) -> None:
    """Write a header of today's version."""
    content = {"version": VERSION, "progress": asdict(progress), "provenance": asdict(provenance)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_header(path: Path) -> Header:
    """Read a header of this version or an earlier one.

    Raises:
        CheckpointError: it is of a later version.
        OSError, ValueError, TypeError, LookupError, RecursionError: it does not read, or something is missing in it.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no object")
    version = content.get("version", 1)
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path.name} has the version {version!r}")
    if version > VERSION:
        raise CheckpointError(
            f"`out` must hold checkpoints of version {VERSION} or earlier, but {path.parent} is of version {version}, "
            "which a later speechssl wrote"
        )
    content = _migrate(content, version)
    progress, provenance = _build(Progress, content["progress"]), _build(Provenance, content["provenance"])
    return Header(progress, provenance, version)


def _migrate(content: dict[str, Any], version: int) -> dict[str, Any]:
    """Bring the content of an earlier version to today's, one version after the other."""
    if version == 1:
        # Validation came before saving, and of what the run was made nothing was known.
        progress = {**asdict(Progress()), **content, "validated_update": content["update"]}
        content = {"version": 2, "progress": progress, "provenance": asdict(Provenance())}
    if content["version"] == 2:
        content = {**content, "version": 3, "progress": {"best_tie": None, **content["progress"]}}
    return content


def _build(kind: type[T], values: dict[str, Any]) -> T:
    """Build a record from plain values: every field must be there, and nothing else."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if values.keys() != names:
        raise ValueError(f"{kind.__name__} must have {sorted(names)}, but has {sorted(values)}")
    return kind(**values)
