"""What a run was made with beside its configuration, so that it does not go on with something else unseen."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from speechssl.errors import DataError

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Provenance:
    """What the updates of a run are a function of, beside its configuration.

    Attributes:
        precision: that `precision=auto` stood for; empty where unknown.
        data: digest of the ids and lengths behind each key, such as `data.train`, and of the transcripts where they are
            learned from; None where unknown.
        versions: of packages whose arithmetic may differ.
    """

    precision: str = ""
    data: dict[str, str] | None = None
    versions: dict[str, str | None] = field(default_factory=dict)


def check_provenance(stored: Provenance, now: Provenance, folder: Path) -> None:
    """Compare what a checkpoint was made with and what the run would go on with.

    Raises:
        DataError: the utterances are others, so the plan would be another one.
    """
    for key, digest in (now.data or {}).items():
        name, _, part = key.partition(" ")
        # Earlier checkpoints know nothing of transcripts.
        if stored.data is not None and stored.data.get(key, digest if part else None) != digest:
            raise DataError(
                f"`{name}` must hold the utterances that the run in {folder} began with, but their "
                f"{'transcripts' if part else 'ids or lengths'} have changed (another out= starts a new run)"
            )
    if stored.precision and now.precision and stored.precision != now.precision:
        _logger.warning(
            "precision=auto would be %s here, but the run began in %s and stays with it",
            now.precision,
            stored.precision,
        )
    for name, version in now.versions.items():
        before = stored.versions.get(name, version)
        if before != version:
            _logger.warning("the checkpoint is of %s %s, and this is %s: last bits may differ", name, before, version)
