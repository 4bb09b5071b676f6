"""The Conformer block: attention, a convolution module and feed-forward, pre-norm (arXiv 2005.08100)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.adaptation import Adapter
from speechssl.model.attention import SelfAttention
from speechssl.model.cpu import convolutions, on_cpu
from speechssl.model.cpu.packing import Packing, Scope
from speechssl.model.cpu.precision import widen
from speechssl.model.layers import LayerNorm, PooledDropout, drop_from_pool

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}
_BATCH_NORM_MOMENTUM, _BATCH_NORM_EPSILON = 0.1, 1e-5


class ConformerBlock(nn.Module):
    """Attention, convolution module and feed-forward, each after a layer norm and with a residual.

    With `model.macaron` half of a feed-forward stands before them and half of one after them, and a last layer norm:
    the block of the paper (§2.4).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.first = FeedForward(config) if config.macaron else None
        self.attention_norm, self.attention = LayerNorm(dim), SelfAttention(config)
        self.convolution_norm, self.convolution = LayerNorm(dim), ConvolutionModule(config)
        self.last = FeedForward(config)
        self.norm = LayerNorm(dim) if config.macaron else None
        self.dropout = PooledDropout(config.dropout)
        self.adapter = Adapter(dim, config.adapter_dim) if config.adapter_dim else nn.Identity()

    def forward(self, x: Float[Tensor, "B T D"], scope: Scope, places: Tensor | None = None) -> Float[Tensor, "B T D"]:
        """Transform frames; those outside `scope` do not change any inside. `places` are those of `SelfAttention`."""
        if self.first is not None:
            x = x + 0.5 * self.dropout(self.first(x))
        x = x + self.dropout(self.attention(self.attention_norm(x), scope, places))
        x = x + self.dropout(self.convolution(self.convolution_norm(x), scope))
        last: Tensor = self.dropout(self.last(x))
        out: Tensor = self.adapter(x + last if self.norm is None else self.norm(x + 0.5 * last))
        return out


class FeedForward(nn.Module):
    """Layer norm, a wide linear layer, an activation, and a linear layer back (§2.3).

    Args:
        config: widths, dropout and, where there is no `activation`, which it is.
        activation: `silu`, `gelu` or `relu`.
        has_norm: whether there is the layer norm.
    """

    def __init__(self, config: ModelConfig, activation: str = "", has_norm: bool = True) -> None:
        super().__init__()
        self.norm = LayerNorm(config.model_dim) if has_norm else nn.Identity()
        self.inner = nn.Linear(config.model_dim, config.ffn_dim)
        self.outer = nn.Linear(config.ffn_dim, config.model_dim)
        self.dropout, self.activation = config.activation_dropout, _ACTIVATIONS[activation or config.block_activation]

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Transform each frame on its own."""
        inner = self.activation(self.inner(self.norm(x)))
        out: Tensor = self.outer(drop_from_pool(inner, self.dropout if self.training else 0.0))
        return out


class ConvolutionModule(nn.Module):
    """Gates, a depth-wise convolution over time, a norm, SiLU or GELU and a linear layer (§2.2).

    Initialisation: the depth-wise weight N(0, 1 / √kernel), its bias 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, kernel, bias = config.model_dim, config.block_kernel, config.block_bias
        self.activation = _ACTIVATIONS[config.block_activation]
        self.gates = nn.Linear(dim, 2 * dim, bias=bias)
        padding = kernel - 1 if config.block_causal else kernel // 2
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=padding, groups=dim, bias=bias)
        self.norm = BatchNorm(dim) if config.block_norm == "batch" else LayerNorm(dim)
        self.out = nn.Linear(dim, dim, bias=bias)
        nn.init.normal_(self.depthwise.weight, std=kernel**-0.5)
        if self.depthwise.bias is not None:
            nn.init.zeros_(self.depthwise.bias)

    def forward(self, x: Float[Tensor, "B T D"], scope: Scope) -> Float[Tensor, "B T D"]:
        """Transform frames; the convolution sees zeros beyond each row's end."""
        x = convolve_depthwise(F.glu(self.gates(x), -1), self.depthwise, scope)
        normed = self.norm(x, scope) if isinstance(self.norm, BatchNorm) else self.norm(x)
        out: Tensor = self.out(self.activation(normed))
        return out


@on_cpu(convolutions.convolve_depthwise)
def convolve_depthwise(x: Float[Tensor, "B T D"], conv: nn.Conv1d, scope: Scope) -> Float[Tensor, "B T D"]:
    """Convolve each channel over time, with zeros beyond both ends of each row.

    Args:
        x: (B, T, D).
        conv: of D groups and an odd kernel; its padding is half of the kernel, or the whole kernel but one where no
            frame sees a later one.
        scope: which frames are valid.
    """
    assert not isinstance(scope, Packing), "rows are packed on a CPU only"
    x = x if scope is None else torch.where(scope[:, 0, 0, :, None], x, 0.0)
    out: Tensor = conv(x.transpose(1, 2))
    if int(conv.padding[0]) > conv.kernel_size[0] // 2:
        out = out[..., : x.shape[1]]
    # As the norm and the product after it want it; an export for all lengths would guess the layout, and not for all.
    return out.transpose(1, 2).contiguous()


class BatchNorm(nn.Module):
    """Batch norm over the valid frames of a forward, in float32.

    In training their mean and variance; outside it, and where the weight is frozen, their running averages (torch's
    `BatchNorm1d`, whose names of weights it has).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Float[Tensor, "B T D"], scope: Scope) -> Float[Tensor, "B T D"]:
        """Normalise each channel; frames outside `scope` have no part in the statistics."""
        mean, variance = self.running_mean, self.running_var
        if self.training and torch.is_grad_enabled() and self.weight.requires_grad:
            mean, variance = self._measure(widen(x), scope)
        return (widen(x) - mean) * (torch.rsqrt(variance + _BATCH_NORM_EPSILON) * self.weight) + self.bias

    def _measure(self, x: Tensor, scope: Scope) -> tuple[Tensor, Tensor]:
        """Give mean and variance (D,) over the valid frames, and take them into the running averages."""
        if scope is None or isinstance(scope, Packing):
            valid = torch.ones_like(x[..., :1], dtype=torch.bool)
        else:
            valid = scope[:, 0, 0, :, None]
        count = valid.sum().clamp(min=1)
        mean = torch.where(valid, x, 0.0).sum((0, 1)) / count
        variance = torch.where(valid, x - mean, 0.0).square().sum((0, 1)) / count
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            for average, value in ((self.running_mean, mean), (self.running_var, unbiased)):
                # An update that the guard will skip leaves no trace.
                average.lerp_(torch.where(value.isfinite(), value, average), _BATCH_NORM_MOMENTUM)
        return mean, variance
