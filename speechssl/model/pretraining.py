"""wav2vec 2.0 as it is pretrained: from waveforms and masks to contrastive logits (§3.2, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.layers import Dropout
from speechssl.model.lengths import make_valid_mask
from speechssl.model.quantizer import GumbelQuantizer
from speechssl.model.wav2vec2 import Features, Wav2Vec2


@dataclass
class FeatureSums:
    """What the feature encoder gave for each row, over its valid frames.

    Attributes:
        squares: (B,) float32, sum of squared outputs over frames and channels.
        num_frames: (B,) int64, valid frames.
        variance: (B,) float32 without gradient, share of those squares that varies over time: 0 where all frames of a
            row are alike.
        num_channels: C.
    """

    squares: Tensor
    num_frames: Tensor
    variance: Tensor
    num_channels: int


@dataclass
class PretrainingOutput:
    """What the losses need.

    Attributes:
        logits: (B, M, 1 + K) float32; class 0 is the target, negatives that carry the target's codes are -inf.
        valid: (B, M), False where a row has fewer than M masked frames.
        removed: (B, M, K), True where a negative was removed.
        codes: (B, M, G) chosen codes of the masked frames.
        soft_probs: (B, M, G, V) float32 soft choice of the masked frames.
        features: sums of the feature encoder's outputs.
        context: (B, M, E) projected context vectors.
        unmasked_logits: (B, U, 1 + K) float32 of frames that are not masked; None where they were not asked for.
        unmasked_valid: (B, U), False where a row has fewer than U such frames.
    """

    logits: Tensor
    valid: Tensor
    removed: Tensor
    codes: Tensor
    soft_probs: Tensor
    features: FeatureSums
    context: Tensor
    unmasked_logits: Tensor | None = None
    unmasked_valid: Tensor | None = None


class PretrainingModel(nn.Module):
    """wav2vec 2.0 as it is pretrained.

    Args:
        config: the network and its quantizer.
        logit_temperature: κ of the cosine similarities.
    """

    def __init__(self, config: ModelConfig, logit_temperature: float = 0.1) -> None:
        super().__init__()
        self.backbone = Wav2Vec2(config)
        self.quantizer = GumbelQuantizer(config.quantizer, config.feature_dim)
        self.feature_dropout = Dropout(config.feature_dropout)
        self.target_projection = nn.Linear(config.quantizer.codevector_dim, config.target_dim)
        self.context_projection = nn.Linear(config.model_dim, config.target_dim)
        self.logit_temperature = logit_temperature

    def forward(
        self,
        waveforms: Float[Tensor, "B N"],
        num_samples: Int[Tensor, " B"] | None,
        mask: Bool[Tensor, "B T"],
        negatives: Int[Tensor, "B M K"],
        gumbel_noise: Float[Tensor, "B M G V"] | None,
        temperature: float,
        keep: Bool[Tensor, " L"] | None = None,
        unmasked_negatives: Int[Tensor, "B U K"] | None = None,
        unmasked_noise: Float[Tensor, "B U G V"] | None = None,
    ) -> PretrainingOutput:
        """Compute the logits of the contrastive task. Only frames that are asked for pass through the heads.

        Args:
            waveforms: (B, N) at 16 kHz, normalised where the model wants it.
            num_samples: (B,) valid samples; None where nothing is padded.
            mask: (B, T), True on masked frames, never on padding; a row has at most M of them.
            negatives: (B, M, K) indices among the row's own masked frames; any index in the places of rows with
                fewer than M masked frames, which `valid` leaves out of every sum.
            gumbel_noise: (B, M, G, V); None chooses codes without noise (evaluation).
            temperature: Gumbel temperature.
            keep: (L,) False for blocks that LayerDrop skips.
            unmasked_negatives: (B, U, K) negatives of the frames that are not masked, where these are to be told apart
                too: indices among all frames of the row, the masked ones first and then the others, both in order of
                time. None: masked frames only.
            unmasked_noise: (B, U, G, V), as `gumbel_noise`.

        Source: wav2vec 2.0 §3.2, eq. 3; negatives that equal the target are removed by their code indices, which
        is the reference's comparison of vectors without its dependence on rounding.
        """
        features = self.backbone.encode(waveforms, num_samples)  # z
        context, _ = self.backbone.contextualise(features, mask, keep=keep)  # c, of masked z
        positions, valid = find_masked(mask, negatives.shape[1])
        inputs = self.feature_dropout(gather_frames(features.normed, positions))
        quantized = self.quantizer(inputs, gumbel_noise, temperature)  # q, of unmasked z
        targets = self.target_projection(quantized.vectors)
        predictions = self.context_projection(gather_frames(context, positions))
        logits, removed = compute_logits(predictions, targets, quantized.codes, negatives, self.logit_temperature)
        unmasked_logits, exists = None, None
        if unmasked_negatives is not None:
            num_frames, length = features.num_frames, mask.shape[1]
            is_padding = False if num_frames is None else ~make_valid_mask(num_frames, length)
            others, exists = find_masked(~(mask | is_padding), unmasked_negatives.shape[1])
            own = self.quantizer(
                self.feature_dropout(gather_frames(features.normed, others)), unmasked_noise, temperature
            )
            # In a row with fewer masked frames than others of the batch, there is a gap behind them.
            num_masked = valid.sum(1)[:, None, None]
            gap = torch.where(unmasked_negatives < num_masked, 0, negatives.shape[1] - num_masked)
            unmasked_logits, _ = compute_logits(
                self.context_projection(gather_frames(context, others)),
                torch.cat([targets, self.target_projection(own.vectors)], dim=1),
                torch.cat([quantized.codes, own.codes], dim=1),
                unmasked_negatives + gap,
                self.logit_temperature,
            )
        return PretrainingOutput(
            logits=logits,
            valid=valid,
            removed=removed,
            codes=quantized.codes,
            soft_probs=quantized.soft_probs,
            features=measure_features(features),
            context=predictions,
            unmasked_logits=unmasked_logits,
            unmasked_valid=exists,
        )


def find_masked(mask: Bool[Tensor, "B T"], num_masked: int) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Find the masked frames of each row, in order of time.

    Args:
        mask: (B, T), at most `num_masked` True a row.
        num_masked: M.

    Returns:
        Positions (B, M) and which of them are masked frames: rows with fewer are filled with unmasked ones.
    """
    positions = torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices[:, :num_masked]
    return positions, mask.gather(1, positions)


def gather_frames(x: Float[Tensor, "B T D"], positions: Int[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
    """Pick frames of each row."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def compute_logits(
    predictions: Float[Tensor, "B M E"],
    targets: Float[Tensor, "B F E"],
    codes: Int[Tensor, "B F G"],
    negatives: Int[Tensor, "B M K"],
    temperature: float,
) -> tuple[Float[Tensor, "B M K1"], Bool[Tensor, "B M K"]]:
    """Compare each prediction with its target and its negatives.

    The similarities of all pairs of one row are one matrix product, from which those of the negatives are
    gathered, so that no (B, M, K, E) tensor is made. In float32.

    Args:
        predictions: (B, M, E).
        targets: (B, F, E) of at least as many frames; the last M are those of the predictions.
        codes: (B, F, G) of the targets.
        negatives: (B, M, K) indices among the F frames.
        temperature: κ.

    Returns:
        Logits (B, M, 1 + K), the target first, cosine / temperature; and which negatives were removed because
        their codes are the target's.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        x = F.normalize(predictions.float(), dim=-1, eps=1e-8)
        y = F.normalize(targets.float(), dim=-1, eps=1e-8)
        similarity = x @ y.transpose(1, 2) / temperature
    first = targets.shape[1] - predictions.shape[1]
    positive = similarity.diagonal(offset=first, dim1=1, dim2=2)[..., None]
    same = (codes[:, first:, None, :] == codes[:, None, :, :]).all(-1)
    removed = same.gather(2, negatives)
    negative = similarity.gather(2, negatives).masked_fill(removed, float("-inf"))
    return torch.cat([positive, negative], dim=-1), removed


def measure_features(features: Features) -> FeatureSums:
    """Sum the raw features of each row for the feature penalty, and measure how much they vary; in float32."""
    raw, num_frames = features.raw, features.num_frames
    with torch.autocast(raw.device.type, enabled=False):
        squares = raw.float().square().sum(-1)
        if num_frames is None:
            num_frames = torch.full((len(raw),), raw.shape[1], device=raw.device)
            squares, total = squares.sum(1), raw.detach().float().sum(1)
        else:
            valid = make_valid_mask(num_frames, raw.shape[1])
            squares = torch.where(valid, squares, 0.0).sum(1)
            total = (valid.float()[:, None] @ raw.detach().float())[:, 0]
        with torch.no_grad():
            # What is left of the squares without those of each row's mean over time.
            steady = total.square().sum(-1) / num_frames
            variance = (1.0 - steady / squares.clamp(min=1e-12)).clamp(min=0.0) * (squares > 0)
    return FeatureSums(squares, num_frames, variance, raw.shape[-1])
