"""Rows of a padded batch laid one behind the other without their padding, so that nothing is computed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Packing:
    """Where the rows of a batch lie in a packed one.

    Attributes:
        num_frames: valid frames of each of B rows, together N.
        length: frames T of a padded row.
    """

    num_frames: tuple[int, ...]
    length: int

    @property
    def slices(self) -> list[slice]:
        """The packed frames of each row."""
        ends = [sum(self.num_frames[: row + 1]) for row in range(len(self.num_frames))]
        return [slice(end - count, end) for end, count in zip(ends, self.num_frames, strict=True)]

    def pack(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "1 N D"]:
        """Leave the padding out."""
        return torch.cat([row[:count] for row, count in zip(x, self.num_frames, strict=True)])[None]

    def unpack(self, x: Float[Tensor, "1 N D"]) -> Float[Tensor, "B T D"]:
        """Put the padding back, as zeros."""
        return pad_rows([x[0, frames] for frames in self.slices], self.length)


Scope = Bool[Tensor, "B 1 1 T"] | Packing | None
"""Which frames attend to which: to keys that are True; to those of their own row of a packed batch; to all."""

Run = Callable[[Tensor, Scope], tuple[Tensor, list[Tensor]]]
"""What transforms frames (B, T, D) in a scope: an output and states, each as large."""


def run_rows(
    x: Float[Tensor, "B T D"], num_frames: Int[Tensor, " B"] | None, run: Run
) -> tuple[Float[Tensor, "B T D"], list[Float[Tensor, "B T D"]]]:
    """As the transformer's `run_rows`, on packed rows; padded frames are zero in the results."""
    if num_frames is None:
        return run(x, None)
    packing = Packing(tuple(num_frames.tolist()), x.shape[1])
    out, states = run(packing.pack(x), packing)
    return packing.unpack(out), [packing.unpack(state) for state in states]


def pad_rows(rows: list[Tensor], length: int) -> Float[Tensor, "B T D"]:
    """Stack rows (T_b, D) with zeros behind them."""
    return torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in rows])
