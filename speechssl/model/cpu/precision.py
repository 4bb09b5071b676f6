"""What torch 2.14 computes wrongly in bf16 on a CPU, in float32."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_BF16_CHANNELS = 16
"""oneDNN 3.12 convolves bf16 wrongly on CPUs with AMX where a group has 2 to 15 channels and many an even kernel: the
result has the right size and nothing to do with the input. So fewer than these are convolved in float32."""


def widen(x: Tensor) -> Tensor:
    """Give a tensor in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def layer_norm(x: Float[Tensor, "*rest D"], norm: nn.LayerNorm) -> Float[Tensor, "*rest D"]:
    """Normalise in float32, forward and backward; the result has the precision of `x`.

    In bf16 torch adds up the gradients of weight and bias in bf16, which stops growing at 256 times what is added: of a
    bias's gradient over 2,000 frames two thirds were lost, over 20,000 frames 94 %.
    """
    return F.layer_norm(widen(x), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


def grouped_convolution(
    x: Float[Tensor, "B D 1 T"], weight: Float[Tensor, "D I 1 k"], bias: Tensor | None, padding: int, groups: int
) -> Float[Tensor, "B D 1 T2"]:
    """Convolve over the last dimension, in float32 where a group has few channels I."""
    if weight.shape[1] >= FEWEST_BF16_CHANNELS:
        return F.conv2d(x, weight, bias, padding=(0, padding), groups=groups)
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(widen(x), weight, bias, padding=(0, padding), groups=groups)
