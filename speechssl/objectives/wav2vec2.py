"""The contrastive task of wav2vec 2.0 (§3.2) over the package's batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechssl.config.model import MaskConfig, ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch
from speechssl.errors import ConfigError
from speechssl.model.lengths import compute_num_frames
from speechssl.model.masking import sample_masks, sample_negatives
from speechssl.model.pretraining import PretrainingOutput
from speechssl.model.quantizer import sample_gumbel_noise
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.collapse import CollapseWatch
from speechssl.objectives.losses import (
    NATS_TO_BITS,
    average_by_sub_batch,
    compute_contrastive_loss,
    compute_diversity_loss,
    compute_feature_penalty,
    compute_perplexity,
)
from speechssl.objectives.protocol import Health, LossTerms, Metrics, draw_kept_layers
from speechssl.seeds import make_rng, make_torch_seed


@dataclass(frozen=True)
class ContrastivePrepare:
    """Draws masks and negatives in the loader's workers; a function of (seed, sub-batch).

    Attributes:
        mask: of the model.
        num_negatives: K.
        kernels, strides: of the feature encoder, to count frames.
    """

    mask: MaskConfig
    num_negatives: int
    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, examples: Sequence[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
        """Return for each row `mask` (T,) bool and `negatives` (M, K) int64."""
        rng = make_rng(seed, "mask", number)
        num_frames = [compute_num_frames(len(e.waveform), self.kernels, self.strides) for e in examples]
        masks = sample_masks(num_frames, self.mask, rng)
        negatives = [sample_negatives(int(mask.sum()), self.num_negatives, rng) for mask in masks]
        return {"mask": masks, "negatives": negatives}


class ContrastiveObjective:
    """wav2vec 2.0 pretraining: contrastive loss, codebook diversity and feature penalty.

    The loss is the sum over masked frames of the contrastive term, plus for each sub-batch its diversity and
    feature penalty times its number of masked frames, so that one division by the count gives fairseq's total.

    Args:
        config: the network.
        task: negatives, temperature of the logits and weights.
        seed: of Gumbel noise and LayerDrop.
        max_updates: length of the run, for a temperature schedule that scales with it.
        warmup_updates: before them, a loss of guessing is no sign that the run is stuck.
    """

    best_metric = tie_metric = "loss_contrastive"

    def __init__(
        self, config: ModelConfig, task: ContrastiveConfig, seed: int, max_updates: int, warmup_updates: int = 0
    ) -> None:
        if config.mask.min_spans < 1 or config.mask.length < 2:
            raise ConfigError(
                "`model.mask.min_spans` must be at least 1 and `model.mask.length` at least 2 for pretraining, "
                f"but are {config.mask.min_spans} and {config.mask.length}"
            )
        self.config, self.task, self.seed, self.max_updates = config, task, seed, max_updates
        self.speech_model = SpeechModel(config, pretraining=True)
        assert self.speech_model.pretraining is not None, "the model was asked for its pretraining heads"
        self.model = self.speech_model.pretraining
        self.model.logit_temperature = task.logit_temperature
        quantizer = config.quantizer
        self.watch = CollapseWatch(quantizer.num_groups, quantizer.num_codes, warmup_updates)

    @property
    def module(self) -> SpeechModel:
        """The model with its pretraining heads."""
        return self.speech_model

    def make_prepare(self) -> ContrastivePrepare:
        """Make the part of the work that loader workers do."""
        kernels, strides = tuple(self.config.frame_kernels), tuple(self.config.frame_strides)
        return ContrastivePrepare(self.config.mask, self.task.num_negatives, kernels, strides)

    def temperature(self, update: int) -> float:
        """Gumbel temperature of update `update` (from 1): a function of the completed updates.

        Source: wav2vec 2.0 §4.2, max(2 · 0.999995^n, 0.5); with `temperature_reference_updates` n is scaled as if
        the run had that many updates.
        """
        quantizer = self.config.quantizer
        done = float(update - 1)
        if quantizer.temperature_reference_updates:
            done *= quantizer.temperature_reference_updates / self.max_updates
        decayed = quantizer.temperature_start * math.pow(quantizer.temperature_decay, done)
        return max(decayed, quantizer.temperature_end)

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward. In evaluation mode codes are chosen without noise."""
        training = self.model.training
        noise = self._draw_noise(batch) if training else None
        output = self.model(
            batch.waveforms,
            batch.num_samples,
            batch.inputs["mask"],
            batch.inputs["negatives"],
            noise,
            self.temperature(update) if training else 1.0,
            draw_kept_layers(self.config, self.seed, update) if training else None,
        )
        return compute_terms(output, batch.membership, self.task)

    def is_trained(self, name: str, update: int) -> bool:
        """All parameters learn in every update, but those of a frozen feature encoder."""
        return self.config.feature_gradient_scale > 0 or ".encoder." not in name

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Turn sums into metrics: losses in bits a masked frame, as fairseq names and scales them."""
        stats, count = terms.stats, float(terms.count)
        per_frame = NATS_TO_BITS / count
        codes = stats["code_counts"].double()
        hard = compute_perplexity(codes / codes.sum(-1, keepdim=True).clamp(min=1))
        return {
            "loss": float(terms.sum) * per_frame,
            "loss_contrastive": float(stats["contrastive"]) * per_frame,
            "loss_diversity": float(stats["diversity"]) * per_frame,
            "loss_features": float(stats["features"]) * per_frame,
            "accuracy": float(stats["right"]) / count,
            "soft_perplexity": (stats["soft_perplexity"] / stats["sub_batches"]).tolist(),
            "hard_perplexity": hard.tolist(),
            "loss_of_guessing": float(stats["guessing"]) * per_frame,
            "removed_negatives": float(stats["removed"]) / (count * self.task.num_negatives),
            "temperature": self.temperature(max(update, 1)),
            "masked_share": count / float(stats["frames"]),
            "feature_variance": float(stats["feature_variance"]) / float(stats["rows"]),
            "context_spread": math.sqrt(float(stats["context_variance"]) / float(stats["rows"])),
        }

    def check_health(self, terms: LossTerms, metrics: Metrics, update: int) -> Health:
        """Look for the signs of collapse (see `CollapseWatch`)."""
        return self.watch.observe(terms.stats["code_counts"], metrics, update)

    def state(self) -> dict[str, Tensor]:
        """What the collapse watch remembers."""
        return self.watch.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what the collapse watch remembered."""
        self.watch.load_state(state)

    def is_candidate(self, metrics: Metrics) -> bool:
        """A checkpoint whose validation shows a collapse is never the best one: its loss can be very low."""
        return not self.watch.has_signs(metrics)

    def _draw_noise(self, batch: Batch) -> Tensor:
        """Draw Gumbel noise for each sub-batch from its own generator, so that stacking does not change it."""
        device, quantizer = batch.waveforms.device, self.config.quantizer
        largest = batch.inputs["negatives"].shape[1]
        noise = torch.zeros(len(batch.ids), largest, quantizer.num_groups, quantizer.num_codes, device=device)
        for sub_batch, size in zip(batch.plan.sub_batches, batch.sizes, strict=True):
            generator = torch.Generator(device).manual_seed(make_torch_seed(self.seed, "gumbel", sub_batch.number))
            shape = (size["rows"], size["negatives"], quantizer.num_groups, quantizer.num_codes)
            drawn = sample_gumbel_noise(shape, generator, device)
            noise[size["first"] : size["first"] + size["rows"], : size["negatives"]] = drawn
        return noise


def compute_terms(output: PretrainingOutput, membership: Tensor, task: ContrastiveConfig) -> LossTerms:
    """Put the three parts of the loss together, in float32.

    Args:
        output: of the model.
        membership: (S, B) which row belongs to which sub-batch.
        task: the weights.

    Returns:
        Sum in nats over all masked frames, their number, and the sums that the metrics need.
    """
    contrastive, right = compute_contrastive_loss(output.logits, output.valid)
    # Products with `membership` are sums over rows: in bf16, 2,100 masked frames would be 2,096.
    with torch.autocast(membership.device.type, enabled=False):
        masked = membership @ output.valid.sum(1).float()
        mean_probs = average_by_sub_batch(output.soft_probs, output.valid, membership)
    diversity = task.diversity_weight * (compute_diversity_loss(mean_probs) * masked).sum()
    sums = output.features
    penalty = compute_feature_penalty(sums.squares, sums.num_frames, sums.num_channels, output.valid.sum(1), membership)
    features = task.feature_penalty_weight * penalty
    total = contrastive.sum() + diversity + features
    with torch.no_grad():
        stats = _collect_stats(output, mean_probs)
        parts = {"contrastive": contrastive.sum(), "diversity": diversity, "features": features, "right": right.sum()}
        stats.update({name: part.detach().double() for name, part in parts.items()})
    return LossTerms(total, output.valid.sum(), stats)


def _collect_stats(output: PretrainingOutput, mean_probs: Tensor) -> dict[str, Tensor]:
    """Sum what the metrics need, over masked frames."""
    valid = output.valid
    choice = torch.zeros_like(output.soft_probs).scatter_(-1, output.codes[..., None], 1.0)
    removed = output.removed.sum(-1)
    # Who guesses has the target and what is left of its negatives to choose from: log(1 + K - removed) nats.
    guessing = torch.log1p(output.removed.shape[-1] - removed.double())
    weight = valid[..., None].float()
    count = weight.sum(1).clamp(min=1)
    context = torch.nn.functional.normalize(output.context.float(), dim=-1)
    mean = (context * weight).sum(1, keepdim=True) / count[:, None]
    variance = ((context - mean).square() * weight).sum((1, 2)) / count[:, 0]
    return {
        "code_counts": torch.where(valid[..., None, None], choice, 0.0).double().sum((0, 1)),
        "soft_perplexity": compute_perplexity(mean_probs).double().sum(0),
        "sub_batches": torch.tensor(float(len(mean_probs)), device=valid.device, dtype=torch.float64),
        "frames": output.features.num_frames.double().sum(),
        "removed": torch.where(valid, removed, 0).double().sum(),
        "guessing": torch.where(valid, guessing, 0.0).sum(),
        "context_variance": variance.double().sum(),
        "feature_variance": output.features.variance.double().sum(),
        "rows": torch.tensor(float(len(valid)), device=valid.device, dtype=torch.float64),
    }
