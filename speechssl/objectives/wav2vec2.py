"""The contrastive task of wav2vec 2.0 (§3.2) over the package's batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch
from speechssl.errors import ConfigError
from speechssl.model.masking import sample_negatives
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
from speechssl.objectives.protocol import LossTerms, Metrics, Objective, draw_kept_layers, draw_masks
from speechssl.objectives.small_batch import describe_departure
from speechssl.seeds import make_rng, make_torch_seed

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class ContrastiveCollate:
    """Draws masks and negatives in the loader's workers; a function of (seed, sub-batch).

    Attributes:
        config: the network: masks, and how frames are counted.
        num_negatives: K.
        takes_all: draw negatives for frames that are not masked too.
    """

    config: ModelConfig
    num_negatives: int
    takes_all: bool = False

    def __call__(self, examples: Sequence[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
        """Return for each row `mask` (T,) bool and `negatives` (M, K) int64.

        With `takes_all` also `unmasked` (U, K) int64, as `PretrainingModel.forward` counts frames: masked ones first.
        """
        rng = make_rng(seed, "mask", number)
        masks = draw_masks(examples, self.config, rng)
        negatives = [sample_negatives(int(mask.sum()), self.num_negatives, rng) for mask in masks]
        drawn: dict[str, list[np.ndarray]] = {"mask": [*masks], "negatives": [*negatives]}
        if self.takes_all:
            drawn["unmasked"] = [sample_negatives(len(m), self.num_negatives, rng)[int(m.sum()) :] for m in masks]
        return drawn


class ContrastiveObjective(Objective):
    """wav2vec 2.0 pretraining: contrastive loss, codebook diversity and feature penalty.

    The loss is the sum over masked frames of the contrastive term, plus for each sub-batch its diversity and
    feature penalty times its number of masked frames, so that one division by the count gives fairseq's total. With
    `unmasked_weight` the contrastive term of all other frames comes to it, each told from any other frames of its row.

    Args:
        config: the network.
        task: negatives, temperature of the logits and weights.
        seed: of Gumbel noise and LayerDrop.
        max_updates: length of the run, for a temperature schedule that scales with it.
        warmup_updates: before them, a loss of guessing is no sign that the run is stuck.
    """

    module: SpeechModel
    best_metric = "loss_contrastive"

    def __init__(
        self, config: ModelConfig, task: ContrastiveConfig, seed: int, max_updates: int, warmup_updates: int = 0
    ) -> None:
        if config.mask.min_spans < 1 or config.mask.length < 2:
            raise ConfigError(
                "`model.mask.min_spans` must be at least 1 and `model.mask.length` at least 2 for pretraining, "
                f"but are {config.mask.min_spans} and {config.mask.length}"
            )
        self.config, self.task, self.seed, self.max_updates = config, task, seed, max_updates
        self.module = SpeechModel(config, pretraining=True)
        assert self.module.pretraining is not None, "the model was asked for its pretraining heads"
        self.model = self.module.pretraining
        self.model.logit_temperature = task.logit_temperature
        quantizer = config.quantizer
        self.watch = CollapseWatch(quantizer.num_groups, quantizer.num_codes, warmup_updates)

    def make_collate(self) -> ContrastiveCollate:
        """Make what draws masks and negatives."""
        return ContrastiveCollate(self.config, self.task.num_negatives, self.task.unmasked_weight > 0)

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
        noise = self._draw_noise(batch) if training else {}
        output = self.model(
            batch.waveforms,
            batch.num_samples,
            batch.inputs["mask"],
            batch.inputs["negatives"],
            noise.get("negatives"),
            self.temperature(update) if training else 1.0,
            draw_kept_layers(self.module, self.seed, update),
            batch.inputs.get("unmasked"),
            noise.get("unmasked"),
        )
        return compute_terms(output, batch.membership, self.task)

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Turn sums into metrics: losses in bits a masked frame, as fairseq names and scales them."""
        stats, count = terms.stats, float(terms.count)
        per_frame = NATS_TO_BITS / count
        codes = stats["code_counts"].double()
        hard = compute_perplexity(codes / codes.sum(-1, keepdim=True).clamp(min=1))
        unmasked = {"loss_unmasked": float(stats["unmasked"]) * per_frame} if "unmasked" in stats else {}
        return {
            "loss": float(terms.sum) * per_frame,
            "loss_contrastive": float(stats["contrastive"]) * per_frame,
            **unmasked,
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

    def _draw_noise(self, batch: Batch) -> dict[str, Tensor]:
        """Draw Gumbel noise for each sub-batch from its own generator, so that stacking does not change it.

        Returns:
            (B, M, G, V) of the frames that have `negatives`, and (B, U, G, V) of the `unmasked` ones where they count.
        """
        device, quantizer = batch.waveforms.device, self.config.quantizer
        codebooks = (quantizer.num_groups, quantizer.num_codes)
        names = [name for name in ("negatives", "unmasked") if name in batch.inputs]
        noise: dict[str, Tensor] = {
            name: torch.zeros(*batch.inputs[name].shape[:2], *codebooks, device=device) for name in names
        }
        for sub_batch, size in zip(batch.plan.sub_batches, batch.sizes, strict=True):
            generator = torch.Generator(device).manual_seed(make_torch_seed(self.seed, "gumbel", sub_batch.number))
            rows = slice(size["first"], size["first"] + size["rows"])
            for name in names:
                drawn = sample_gumbel_noise((size["rows"], size[name], *codebooks), generator, device)
                noise[name][rows, : size[name]] = drawn
        return noise


def build(config: PretrainConfig, task: ContrastiveConfig) -> ContrastiveObjective:
    """Build the objective with fresh weights; BASE outside of what is known to converge is warned of.

    Raises:
        ConfigError: the model's masks are too few or too short.
    """
    departure = describe_departure(config.model, config.training)
    if departure and not config.init:
        _logger.warning(departure)
    updates = config.training.planned_updates
    warmup_updates = round(config.training.warmup_share * updates)
    return ContrastiveObjective(config.model, task, config.seed, updates, warmup_updates)


def compute_terms(output: PretrainingOutput, membership: Tensor, task: ContrastiveConfig) -> LossTerms:
    """Put the three parts of the loss together, in float32.

    Args:
        output: of the model.
        membership: (S, B) which row belongs to which sub-batch.
        task: the weights.

    Returns:
        Sum in nats over all masked frames, and over the others with their weight; the number of masked frames; and the
        sums that the metrics need, of masked frames but for `unmasked`.
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
    parts = {"contrastive": contrastive.sum(), "diversity": diversity, "features": features, "right": right.sum()}
    if output.unmasked_logits is not None and output.unmasked_valid is not None:
        unmasked, _ = compute_contrastive_loss(output.unmasked_logits, output.unmasked_valid)
        parts["unmasked"] = task.unmasked_weight * unmasked.sum()
        total = total + parts["unmasked"]
    with torch.no_grad():
        stats = _collect_stats(output, mean_probs)
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
