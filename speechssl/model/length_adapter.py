"""Fewer frames after the blocks: the adapter that w2v-BERT 2.0 may have (Hugging Face's `add_adapter`)."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.attention import SelfAttention
from speechssl.model.conformer import FeedForward
from speechssl.model.layers import LayerNorm, PooledDropout
from speechssl.model.lengths import make_valid_mask


class LengthAdapter(nn.Module):
    """Half of a feed-forward part (`length_adapter_ffn`), then layers that each shorten a row by the stride.

    Initialisation: linear weights N(0, 0.02), those of convolutions Kaiming normal, biases of linear layers 0.

    Source: Hugging Face's `Wav2Vec2BertAdapter`, after the M-adaptor (arXiv 2207.00952).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.first = FeedForward(config, "relu", has_norm=False) if config.length_adapter_ffn else None
        self.layers = nn.ModuleList(LengthAdapterLayer(config) for _ in range(config.length_adapter_layers))
        self.dropout = PooledDropout(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "B T D"], num_frames: Int[Tensor, " B"] | None) -> Float[Tensor, "B T2 D"]:
        """Shorten rows of frames.

        Args:
            x: (B, T, D).
            num_frames: (B,) valid frames; None where nothing is padded.

        Returns:
            As many frames as `ModelConfig.count_outputs` says; those beyond the end of a row are zero, and none of a
            row depends on others.
        """
        if self.first is not None:
            x = x + 0.5 * self.dropout(self.first(x))
        for layer in self.layers:
            x = layer(x, num_frames)
            num_frames = None if num_frames is None else self.config.shorten(num_frames)
        return _clear(x, num_frames)


class LengthAdapterLayer(nn.Module):
    """A convolution with gates, and another whose frames attend to each other; then feed-forward. Pre-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, self.config = config.model_dim, config
        self.residual_norm, self.attention_norm = LayerNorm(dim), LayerNorm(dim)
        self.residual_conv, self.attention_conv = (self._make_convolution(config) for _ in range(2))
        self.attention = SelfAttention(replace(config, positions="none", position_buckets=0))
        self.last = FeedForward(config, "relu")
        self.dropout = PooledDropout(config.dropout)

    @staticmethod
    def _make_convolution(config: ModelConfig) -> nn.Conv1d:
        dim, kernel, stride = config.model_dim, config.length_adapter_kernel, config.length_adapter_stride
        return nn.Conv1d(dim, 2 * dim, kernel, stride=stride, padding=stride // 2)

    def forward(self, x: Float[Tensor, "B T D"], num_frames: Int[Tensor, " B"] | None) -> Float[Tensor, "B T2 D"]:
        """Shorten rows; the convolutions see zeros beyond each row's end."""
        residual = _convolve(_clear(self.residual_norm(x), num_frames), self.residual_conv)
        y = _convolve(_clear(self.attention_norm(x), num_frames), self.attention_conv)
        scope = None
        if num_frames is not None:
            scope = make_valid_mask(self.config.shorten(num_frames), y.shape[1])[:, None, None, :]
        y = residual + self.dropout(self.attention(y, scope))
        out: Tensor = y + self.dropout(self.last(y))
        return out


def _convolve(x: Float[Tensor, "B T D"], conv: nn.Conv1d) -> Float[Tensor, "B T2 D"]:
    return F.glu(conv(x.transpose(1, 2)), 1).transpose(1, 2).contiguous()


def _clear(x: Float[Tensor, "B T D"], num_frames: Int[Tensor, " B"] | None) -> Float[Tensor, "B T D"]:
    return x if num_frames is None else torch.where(make_valid_mask(num_frames, x.shape[1])[..., None], x, 0.0)
