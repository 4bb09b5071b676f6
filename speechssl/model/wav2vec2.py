"""The backbone: waveform to contextual frames (wav2vec 2.0 §2; data flow of fairseq's Wav2Vec2Model)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from speechssl.config.model import ModelConfig
from speechssl.errors import ConfigError
from speechssl.model.feature_encoder import FeatureEncoder
from speechssl.model.kaldi_fbank import KaldiFbank
from speechssl.model.layers import Dropout, LayerNorm, normalize_valid
from speechssl.model.length_adapter import LengthAdapter
from speechssl.model.lengths import HOP_SAMPLES
from speechssl.model.log_mel import LogMelEncoder
from speechssl.model.transformer import Adjust, Transformer, learning


@dataclass
class Features:
    """What the feature encoder gives.

    Attributes:
        raw: (B, T, C) output of the front-end's convolutions (the feature penalty looks at it).
        normed: (B, T, C) after layer norm where there is one (the quantizer's input before dropout).
        num_frames: (B,) valid frames, or None where nothing is padded.
    """

    raw: Tensor
    normed: Tensor
    num_frames: Tensor | None

    def repeat(self, times: int) -> Features:
        """Give all rows so many times: (times · B, T, C)."""
        if times == 1:
            return self
        counts = None if self.num_frames is None else self.num_frames.repeat(times)
        return Features(self.raw.repeat(times, 1, 1), self.normed.repeat(times, 1, 1), counts)


class Wav2Vec2(nn.Module):
    """Feature encoder, projection, mask embedding and transformer.

    Args:
        config: the network.

    Initialisation: mask embedding U[0, 1); the projection keeps `nn.Linear`'s default.

    Raises:
        ConfigError: the strides do not multiply to 320 samples.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.front_end == "convolutions" and config.hop_samples != HOP_SAMPLES:
            must = f"`model.conv_strides` must multiply to {HOP_SAMPLES} samples (20 ms)"
            raise ConfigError(f"{must}, but give {config.hop_samples}")
        channels = config.feature_dim
        encoders = {"convolutions": FeatureEncoder, "log_mel": LogMelEncoder, "kaldi_fbank": KaldiFbank}
        self.encoder = encoders[config.front_end](config)
        self.feature_norm = LayerNorm(channels) if config.feature_norm else nn.Identity()
        project = channels != config.model_dim
        self.projection = nn.Linear(channels, config.model_dim) if project else nn.Identity()
        self.input_dropout = Dropout(config.input_dropout)
        self.mask_embedding = nn.Parameter(torch.rand(config.model_dim))
        self.transformer = Transformer(config)
        self.length_adapter = LengthAdapter(config) if config.length_adapter_layers else None

    def encode(self, waveforms: Float[Tensor, "B N"], num_samples: Int[Tensor, " B"] | None) -> Features:
        """Run the feature encoder and its layer norm.

        Args:
            waveforms: (B, N) at 16 kHz, normalised where the model wants it.
            num_samples: (B,) valid samples; None where nothing is padded.
        """
        raw, num_frames = self.encoder(waveforms, num_samples)
        return Features(raw, self.feature_norm(raw), num_frames)

    def contextualise(
        self,
        features: Features,
        mask: Bool[Tensor, "B T"] | None = None,
        channel_mask: Bool[Tensor, "B D"] | None = None,
        keep: Bool[Tensor, " L"] | None = None,
        num_frozen: int = -1,
        adjust: Adjust | None = None,
    ) -> tuple[Float[Tensor, "B T D"], list[Float[Tensor, "B T D"]]]:
        """Mask the projected features and run the transformer.

        Args:
            features: from `encode`.
            mask: (B, T), True where a frame is replaced by the mask embedding.
            channel_mask: (B, D), True where a channel is zero at every frame of the row (after the time mask).
            keep: (L,) False for blocks that LayerDrop skips.
            num_frozen, adjust: as `Transformer.forward`; from 0 on nothing before the blocks gets a gradient either.

        Returns:
            The output, and the L + 1 states (see `Transformer.forward`). Valid frames do not depend on padding.
        """
        with learning(num_frozen < 0):
            x = self.input_dropout(self.projection(features.normed))
            if mask is not None:
                x = torch.where(mask[..., None], self.mask_embedding.to(x.dtype), x)
            if channel_mask is not None:
                x = torch.where(channel_mask[:, None, :], 0.0, x)
        context, states = self.transformer(x, features.num_frames, keep, num_frozen, adjust)
        return context, states

    def finish(self, context: Float[Tensor, "B T D"], features: Features) -> Float[Tensor, "B T2 D"]:
        """Give the model's output: what `contextualise` gave, or what a length adapter makes of it."""
        if self.length_adapter is None:
            return context
        output: Tensor = self.length_adapter(context, features.num_frames)
        return output


def normalize_waveforms(
    waveforms: Float[Tensor, "B N"], num_samples: Int[Tensor, " B"] | None, epsilon: float = 1e-5
) -> Float[Tensor, "B N"]:
    """Give each row zero mean and unit variance over its valid samples; padding becomes zero.

    Population variance, epsilon inside the root: 1e-5 in fairseq's `layer_norm` of the waveform, 1e-7 in Hugging
    Face's feature extractor. It matters where speech is quiet.
    """
    return normalize_valid(waveforms, num_samples, epsilon)
