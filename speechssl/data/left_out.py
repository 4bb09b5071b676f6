"""Utterances that cannot be used: noted while the others go on, then counted, named and listed beside the result."""

from __future__ import annotations

import logging
import os
from dataclasses import astuple, fields
from pathlib import Path

from speechssl.data.dataset import LeftOut as Item
from speechssl.data.manifest import Manifest
from speechssl.errors import DataError
from speechssl.printable import make_printable

LEFT_OUT_NAME = "left_out.tsv"
"""The table in a folder; beside a file `x.parquet` it is `x.left_out.tsv`."""

_logger = logging.getLogger("speechssl")


class LeftOut:
    """The utterances that one command leaves out; threads may add to it.

    Args:
        key: the key that named them, for messages.
    """

    def __init__(self, key: str = "audio") -> None:
        self.key = key
        self._items: dict[tuple[str, str], Item] = {}

    def __len__(self) -> int:
        """Count them."""
        return len(self._items)

    @property
    def items(self) -> list[Item]:
        """Give them by their ids, whatever order threads noted them in."""
        return sorted(self._items.values())

    def add(self, name: str, path: str | os.PathLike[str], reason: str) -> None:
        """Note one, with the sentence that says why; one that is noted keeps its first."""
        self._items.setdefault((name, os.fspath(path)), Item(name, os.fspath(path), reason))

    def extend(self, other: LeftOut) -> None:
        """Note what another one has noted."""
        self._items = {**other._items, **self._items}

    def drop_from(self, manifest: Manifest) -> Manifest:
        """Give the rows of a manifest, whose ids are unique, that are not left out."""
        if not self._items:
            return manifest
        names = {name for name, _ in self._items}
        return manifest.select([row for row, name in enumerate(manifest.column("id")) if name not in names])

    def require_others(self, num_used: int) -> None:
        """Make sure that some could be used.

        Raises:
            DataError: none could; the reason is that of the first.
        """
        if num_used or not self._items:
            return
        first = self.items[0].reason
        if len(self._items) > 1:
            first = f"`{self.key}` must have some that can be used, but none of {len(self)} can be: {first}"
        raise DataError(first)

    def warn(self, listed: str = "") -> None:
        """Say how many there are, and why the first is one of them."""
        _logger.warning("left out: %d that cannot be used%s; the first: %s", len(self), listed, self.items[0].reason)

    def save(self, out: Path) -> None:
        """Write the table beside the file `out`, or into the folder, and say so; without any, an earlier one goes."""
        path = out / LEFT_OUT_NAME if out.is_dir() else out.with_name(f"{out.stem}.{LEFT_OUT_NAME}")
        if not self._items:
            path.unlink(missing_ok=True)
            return
        rows = [tuple(field.name for field in fields(Item)), *(astuple(item) for item in self.items)]
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text("".join("\t".join(map(make_printable, row)) + "\n" for row in rows), encoding="utf-8")
        scratch.replace(path)
        self.warn(f", listed in {path}")
