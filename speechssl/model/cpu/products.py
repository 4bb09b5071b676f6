"""GELU and the product after it on the CPU: convolutions as matrix products, activations computed twice, not kept.

oneDNN's backward of these convolutions reaches a third of what its matrix products reach, and a GELU that is
remembered beside its input doubles what a network of this kind holds. Values are those of `F.conv1d(F.gelu(z))`, up
to the order of float32 sums. docs/speed.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from speechssl.model.cpu.dropout import Kept, draw_kept
from speechssl.model.lengths import make_valid_mask


@dataclass(frozen=True)
class WindowProduct:
    """A first convolution with its norm, not computed yet: row b is shift[b] + windows[b] · weights[b].

    Attributes:
        windows: (B, T, k) of the waveforms.
        weights: (B, k, C).
        shift: (B, 1, C).
    """

    windows: Tensor
    weights: Tensor
    shift: Tensor

    def compute(self) -> Tensor:
        """Compute (B, T, C)."""
        return torch.baddbmm(self.shift, self.windows, self.weights)


def fold_group_norm(
    waveforms: Float[Tensor, "B N"], conv: nn.Conv1d, norm: nn.GroupNorm, num_valid: Int[Tensor, " B"] | None
) -> WindowProduct:
    """Put a first convolution and the norm of each channel over time into one product.

    The mean and variance of a convolution's output are those of its windows, seen through the weights: a mean (k,)
    and a covariance (k, k) for each row, in float64. So the largest tensor of the network is made where it is used,
    a row at a time, and never read for its statistics.

    Args:
        waveforms: (B, N).
        conv: from one channel; its bias has no effect, and a gradient of zero.
        norm: with one group a channel.
        num_valid: (B,) outputs of each row that enter its statistics; None takes all.
    """
    windows, weight = _unfold(waveforms, conv), conv.weight[:, 0].t().double()
    x, count = windows.double(), torch.tensor(windows.shape[1])
    if num_valid is not None:
        x = torch.where(make_valid_mask(num_valid, x.shape[1])[..., None], x, 0.0)
        count = num_valid.clamp(min=1)[:, None, None]
    mean = x.sum(1, keepdim=True) / count
    covariance = x.transpose(1, 2) @ x / count - mean.transpose(1, 2) * mean
    variance = (weight * (covariance @ weight)).sum(1, keepdim=True).clamp(min=0)
    scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.double() - (mean @ weight) * scale
    if conv.bias is not None:
        shift = shift + 0.0 * conv.bias
    dtype = _choose_dtype(windows)
    return WindowProduct(windows.to(dtype), (weight * scale).to(dtype), shift.to(dtype))


def first_convolution(waveforms: Float[Tensor, "B N"], conv: nn.Conv1d) -> Float[Tensor, "B T C"]:
    """Convolve waveforms (B, N) by a convolution from one channel."""
    dtype = _choose_dtype(waveforms)
    out = _unfold(waveforms, conv).to(dtype) @ conv.weight[:, 0].t().to(dtype)
    return out if conv.bias is None else out + conv.bias.to(dtype)


def gelu_convolution(z: Tensor | WindowProduct, conv: nn.Conv1d) -> Float[Tensor, "B T2 O"]:
    """Convolve GELU(z) over time, unpadded.

    Args:
        z: (B, T, C) before the activation, or what gives it.
        conv: of any kernel and stride, from C to O channels.

    Returns:
        (B, (T - kernel) // stride + 1, O), in the precision of autocast where that is on.
    """
    if isinstance(z, WindowProduct):
        return _apply(z.windows, (z.weights, z.shift), conv.weight, conv.bias, conv.stride[0], None)
    return _apply(z, (None, None), conv.weight, conv.bias, conv.stride[0], None)


def gelu_linear(z: Float[Tensor, "*rest C"], linear: nn.Linear, dropout: float) -> Float[Tensor, "*rest O"]:
    """As the transformer's `gelu_linear`; GELU and dropout are computed again in the backward."""
    # A kernel of one frame sees no rows' ends: all rows are one.
    flat = z.reshape(1, -1, z.shape[-1])
    kept = draw_kept(flat.shape, dropout) if dropout else None
    out = _apply(flat, (None, None), linear.weight[:, :, None], linear.bias, 1, kept)
    return out.view(*z.shape[:-1], -1)


def _unfold(waveforms: Tensor, conv: nn.Conv1d) -> Tensor:
    return waveforms.unfold(1, conv.kernel_size[0], conv.stride[0])


def _choose_dtype(x: Tensor) -> torch.dtype:
    """Choose the precision of products: autocast's where that is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _apply(
    z: Tensor,
    first: tuple[Tensor | None, Tensor | None],
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    kept: Kept | None,
) -> Tensor:
    dtype = _choose_dtype(z)
    bias = None if bias is None else bias.to(dtype)
    out: Tensor = _GeluConvolution.apply(z.to(dtype).contiguous(), *first, weight.to(dtype), bias, stride, kept)
    return out


_PART_FRAMES = 2048
"""Outputs that are made at a time: what lies between two products stays a few MiB, however long the audio."""


class _GeluConvolution(torch.autograd.Function):
    """GELU, dropout, convolution, part by part of each row; only what went in is kept for the backward.

    A kernel of k taps at stride s is ⌈k / s⌉ products: the rows of each are s consecutive frames, which lie side by
    side in memory, and one row begins where the last ended.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weights: Tensor | None,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        kept: Kept | None,
    ) -> Tensor:
        mask = None if kept is None else kept.mask
        ctx.save_for_backward(z, weights, shift, weight, mask)
        ctx.stride, ctx.scale = stride, 1.0 if kept is None else kept.scale
        num_outputs, width, kernel = weight.shape
        flat = _flatten(weight)
        out = z.new_empty(len(z), (z.shape[1] - kernel) // stride + 1, num_outputs)
        for index, row in enumerate(out):
            for target, frames in _cut(row, stride, kernel):
                source = _activate(_make_part(z, weights, shift, index, frames), mask, frames, ctx.scale)
                _multiply(target, source, flat, bias, stride, width)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, weights, shift, weight, mask = ctx.saved_tensors
        grad, needs = grads[0].contiguous(), ctx.needs_input_grad
        width, kernel = weight.shape[1], weight.shape[2]
        to_weight = torch.zeros(len(weight), kernel * width) if needs[3] else None
        to_z = torch.empty_like(z) if needs[0] else None
        to_weights = torch.zeros_like(weights) if needs[1] else None
        to_shift = torch.zeros_like(shift) if needs[2] else None
        for index, row in enumerate(grad):
            if to_weight is not None:
                for target, frames in _cut(row, ctx.stride, kernel):
                    source = _activate(_make_part(z, weights, shift, index, frames), mask, frames, ctx.scale)
                    _add_weight_gradient(to_weight, source, target, weight, ctx.stride)
            if not any(needs[:3]):
                continue
            to_row = z.new_empty(z.shape[1], width) if to_z is None else to_z[index]
            _compute_row_gradient(to_row, row, weight, ctx.stride)
            for part, frames in _cut(to_row, 1, 1):
                if mask is not None:
                    part.mul_(ctx.scale).masked_fill_(~mask[0, frames], 0.0)
                before = _make_part(z, weights, shift, index, frames)
                torch.ops.aten.gelu_backward.grad_input(part, before, grad_input=part)
                if to_weights is not None:
                    to_weights[index].addmm_(z[index, frames].t(), part)
                if to_shift is not None:
                    to_shift[index] += part.sum(0)
        if to_weight is not None:
            to_weight = to_weight.view(len(weight), kernel, width).transpose(1, 2).to(weight.dtype)
        to_bias = grad.sum((0, 1)) if needs[4] else None
        return to_z, to_weights, to_shift, to_weight, to_bias, None, None


def _cut(row: Tensor, stride: int, kernel: int) -> Iterator[tuple[Tensor, slice]]:
    """Cut outputs (T, O) into parts that fit a cache, each with the frames that it is made of."""
    for first in range(0, len(row), _PART_FRAMES):
        part = row[first : first + _PART_FRAMES]
        yield part, slice(first * stride, (first + len(part) - 1) * stride + kernel)


def _make_part(z: Tensor, weights: Tensor | None, shift: Tensor | None, index: int, frames: slice) -> Tensor:
    """Give frames of row `index` before their activation: (T, C)."""
    if weights is None or shift is None:
        return z[index, frames]
    return torch.addmm(shift[index], z[index, frames], weights[index])


def _activate(part: Tensor, mask: Tensor | None, frames: slice, scale: float) -> Tensor:
    x = F.gelu(part)
    return x if mask is None else torch.where(mask[0, frames], x, 0.0).mul_(scale)


def _multiply(out: Tensor, x: Tensor, flat: Tensor, bias: Tensor | None, stride: int, width: int) -> None:
    """Write the convolution of activated frames `x` (T, C) to `out` (T2, O)."""
    for first, taps in _plan_products(flat.shape[1] // width, stride):
        rows = _view_rows(x, first, taps, stride, len(out))
        columns = flat[:, first * width : (first + taps) * width].t()
        if first:
            out.addmm_(rows, columns)
        elif bias is None:
            torch.mm(rows, columns, out=out)
        else:
            torch.addmm(bias, rows, columns, out=out)


def _plan_products(kernel: int, stride: int) -> list[tuple[int, int]]:
    """Cut a kernel into (first tap, taps), at most `stride` taps each."""
    return [(first, min(stride, kernel - first)) for first in range(0, kernel, stride)]


def _flatten(weight: Tensor) -> Tensor:
    """Lay (O, C, k) out as (O, k · C)."""
    return weight.transpose(1, 2).reshape(len(weight), -1)


def _view_rows(x: Tensor, first: int, taps: int, stride: int, count: int) -> Tensor:
    """View (T, C) frames as (count, taps · C) rows: row t holds the frames from t · stride + first on."""
    width = x.shape[1]
    return x.as_strided((count, taps * width), (stride * width, 1), x.storage_offset() + first * width)


def _add_weight_gradient(total: Tensor, x: Tensor, grad: Tensor, weight: Tensor, stride: int) -> None:
    """Add grad^T · rows of one row of the batch to `total` (O, k · C) float32."""
    _, width, kernel = weight.shape
    for first, taps in _plan_products(kernel, stride):
        rows = _view_rows(x, first, taps, stride, len(grad))
        part = total[:, first * width : (first + taps) * width]
        if rows.dtype == total.dtype:
            part.addmm_(grad.t(), rows)
        else:
            part += grad.t() @ rows


def _compute_row_gradient(out: Tensor, grad: Tensor, weight: Tensor, stride: int) -> None:
    """Write to `out` (T, C) the gradient of what one row of the batch was convolved from."""
    _, width, kernel = weight.shape
    flat, count = _flatten(weight), len(grad)
    # The first product writes the frames that its rows cover; the others add to them, and to zeros beyond.
    covered = count * stride if kernel >= stride else 0
    out[covered:] = 0.0
    for first, taps in _plan_products(kernel, stride):
        rows = _view_rows(out, first, taps, stride, count)
        columns = flat[:, first * width : (first + taps) * width]
        if first == 0 and covered:
            torch.mm(grad, columns, out=rows)
        else:
            rows.addmm_(grad, columns)
