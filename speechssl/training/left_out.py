"""Utterances that a run cannot read: listed once in `left_out.tsv`, warned of, and too many of them stop it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from speechssl.checkpoints.layout import LEFT_OUT
from speechssl.data.dataset import LeftOut
from speechssl.durable import write_in_one_step
from speechssl.errors import DataError
from speechssl.printable import make_printable

HEADER = "id\tpath\treason"

FEW, SHARE = 5, 0.01
"""So many utterances, or this share of them, may be unreadable: more is no damaged file but a missing folder."""

_logger = logging.getLogger("speechssl")


class LeftOutTable:
    """`left_out.tsv` of a run folder; made with its first row, and never cut: it says what updates were made without.

    Args:
        folder: of the run.
        sizes: utterances behind each key, such as `data.train`.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self.path, self.sizes = folder / LEFT_OUT, sizes
        self.rows = read_left_out(folder)
        # Counts anew in each process: files may have come back since.
        self.missed: set[str] = set()

    def note(self, key: str, found: Sequence[LeftOut], is_pass: bool) -> None:
        """Take in what could not be read of an update, or of a pass over all of `key`; warn of what is new.

        Raises:
            DataError: it is too much for the run to make sense.
        """
        rows = {row[0]: "\t".join(row) for utterance in found if (row := _format(utterance))}
        new = [name for name in rows if name not in self.rows]
        if new:
            self.rows |= {name: rows[name] for name in new}
            write_in_one_step(self.path, "\n".join([HEADER, *self.rows.values()]) + "\n")
            count = "1 utterance that cannot be read is" if len(new) == 1 else f"{len(new)} that cannot be read are"
            reason = rows[new[0]].split("\t")[-1]
            _logger.warning("%s: %s left out, listed in %s: %s: %s", key, count, LEFT_OUT, new[0], reason)
        self.missed |= rows.keys()
        self._check(key, len(self.missed), sum(self.sizes.values()), found)
        if is_pass:
            self._check(key, len(found), self.sizes[key], found)

    def _check(self, key: str, count: int, total: int, found: Sequence[LeftOut]) -> None:
        if count > max(FEW, SHARE * total) or count >= total:
            raise refuse(key, f"{count} of {total} utterances", found)


def refuse(key: str, what: str, found: Sequence[LeftOut]) -> DataError:
    """Make the error of a run that can read too little."""
    name, _, reason = _format(found[-1])
    return DataError(
        f"`{key}` must hold audio that can be read, but {what} cannot, the last of them {name}: {reason} "
        f"({LEFT_OUT} has all; with the files back in their places the same command goes on)"
    )


def read_left_out(folder: Path) -> dict[str, str]:
    """Read which utterances a run has left out: their whole lines by id; none without the table."""
    path = folder / LEFT_OUT
    if not path.exists():
        return {}
    # Whatever became of the table on disk, it is no reason to stop: it is for people.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[1:]
    return {line.partition("\t")[0]: line for line in lines if line}


def pack(utterances: Sequence[LeftOut]) -> list[str]:
    """Put utterances into lines for `Ranks.gather_lines`."""
    return [json.dumps(asdict(utterance)) for utterance in utterances]


def unpack(lines: Sequence[str]) -> list[LeftOut]:
    """Undo `pack`."""
    return [LeftOut(**json.loads(line)) for line in lines]


def _format(utterance: LeftOut) -> tuple[str, str, str]:
    return make_printable(utterance.id), make_printable(utterance.path), make_printable(utterance.reason)
