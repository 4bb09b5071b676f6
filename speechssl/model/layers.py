"""torch's layers as this network needs them: norms in float32, dropout, and gradients that are scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.model.cpu import dropout as cpu_dropout
from speechssl.model.cpu import on_cpu, precision
from speechssl.model.cpu.precision import widen
from speechssl.model.lengths import make_valid_mask


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension, computed in float32 whatever the precision of the network."""

    def forward(self, input: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """Normalise each vector of `input` (…, D)."""
        return layer_norm(input, self)


@on_cpu(precision.layer_norm, when_compiled=True)
def layer_norm(x: Float[Tensor, "*rest D"], norm: nn.LayerNorm) -> Float[Tensor, "*rest D"]:
    """Normalise vectors; the result stays in float32, as autocast leaves it."""
    return F.layer_norm(widen(x), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a (B, C, 1, T) tensor, in float32; the result has the precision of the input."""

    def forward(self, input: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Normalise each position on its own, so that `num_samples` is of no use."""
        return self.normalize_last(input.movedim(1, 3)).movedim(3, 1)

    def normalize_last(self, x: Tensor) -> Tensor:
        """Normalise (…, C) over its last dimension."""
        return super().forward(widen(x)).to(x.dtype)


class TimeGroupNorm(nn.GroupNorm):
    """One group a channel: each channel of (B, C, 1, T) is normalised over time, in float32.

    Args:
        channels: C.
        count_valid: says how many positions so many samples make, (B,) → (B,). Then mean and variance are taken over
            the valid positions of each row alone, so that padding and batch companions do not enter, and those beyond
            hold values that nothing downstream may read. None: over all positions, as the published models do.
    """

    def __init__(self, channels: int, count_valid: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__(channels, channels, eps=1e-5, affine=True)
        self.count_valid = count_valid

    def forward(self, input: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Normalise (B, C, 1, T); `num_samples` (B,) are those of the waveforms, None where nothing is padded."""
        if num_samples is None or self.count_valid is None:
            return super().forward(widen(input)).to(input.dtype)
        normed = normalize_valid(widen(input), self.count_valid(num_samples), self.eps)
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def normalize_valid(
    x: Float[Tensor, "B *rest T"], num_valid: Int[Tensor, " B"] | None, epsilon: float, correction: int = 0
) -> Float[Tensor, "B *rest T"]:
    """Give each row zero mean and unit variance over its valid positions in the last dimension; beyond it is zero.

    Args:
        x: (B, …, T) float32 or float64.
        num_valid: (B,) valid positions of each row; None where nothing is padded.
        epsilon: added to the variance before the root.
        correction: what the count of the variance is lowered by: 0 for that of the population, 1 for that of a sample.
    """
    if num_valid is None:
        num_valid = torch.full((len(x),), x.shape[-1], device=x.device)
    between = (1,) * (x.ndim - 2)
    valid = make_valid_mask(num_valid, x.shape[-1]).reshape(x.shape[0], *between, x.shape[-1])
    count = num_valid.clamp(min=1).reshape(x.shape[0], *between, 1)
    mean = torch.where(valid, x, 0.0).sum(-1, keepdim=True) / count
    centred = torch.where(valid, x - mean, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / (count - correction).clamp(min=1)
    return centred * torch.rsqrt(variance + epsilon)


class Dropout(nn.Dropout):
    """Zero numbers with probability `p` (at least 0, below 1) in training, and scale the others up."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop out of a tensor of any shape."""
        return drop(input, float(self.p) if self.training else 0.0)


@on_cpu(cpu_dropout.drop)
def drop(x: Tensor, prob: float) -> Tensor:
    """Zero numbers of a tensor of any shape with probability `prob`, and scale the others by 1 / (1 - prob)."""
    return F.dropout(x, prob) if prob else x


class PooledDropout(nn.Dropout):
    """As `Dropout`; on the CPU its masks come from a pool, since drawing them takes 6 % of a small network's step."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop out of a tensor of any shape."""
        return drop_from_pool(input, float(self.p) if self.training else 0.0)


@on_cpu(cpu_dropout.drop_from_pool)
def drop_from_pool(x: Tensor, prob: float) -> Tensor:
    """As `drop`: only a CPU has a pool."""
    return F.dropout(x, prob) if prob else x


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Pass `x` through unchanged and multiply the gradient that flows back by `scale` (fairseq's GradMultiply)."""
    if scale == 1.0:
        return x
    scaled: Tensor = _ScaleGradient.apply(x, scale)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; the gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None
