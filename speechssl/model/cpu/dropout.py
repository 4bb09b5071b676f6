"""Dropout: as torch's on a GPU; on the CPU from 16 random bits a number, which takes a sixth of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_STEPS = 1 << 16


@dataclass(frozen=True)
class Kept:
    """What a dropout keeps.

    Attributes:
        mask: bool, True where a number is kept.
        scale: what the kept are multiplied by, so that the expectation stays.
    """

    mask: Tensor
    scale: float


def draw_kept(shape: Sequence[int], prob: float) -> Kept:
    """Draw what is kept on the CPU, from torch's global generator.

    Args:
        shape: of the mask.
        prob: that a number is dropped; rounded to a multiple of 2^-16, and `scale` is that of the rounded one.
    """
    size = torch.Size(shape)
    dropped = round(prob * _STEPS)
    assert 0 <= dropped < _STEPS, f"a probability below 1, not {prob}"
    # Each 64-bit draw is four numbers.
    draws = torch.empty(-(-size.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: size.numel()].view(size)
    return Kept(bits >= dropped - _STEPS // 2, _STEPS / (_STEPS - dropped))


class Dropout(nn.Module):
    """Zero numbers with probability `prob` in training and scale the others up.

    Args:
        prob: at least 0 and below 1.
    """

    def __init__(self, prob: float | int) -> None:  # an integer, too, at run time: dropout=0
        super().__init__()
        self.prob = float(prob)

    def forward(self, x: Tensor) -> Tensor:
        """Drop out of a tensor of any shape."""
        if not self.training or self.prob == 0.0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.prob)
        kept = draw_kept(x.shape, self.prob)
        out: Tensor = _Keep.apply(x, kept)
        return out

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"prob={self.prob}"


class _Keep(torch.autograd.Function):
    """Zero what is not kept and scale the rest, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Kept) -> Tensor:
        ctx.save_for_backward(kept.mask)
        ctx.scale = kept.scale
        return torch.where(kept.mask, x, 0.0).mul_(kept.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, grads[0], 0.0).mul_(ctx.scale), None
