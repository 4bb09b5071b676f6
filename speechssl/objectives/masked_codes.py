"""Cross-entropy on discrete codes at masked frames: BEST-RQ (arXiv 2202.01855) and HuBERT (arXiv 2106.07447)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechssl.checkpoints.clusters import FloatArray, find_nearest, fit_centroids
from speechssl.config.knobs import check
from speechssl.config.model import ModelConfig
from speechssl.config.objective import MaskedCodesConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch
from speechssl.model.lengths import make_valid_mask
from speechssl.model.pretraining import find_masked, gather_frames, measure_features
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.codes import (
    MEL_BINS,
    MFCC_DIM,
    Teacher,
    compute_mfcc,
    draw_projection,
    make_grid,
    split_rows,
    stack_log_mel,
)
from speechssl.objectives.collapse import CodesWatch
from speechssl.objectives.losses import NATS_TO_BITS, compute_entropy, compute_feature_penalty
from speechssl.objectives.protocol import Beginning, LossTerms, Metrics, Objective, draw_kept_layers, draw_masks
from speechssl.progress import track
from speechssl.seeds import make_rng

_logger = logging.getLogger("speechssl")


class CodePredictor(nn.Module):
    """A linear layer to the codes for each predicted block, and what makes the codes; in checkpoints as `objective`.

    Where a frame has several codes, the layer gives the scores of the first, then those of the next.

    Initialisation: weight N(0, 0.02), bias 0, as the transformer's.
    """

    codes: Tensor

    def __init__(self, dim: int, num_heads: int, per_frame: int, codes: Tensor, projection: Tensor | None) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, per_frame * len(codes)) for _ in range(num_heads))
        for name, parameter in self.heads.named_parameters():
            nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else 0.02)
        self.register_buffer("codes", codes)
        self.register_buffer("projection", projection)


class CodesModel(SpeechModel):
    """A backbone with its predictor of codes."""

    def __init__(
        self, config: ModelConfig, num_heads: int, per_frame: int, codes: Tensor, projection: Tensor | None
    ) -> None:
        super().__init__(config)
        self.objective = CodePredictor(config.model_dim, num_heads, per_frame, codes, projection)


@dataclass(frozen=True)
class CodesCollate:
    """Draws masks and finds the codes of masked frames in the loader's workers; a function of (seed, audio, sub-batch).

    Attributes:
        config: of the model.
        task: which targets.
        codes: (V, E).
        projection: (inputs, E), None for k-means.
    """

    config: ModelConfig
    task: MaskedCodesConfig
    codes: FloatArray
    projection: FloatArray | None

    def __call__(self, examples: Sequence[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
        """Return for each row `mask` (T,) bool and `codes` (M, R) int64 of its predicted frames.

        Predicted are the masked frames, or all of them where `unmasked_weight` is above 0; 0 is for a teacher to say.
        """
        masks = draw_masks(examples, self.config, make_rng(seed, "mask", number))
        takes_all = self.task.unmasked_weight > 0
        codes = [self.find_codes(e.waveform, mask | takes_all) for e, mask in zip(examples, masks, strict=True)]
        return {"mask": masks, "codes": codes}

    def find_codes(self, waveform: FloatArray, wanted: np.ndarray) -> np.ndarray:
        """Find the R codes of each of the M frames that are `wanted` (T,): (M, R)."""
        per_frame = self.task.codes_per_frame
        if self.task.has_teacher:
            return np.zeros((wanted.sum(), per_frame), dtype=np.int64)
        is_wanted = np.repeat(wanted, per_frame)
        if self.projection is None:
            x = describe_by_mfcc(waveform, self.config, self.task)[is_wanted]
        else:
            grid = make_grid(self.config, per_frame)
            x = stack_log_mel(waveform, len(is_wanted), grid, self.task.stack_frames)[is_wanted]
            x = x @ torch.from_numpy(self.projection).double()
        return find_nearest(x, torch.from_numpy(self.codes)).view(-1, per_frame).numpy()


class MaskedCodesObjective(Objective):
    """Prediction of each masked frame's codes, after the last block and, where asked for, after another one.

    Args:
        config: the network.
        task: targets and weights.
        seed: of LayerDrop.
        codes: (V, E) what a frame is compared with; those of a checkpoint take their place where one is loaded.
        projection: (inputs, E) of log-mel; None for k-means.
        teacher: says what the codes are; None where the audio alone does.
        warmup_updates: before them, predictions that are all alike are no sign.

    Raises:
        ConfigError: the model does not fit.
    """

    module: CodesModel
    best_metric = "loss_codes"

    def __init__(
        self,
        config: ModelConfig,
        task: MaskedCodesConfig,
        seed: int,
        codes: FloatArray,
        projection: FloatArray | None = None,
        teacher: Teacher | None = None,
        warmup_updates: int = 0,
    ) -> None:
        check(config.mask.min_spans >= 1, "model.mask.min_spans", "at least 1 for pretraining", config.mask.min_spans)
        inner, layers = task.intermediate_layer, config.num_layers
        check(0 <= inner < layers, "objective.intermediate_layer", f"0 (none) to {layers - 1}", inner)
        self.task, self.seed, self.teacher, self.projection = task, seed, teacher, projection
        matrix = None if projection is None else torch.from_numpy(projection)
        num_heads, numbers = 2 if inner else 1, torch.from_numpy(codes.copy())
        self.module = CodesModel(config, num_heads, task.codes_per_frame, numbers, matrix)
        self.watch: CodesWatch = CodesWatch(len(codes), config.mask.prob, warmup_updates, teacher)

    def make_collate(self) -> CodesCollate:
        """Make what draws masks and finds codes, with the codes that the module has by now."""
        import torchaudio.compliance.kaldi  # noqa: F401  # here, so that no worker takes a second for it

        codes = self.module.objective.codes.cpu().numpy().copy()
        return CodesCollate(self.module.config, self.task, codes, self.projection)

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward: a sum over masked frames, in nats, and over the others with their weight.

        A frame with two codes counts with their mean.
        """
        mask = batch.inputs["mask"]
        features = self.module.backbone.encode(batch.waveforms, batch.num_samples)
        keep = draw_kept_layers(self.module, self.seed, update)
        context, states = self.module.backbone.contextualise(features, mask, keep=keep)
        predicted = self._choose_frames(mask, features.num_frames)
        positions, exists = find_masked(predicted, batch.inputs["codes"].shape[1])
        valid = mask.gather(1, positions) & exists
        codes = batch.inputs["codes"] if self.teacher is None else self._ask(self.teacher, batch, positions)
        logits = self._predict(context, 0, positions)
        sums = measure_features(features)
        penalty = compute_feature_penalty(
            sums.squares, sums.num_frames, sums.num_channels, valid.sum(1), batch.membership
        )
        parts = {"codes": _sum_loss(logits, codes, valid), "features": self.task.feature_penalty_weight * penalty}
        if self.task.unmasked_weight > 0:
            parts["unmasked"] = self.task.unmasked_weight * _sum_loss(logits, codes, exists & ~valid)
        if self.task.intermediate_layer:
            inner = self._predict(states[self.task.intermediate_layer], 1, positions)
            parts["intermediate"] = _sum_loss(inner, codes, valid)
        guesses = logits.argmax(-1)
        stats = {name: part.detach().double() for name, part in parts.items()}
        heard = {"frames": sums.num_frames, "feature_variance": sums.variance, "rows": torch.ones_like(sums.variance)}
        stats |= {name: value.double().sum() for name, value in heard.items()}
        stats["right"] = ((guesses == codes) & valid[..., None]).sum().double() / self.task.codes_per_frame
        stats["code_counts"], stats["guess_counts"] = (
            _count(x, valid, len(self.module.objective.codes)) for x in (codes, guesses)
        )
        return LossTerms(torch.stack(list(parts.values())).sum(), valid.sum(), stats)

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Losses in bits a masked frame; entropy and perplexity of the targets over all that the run has seen."""
        stats, count = terms.stats, float(terms.count)
        parts = [name for name in ("codes", "unmasked", "intermediate", "features") if name in stats]
        entropy = compute_entropy(self.watch.counts + stats["code_counts"].cpu())
        return {
            "loss": float(terms.sum) * NATS_TO_BITS / count,
            **{f"loss_{name}": float(stats[name]) * NATS_TO_BITS / count for name in parts},
            "accuracy": float(stats["right"]) / count,
            "target_entropy": entropy,
            "code_perplexity": 2.0**entropy,
            "prediction_perplexity": 2.0 ** compute_entropy(stats["guess_counts"]),
            "masked_share": count / float(stats["frames"]),
            "feature_variance": float(stats["feature_variance"]) / float(stats["rows"]),
        }

    def _choose_frames(self, mask: Tensor, num_frames: Tensor | None) -> Tensor:
        """Choose the frames (B, T) whose codes are predicted: the masked ones, or all that are no padding."""
        if self.task.unmasked_weight == 0:
            return mask
        return torch.ones_like(mask) if num_frames is None else make_valid_mask(num_frames, mask.shape[1])

    def _predict(self, x: Tensor, head: int, positions: Tensor) -> Tensor:
        """Give the logits (B, M, R, V) of the predicted frames, in float32."""
        logits: Tensor = self.module.objective.heads[head](gather_frames(x, positions))
        return logits.float().view(*positions.shape, self.task.codes_per_frame, -1)

    @torch.no_grad()
    def _ask(self, teacher: Teacher, batch: Batch, positions: Tensor) -> Tensor:
        """Let the teacher say the codes (B, M, R) of the predicted frames."""
        per_frame, count_frames = self.task.codes_per_frame, self.module.config.count_frames
        with torch.autocast(batch.waveforms.device.type, enabled=False):
            said = [find_nearest(row, self.module.objective.codes) for row in teacher.describe(batch)]
        counts = [per_frame * count_frames(len(row)) for row in split_rows(batch)]
        rows = [teacher.place(*pair).view(-1, per_frame) for pair in zip(said, counts, strict=True)]
        return pad_sequence(rows, batch_first=True).gather(1, positions[..., None].expand(-1, -1, per_frame))


def build(config: PretrainConfig, task: MaskedCodesConfig, beginning: Beginning) -> MaskedCodesObjective:
    """Build the objective with fresh weights: load the teacher, and draw the codes or fit them to the first speech.

    Raises:
        ConfigError: model, teacher or the amount of speech do not fit.
    """
    # Loading and reading draw from torch's generator, and must not change the student's fresh weights.
    with torch.random.fork_rng(devices=[]):
        teacher = Teacher(config.model, task) if task.has_teacher else None
        codes, projection = make_codes(config, task, teacher, beginning)
    warmup_updates = round(config.training.warmup_share * config.training.planned_updates)
    return MaskedCodesObjective(config.model, task, config.seed, codes, projection, teacher, warmup_updates)


def make_codes(
    config: PretrainConfig, task: MaskedCodesConfig, teacher: Teacher | None, beginning: Beginning
) -> tuple[FloatArray, FloatArray | None]:
    """Draw codes and projection, or take or fit centroids; a run that goes on gets room for those of its checkpoint."""
    if task.targets == "random_projection":
        return draw_projection(config.seed, task.stack_frames * MEL_BINS, task.num_codes or 8192, task.code_dim)
    if teacher is not None and teacher.clusters is not None:
        return teacher.clusters.centroids, None
    num_codes = task.num_codes or (100 if teacher is None else 500)
    if beginning.goes_on:
        return np.zeros((num_codes, MFCC_DIM if teacher is None else teacher.model.dim), dtype=np.float32), None

    def fit() -> bytes:
        _logger.info("k-means: fitting to %g s of data.train", round(min(task.fit_s, beginning.total_s), 1))
        described = describe_all(beginning.listen(task.fit_s), config.model, task, teacher)
        return fit_centroids(described, num_codes, config.seed).tobytes()

    return np.frombuffer(beginning.share(fit), dtype=np.float32).reshape(num_codes, -1), None


def describe_all(
    batches: Iterable[Batch], config: ModelConfig, task: MaskedCodesConfig, teacher: Teacher | None
) -> FloatArray:
    """Give what k-means is fitted to, for all frames of some batches: (F, E)."""
    rows: list[Tensor] = []
    for batch in track(batches, "listening for k-means", unit="batches"):
        if teacher is None:
            rows += [describe_by_mfcc(row.cpu().numpy(), config, task) for row in split_rows(batch)]
        else:
            rows += teacher.describe(batch)
    described: FloatArray = torch.cat([row.float().cpu() for row in rows]).numpy()
    return described


def describe_by_mfcc(waveform: FloatArray, config: ModelConfig, task: MaskedCodesConfig) -> Tensor:
    """Compute what k-means clusters where there is no teacher: (N,) → (T · R, 39)."""
    num_codes = task.codes_per_frame * config.count_frames(len(waveform))
    return compute_mfcc(waveform, num_codes, make_grid(config, task.codes_per_frame), task.subtract_mean)


def _sum_loss(logits: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
    """Sum the cross-entropy (nats) of (B, M, R, V) logits and (B, M, R) codes where `valid` (B, M); over R its mean."""
    loss = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none")
    return torch.where(valid[..., None].expand_as(codes).flatten(), loss, 0.0).sum() / codes.shape[2]


def _count(codes: Tensor, valid: Tensor, num_codes: int) -> Tensor:
    """Count how often each code comes where `valid`: (V,) float64."""
    counts = torch.zeros(num_codes, dtype=torch.float64, device=codes.device)
    return counts.scatter_add_(0, codes.flatten(), valid[..., None].expand_as(codes).flatten().double())
