"""Raw waveform to latent frames: the strided convolution stack (wav2vec 2.0 §2, §4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.cpu import products as cpu_products
from speechssl.model.cpu.packing import pad_rows
from speechssl.model.cpu.products import WindowProduct
from speechssl.model.lengths import compute_num_frames, make_valid_mask

_ROW_STEP_SAMPLES = 3_200
"""On the CPU a padded row is computed up to a multiple of this: kernels are prepared for every new shape (a few ms)."""


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; the gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Pass `x` through unchanged and multiply the gradient that flows back by `scale` (fairseq's GradMultiply)."""
    if scale == 1.0:
        return x
    scaled: Tensor = _ScaleGradient.apply(x, scale)
    return scaled


class TimeGroupNorm(nn.GroupNorm):
    """One group a channel: each channel of (B, C, 1, T) is normalised over time, in float32.

    With `num_valid`, mean and variance are taken over the valid frames of each row alone, so that padding and
    batch companions do not enter; positions beyond them hold values that nothing downstream may read. Without it,
    over all frames, which is what the published models do.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, eps=1e-5, affine=True)

    def forward(self, input: Tensor, num_valid: Tensor | None = None) -> Tensor:
        """Normalise (B, C, 1, T); `num_valid` (B,) counts the valid positions of each row."""
        if num_valid is None:
            return super().forward(input.float()).to(input.dtype)
        x = input.float()
        valid = make_valid_mask(num_valid, x.shape[-1])[:, None, None, :]
        count = num_valid.clamp(min=1)[:, None, None, None]
        mean = torch.where(valid, x, 0.0).sum(-1, keepdim=True) / count
        centred = torch.where(valid, x - mean, 0.0)
        variance = centred.square().sum(-1, keepdim=True) / count
        normed = centred * torch.rsqrt(variance + self.eps)
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a (B, C, 1, T) tensor, in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each position on its own."""
        return self.normalize_last(input.movedim(1, 3)).movedim(3, 1)

    def normalize_last(self, x: Tensor) -> Tensor:
        """Normalise (…, C) over its last dimension."""
        return super().forward(x.float()).to(x.dtype)


class FeatureEncoder(nn.Module):
    """Seven (or so) unpadded convolutions, each followed by a norm where there is one, and GELU.

    Args:
        config: `conv_*`, `group_norm_frames` and `feature_gradient_scale`.

    Initialisation: weights Kaiming normal (fan in, gain √2), biases as in `Conv1d`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kernels, self.strides = tuple(config.conv_kernels), tuple(config.conv_strides)
        self.gradient_scale = config.feature_gradient_scale
        # Known before the forward: a compiler for all lengths takes every number there for a variable.
        self.is_trained = config.feature_gradient_scale > 0
        self.masked_statistics = config.group_norm_frames == "valid"
        inputs = [1, *config.conv_channels[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv1d(i, o, k, s, bias=config.conv_bias)
            for i, o, k, s in zip(inputs, config.conv_channels, self.kernels, self.strides, strict=True)
        )
        self.group_norm = TimeGroupNorm(config.conv_channels[0]) if config.conv_norm == "group" else None
        layered = config.conv_channels if config.conv_norm == "layer" else []
        self.layer_norms = nn.ModuleList(ChannelLayerNorm(channels) for channels in layered)
        for conv in self.convs.children():
            assert isinstance(conv, nn.Conv1d), f"a convolution, not {type(conv)}"
            nn.init.kaiming_normal_(conv.weight)

    def forward(
        self, waveforms: Float[Tensor, "B N"], num_samples: Int[Tensor, " B"] | None
    ) -> tuple[Float[Tensor, "B T C"], Int[Tensor, " B"] | None]:
        """Turn waveforms into frames of 20 ms.

        Args:
            waveforms: (B, N) at 16 kHz.
            num_samples: (B,) valid samples of each row; None where nothing is padded.

        Returns:
            Features (B, T, C) and the valid frames of each row (None where nothing is padded). Frames beyond them
            hold no meaning. With layer norm, or group norm over valid frames, a row's valid frames do not depend
            on its batch; with `group_norm_frames=all` padding leaks into the statistics, as in the peers.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trained):
            x = self._choose_path(waveforms, num_samples)(waveforms, num_samples)
        num_frames = None if num_samples is None else compute_num_frames(num_samples, self.kernels, self.strides)
        return scale_gradient(x, self.gradient_scale), num_frames

    def _choose_path(self, waveforms: Tensor, num_samples: Tensor | None) -> Callable[[Tensor, Any], Tensor]:
        # A bias before group norm is no use, and `first_convolution` has no place for it.
        if not cpu_products.is_for(waveforms) or (self.group_norm is not None and self._conv(0).bias is not None):
            return self._convolve
        sees_padding = self.group_norm is not None and not self.masked_statistics
        return self._convolve_on_cpu if num_samples is None or sees_padding else self._convolve_rows

    def _convolve_rows(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Compute (B, T, C) features on the CPU row by row, without most of the padding; zeros beyond each."""
        length, rows = waveforms.shape[1], []
        for row, count in enumerate(num_samples.tolist()):
            width = min(length, -(-max(count, 1) // _ROW_STEP_SAMPLES) * _ROW_STEP_SAMPLES)
            rows.append(self._convolve_on_cpu(waveforms[row : row + 1, :width], num_samples[row : row + 1])[0])
        return pad_rows(rows, compute_num_frames(length, self.kernels, self.strides))

    def _convolve_on_cpu(self, waveforms: Tensor, num_samples: Tensor | None) -> Tensor:
        """Compute (B, T, C) features with the channels innermost all the way, each GELU part of the next product."""
        first = self._conv(0)
        if self.group_norm is not None:
            num_valid = self._count_first(num_samples)
            z: Tensor | WindowProduct = cpu_products.fold_group_norm(waveforms, first, self.group_norm, num_valid)
        else:
            z = self._normalize_layer(0, cpu_products.first_convolution(waveforms, first))
        for index in range(1, len(self.convs)):
            z = self._normalize_layer(index, cpu_products.gelu_convolution(z, self._conv(index)))
        return F.gelu(z.compute() if isinstance(z, WindowProduct) else z)

    def _normalize_layer(self, index: int, x: Tensor) -> Tensor:
        """Normalise (B, T, C) over its channels where this encoder does."""
        if not len(self.layer_norms):
            return x
        norm = self.layer_norms[index]
        assert isinstance(norm, ChannelLayerNorm), f"a layer norm, not {type(norm)}"
        return norm.normalize_last(x)

    def _convolve(self, waveforms: Tensor, num_samples: Tensor | None) -> Tensor:
        """Compute (B, T, C) features on any device."""
        x = waveforms[:, None, None, :]
        for index in range(len(self.convs)):
            x = self._layer(index, x, num_samples)
        return x.squeeze(2).transpose(1, 2)

    def _layer(self, index: int, x: Tensor, num_samples: Tensor | None) -> Tensor:
        """Convolve, normalise where there is a norm, GELU; x is (B, C, 1, T) with the channels innermost in memory."""
        conv = self._conv(index)
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, conv.weight[:, :, None, :], conv.bias, stride=(1, self.strides[index]))
        if len(self.layer_norms):
            x = self.layer_norms[index](x)
        if self.group_norm is not None and index == 0:
            x = self.group_norm(x, self._count_first(num_samples))
        return F.gelu(x)

    def _conv(self, index: int) -> nn.Conv1d:
        conv = self.convs[index]
        assert isinstance(conv, nn.Conv1d), f"a convolution, not {type(conv)}"
        return conv

    def _count_first(self, num_samples: Tensor | None) -> Tensor | None:
        """Count the valid outputs of the first convolution, where group norm is to know them."""
        if num_samples is None or not self.masked_statistics:
            return None
        return compute_num_frames(num_samples, self.kernels[:1], self.strides[:1])
