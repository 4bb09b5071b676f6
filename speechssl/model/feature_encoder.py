"""Raw waveform to latent frames: the strided convolution stack (wav2vec 2.0 §2, §4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.cpu import convolutions, on_cpu
from speechssl.model.layers import ChannelLayerNorm, TimeGroupNorm, scale_gradient


class FeatureEncoder(nn.Module):
    """Seven (or so) unpadded convolutions, each followed by a norm where there is one, and GELU.

    Args:
        config: `conv_*`, `group_norm_frames` and `feature_gradient_scale`.

    Initialisation: weights Kaiming normal (fan in, gain √2), biases as in `Conv1d`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.gradient_scale = config, config.feature_gradient_scale
        # Known before the forward: a compiler for all lengths takes every number there for a variable.
        self.is_trained = config.feature_gradient_scale > 0
        channels = config.conv_channels
        layers = zip([1, *channels[:-1]], channels, config.conv_kernels, config.conv_strides, strict=True)
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, s, bias=config.conv_bias) for i, o, k, s in layers)
        count_valid = partial(config.count_frames, depth=1) if config.group_norm_frames == "valid" else None
        self.group_norm = TimeGroupNorm(channels[0], count_valid) if config.conv_norm == "group" else None
        self.layer_norms = nn.ModuleList(ChannelLayerNorm(c) for c in channels if config.conv_norm == "layer")
        for conv in self.convs:
            nn.init.kaiming_normal_(cast("Tensor", conv.weight))

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
        convs = cast("list[nn.Conv1d]", list(self.convs))
        norms: list[nn.Module | None] = list(self.layer_norms) or [self.group_norm, *[None] * (len(convs) - 1)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trained):
            x = convolve(waveforms, num_samples, convs, norms)
        num_frames = None if num_samples is None else self.config.count_frames(num_samples)
        return scale_gradient(x, self.gradient_scale), num_frames


@on_cpu(convolutions.convolve)
def convolve(
    waveforms: Float[Tensor, "B N"],
    num_samples: Int[Tensor, " B"] | None,
    convs: Sequence[nn.Conv1d],
    norms: Sequence[nn.Module | None],
) -> Float[Tensor, "B T C"]:
    """Convolve, normalise where there is a norm, and apply GELU, layer after layer.

    Args:
        waveforms: (B, N).
        num_samples: (B,) valid samples, for norms over time; None where nothing is padded.
        convs: unpadded convolutions, the first of one channel.
        norms: of each convolution's output (B, C, 1, T); None: there is none.

    Source: wav2vec 2.0 §2.
    """
    x = waveforms[:, None, None, :]
    for conv, norm in zip(convs, norms, strict=True):
        # 2-D with the channels innermost in memory: half the time of `Conv1d`.
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, conv.weight[:, :, None, :], conv.bias, stride=(1, conv.stride[0]))
        x = F.gelu(x if norm is None else norm(x, num_samples))
    return x.squeeze(2).transpose(1, 2)
