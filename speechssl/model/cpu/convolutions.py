"""Convolutions on the CPU: channels innermost all the way, no padding.

In the feature encoder each GELU is part of the next product. A depth-wise convolution is one of `conv2d`, which takes
a tenth of the time that `conv1d` takes: torch has it in the layout of channels innermost for two dimensions only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import count_windows
from speechssl.model.cpu.packing import Packing, Scope, pad_rows
from speechssl.model.cpu.products import WindowProduct, first_convolution, fold_group_norm, gelu_convolution
from speechssl.model.layers import ChannelLayerNorm, TimeGroupNorm

_ROW_STEP_SAMPLES = 3_200
"""A padded row is computed up to a multiple of this: oneDNN prepares kernels for every new shape (a few ms)."""

_FRAME_STEP = 64
"""The same for packed frames."""


def convolve(
    waveforms: Float[Tensor, "B N"],
    num_samples: Int[Tensor, " B"] | None,
    convs: Sequence[nn.Conv1d],
    norms: Sequence[nn.Module | None],
) -> Float[Tensor, "B T C"]:
    """As the feature encoder's `convolve`: row by row, without most of the padding; zeros beyond each row."""
    sees_padding = isinstance(norms[0], TimeGroupNorm) and norms[0].count_valid is None
    if num_samples is None or sees_padding:
        return _convolve_whole(waveforms, num_samples, convs, norms)
    length, rows = waveforms.shape[1], []
    for row, count in enumerate(num_samples.tolist()):
        width = min(length, -(-max(count, 1) // _ROW_STEP_SAMPLES) * _ROW_STEP_SAMPLES)
        part = slice(row, row + 1)
        rows.append(_convolve_whole(waveforms[part, :width], num_samples[part], convs, norms)[0])
    kernels, strides = zip(*((conv.kernel_size[0], conv.stride[0]) for conv in convs), strict=True)
    return pad_rows(rows, count_windows(length, kernels, strides))


def _convolve_whole(
    waveforms: Tensor, num_samples: Tensor | None, convs: Sequence[nn.Conv1d], norms: Sequence[nn.Module | None]
) -> Tensor:
    """Compute (B, T, C) features of rows with all their samples."""
    first = norms[0]
    if isinstance(first, TimeGroupNorm):
        num_valid = None if num_samples is None or first.count_valid is None else first.count_valid(num_samples)
        z: Tensor | WindowProduct = fold_group_norm(waveforms, convs[0], first, num_valid)
    else:
        z = _normalize(first_convolution(waveforms, convs[0]), first)
    for conv, norm in zip(convs[1:], norms[1:], strict=True):
        z = _normalize(gelu_convolution(z, conv), norm)
    return F.gelu(z.compute() if isinstance(z, WindowProduct) else z)


def _normalize(x: Tensor, norm: nn.Module | None) -> Tensor:
    """Normalise (B, T, C) over its channels where there is a norm."""
    return norm.normalize_last(x) if isinstance(norm, ChannelLayerNorm) else x


def convolve_depthwise(x: Float[Tensor, "B T D"], conv: nn.Conv1d, scope: Scope) -> Float[Tensor, "B T D"]:
    """As the Conformer's `convolve_depthwise`; packed rows go through it at once, with zeros between them."""
    reach = int(conv.padding[0])
    if not isinstance(scope, Packing):
        x = x if scope is None else torch.where(scope[:, 0, 0, :, None], x, 0.0)
        return _convolve_channels(x, conv, reach)
    gap, num_spaced = x.new_zeros(reach, x.shape[2]), x.shape[1] + reach * len(scope.num_frames)
    spare = x.new_zeros(-num_spaced % _FRAME_STEP, x.shape[2])
    rows = [piece for row in torch.split(x[0], list(scope.num_frames)) for piece in (row, gap)]
    out = _convolve_channels(torch.cat([*rows, spare])[None], conv, reach)[0]
    lengths = [length for count in scope.num_frames for length in (count, reach)]
    return torch.cat(torch.split(out, [*lengths, len(spare)])[:-1:2])[None]


def _convolve_channels(x: Tensor, conv: nn.Conv1d, reach: int) -> Tensor:
    """Convolve each channel of (B, T, D) over time."""
    # (B, D, T, 1) with channels innermost is x as it lies in memory. The new dimension comes before the others are
    # exchanged: its stride, too, says which layout it is.
    image = x[:, :, None].permute(0, 3, 1, 2)
    out = F.conv2d(image, conv.weight[..., None], conv.bias, padding=(reach, 0), groups=conv.groups)
    return out.permute(0, 2, 3, 1)[:, : x.shape[1], 0]
