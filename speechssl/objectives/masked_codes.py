"""Cross-entropy on discrete codes at masked frames: BEST-RQ (arXiv 2202.01855) and HuBERT (arXiv 2106.07447)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechssl.config.knobs import check
from speechssl.config.model import ModelConfig
from speechssl.config.verbs import ObjectiveConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch
from speechssl.errors import ConfigError
from speechssl.interop.load import load_model
from speechssl.model.lengths import compute_num_frames, compute_receptive_field, make_valid_mask
from speechssl.model.masking import sample_masks
from speechssl.model.pretraining import find_masked, gather_frames, measure_features
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives import codes as targets
from speechssl.objectives.losses import NATS_TO_BITS, compute_feature_penalty
from speechssl.objectives.protocol import Health, LossTerms, Metrics, draw_kept_layers, make_rng

HELD_UPDATES, FRAMES = 300, 10_000
CONSTANT, FEW_CODES, LEAST_MASKED = 1.5, 0.01, 0.2


class CodePredictor(nn.Module):
    """A linear layer to the codes for each predicted block, and what makes the codes; in checkpoints as `objective`.

    Initialisation: weight N(0, 0.02), bias 0, as the transformer's.
    """

    codes: Tensor

    def __init__(self, dim: int, num_heads: int, codes: Tensor, projection: Tensor | None) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, len(codes)) for _ in range(num_heads))
        for name, parameter in self.heads.named_parameters():
            nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else 0.02)
        self.register_buffer("codes", codes)
        self.register_buffer("projection", projection)


class CodesModel(SpeechModel):
    """A backbone with its predictor of codes."""

    def __init__(self, config: ModelConfig, num_heads: int, codes: Tensor, projection: Tensor | None) -> None:
        super().__init__(config)
        self.objective = CodePredictor(config.model_dim, num_heads, codes, projection)


@dataclass(frozen=True)
class CodesPrepare:
    """Draws masks and finds the codes of masked frames in the loader's workers; a function of (seed, audio, sub-batch).

    Attributes:
        config: of the model.
        task: which targets.
        codes: (V, E), of the objective, which fills them in when it has fitted or loaded them.
        projection: (inputs, E), None for k-means.
    """

    config: ModelConfig
    task: ObjectiveConfig
    codes: np.ndarray
    projection: np.ndarray | None

    def __call__(self, examples: Sequence[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
        """Return for each row `mask` (T,) bool and `codes` (M,) int64 of its predicted frames; 0 for a teacher to say.

        Predicted are the masked frames, or all of them where `unmasked_weight` is above 0.
        """
        num_frames = [_count_frames(len(example.waveform), self.config) for example in examples]
        masks = sample_masks(num_frames, self.config.mask, make_rng(seed, "mask", number))
        takes_all = self.task.unmasked_weight > 0
        codes = [self._find_codes(e.waveform, mask | takes_all) for e, mask in zip(examples, masks, strict=True)]
        return {"mask": masks, "codes": codes}

    def _find_codes(self, waveform: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        if self.task.targets == "kmeans" and self.task.teacher != "mfcc":
            return np.zeros(wanted.sum(), dtype=np.int64)
        if self.projection is None:
            x = self.compute_mfcc(waveform)[wanted]
        else:
            x = targets.stack_log_mel(waveform, len(wanted), _find_field(self.config), self.task.stack_frames)[wanted]
            x = x @ torch.from_numpy(self.projection).double()
        return targets.find_nearest(x, torch.from_numpy(self.codes)).numpy()

    def compute_mfcc(self, waveform: np.ndarray) -> Tensor:
        """Compute what k-means clusters where there is no teacher: (T, 39)."""
        num_frames = _count_frames(len(waveform), self.config)
        return targets.compute_mfcc(waveform, num_frames, _find_field(self.config), self.task.subtract_mean)


class MaskedCodesObjective:
    """Prediction of each masked frame's code, after the last block and, where asked for, after another one.

    Args:
        config: the network.
        task: targets and weights.
        seed: of the random projection, of k-means and of LayerDrop.
        warmup_updates: before them, predictions that are all alike are no sign.

    Attributes:
        module: the model with its predictor.
        needs_fit: whether `fit` must make the codes as a run begins.

    Raises:
        ConfigError: the model or the teacher does not fit.
    """

    best_metric = tie_metric = "loss_codes"

    def __init__(self, config: ModelConfig, task: ObjectiveConfig, seed: int, warmup_updates: int = 0) -> None:
        check(config.mask.min_spans >= 1, "model.mask.min_spans", "at least 1 for pretraining", config.mask.min_spans)
        inner, layers = task.intermediate_layer, config.num_layers
        check(0 <= inner < layers, "objective.intermediate_layer", f"0 (none) to {layers - 1}", inner)
        self.config, self.task, self.seed, self.warmup_updates = config, task, seed, warmup_updates
        with torch.random.fork_rng(devices=[]):  # the teacher's own initialisation must not change the student's
            self.teacher = _load_teacher(config, task) if task.targets == "kmeans" and task.teacher != "mfcc" else None
        self.needs_fit = task.targets == "kmeans"
        codes, projection = self._draw_codes()
        self.prepare = CodesPrepare(config, task, codes, projection)
        matrix = None if projection is None else torch.from_numpy(projection)
        self.module = CodesModel(config, 2 if inner else 1, torch.from_numpy(codes.copy()), matrix)
        self.counts, self.held = torch.zeros(len(codes), dtype=torch.float64), 0

    def make_prepare(self) -> CodesPrepare:
        """Make the part of the work that loader workers do."""
        import torchaudio.compliance.kaldi  # noqa: F401  # here, so that no worker takes a second for it

        return self.prepare

    def fit(self, batches: Iterable[Batch]) -> bytes:
        """Fit k-means to all frames of some batches; the bytes are for `set_codes`, on this and on other ranks."""
        rows = [row.float().cpu() for batch in batches for row in self._describe(batch)]
        return targets.fit_centroids(torch.cat(rows).numpy(), len(self.counts), self.seed).tobytes()

    def set_codes(self, codes: bytes) -> None:
        """Take centroids, here and in the loader's workers that have not begun yet."""
        self.prepare.codes[:] = np.frombuffer(codes, dtype=np.float32).reshape(self.prepare.codes.shape)
        self.module.objective.codes.copy_(torch.from_numpy(self.prepare.codes))

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward: a sum over masked frames, in nats, and over the others with their weight."""
        mask = batch.inputs["mask"]
        keep = draw_kept_layers(self.config, self.seed, update) if self.module.training else None
        features = self.module.backbone.encode(batch.waveforms, batch.num_samples)
        context, states = self.module.backbone.contextualise(features, mask, keep=keep)
        predicted = self._choose_frames(mask, features.num_frames)
        positions, exists = find_masked(predicted, batch.inputs["codes"].shape[1])
        valid = mask.gather(1, positions) & exists
        codes = batch.inputs["codes"] if self.teacher is None else self._ask_teacher(batch, positions)
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
        stats["right"] = ((guesses == codes) & valid).sum().double()
        stats["code_counts"], stats["guess_counts"] = (_count(x, valid, len(self.counts)) for x in (codes, guesses))
        return LossTerms(torch.stack(list(parts.values())).sum(), valid.sum(), stats)

    def is_trained(self, name: str, update: int) -> bool:
        """All parameters learn in every update, but those of a frozen feature encoder."""
        return self.config.feature_gradient_scale > 0 or ".encoder." not in name

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Losses in bits a masked frame; entropy and perplexity of the targets over all that the run has seen."""
        stats, count = terms.stats, float(terms.count)
        parts = [name for name in ("codes", "unmasked", "intermediate", "features") if name in stats]
        entropy = _compute_entropy(self.counts + stats["code_counts"].cpu())
        return {
            "loss": float(terms.sum) * NATS_TO_BITS / count,
            **{f"loss_{name}": float(stats[name]) * NATS_TO_BITS / count for name in parts},
            "accuracy": float(stats["right"]) / count,
            "target_entropy": entropy,
            "code_perplexity": 2.0**entropy,
            "prediction_perplexity": 2.0 ** _compute_entropy(stats["guess_counts"]),
            "masked_share": count / float(stats["frames"]),
            "feature_variance": float(stats["feature_variance"]) / float(stats["rows"]),
        }

    def check_health(self, terms: LossTerms, metrics: Metrics, update: int) -> Health:
        """Stop where nothing but one code is predicted for long after the warm-up; warn of masks and codes."""
        self.counts += terms.stats["code_counts"].cpu()
        figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
        is_guessing = figures["loss_codes"] > figures["target_entropy"] - 0.02
        is_stuck = is_guessing and figures["prediction_perplexity"] < CONSTANT and update > self.warmup_updates
        self.held = self.held + 1 if is_stuck else 0
        problem = (
            f"pretraining has collapsed: for {self.held} updates up to {update}, one code is predicted for all frames "
            "and the loss is no lower than the entropy of the targets. Try a lower training.lr or a longer "
            "training.warmup_share; training.on_collapse=warn goes on regardless"
        )
        signs = []
        # Spans overlap, so that n starts of length l leave about exp(-n · l) of the frames.
        expected, masked = 1 - math.exp(-self.config.mask.prob), figures["masked_share"]
        if masked < LEAST_MASKED or not 0.5 < masked / max(expected, 1e-9) < 1.5:
            told = f"model.mask.prob={self.config.mask.prob:g} should give {expected:.0%}"
            signs.append(f"{masked:.0%} of the frames are masked, where {told}, and 40 to 60% are usual")
        used = figures["code_perplexity"]
        if float(self.counts.sum()) >= FRAMES and used < max(FEW_CODES * len(self.counts), CONSTANT):
            signs.append(f"the targets use {used:.1f} of {len(self.counts)} codes in effect")
        warning = f"masked_codes (update {update}): {', and '.join(signs)}" if signs else ""
        return Health(problem if self.held >= HELD_UPDATES else "", warning)

    def state(self) -> dict[str, Tensor]:
        """How often each code came, for how long a collapse has held, and the digest of the teacher."""
        held = {"codes.counts": self.counts.clone(), "codes.held": torch.tensor([self.held])}
        return held if self.teacher is None else held | {"codes.teacher": _digest(self.teacher)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned, and hand the codes of the checkpoint, which is loaded, to the workers.

        Raises:
            ConfigError: the teacher has other weights than when the run began.
        """
        if self.teacher is not None and not torch.equal(state["codes.teacher"], _digest(self.teacher)):
            raise ConfigError(
                "`objective.teacher` must have the weights that the run began with, but those of "
                f"{self.task.teacher} have changed (another out= starts a new run)"
            )
        self.counts, self.held = state["codes.counts"].clone(), int(state["codes.held"])
        self.prepare.codes[:] = self.module.objective.codes.cpu().numpy()

    def is_candidate(self, metrics: Metrics) -> bool:
        """Any checkpoint may be the best: a collapse has no low loss."""
        return True

    def _draw_codes(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw codes and projection; for k-means, make room for the centroids."""
        task = self.task
        if task.targets == "random_projection":
            size = task.stack_frames * targets.MEL_BINS
            return targets.draw_projection(self.seed, size, task.num_codes or 8192, task.code_dim)
        dim = targets.MFCC_DIM if self.teacher is None else self.teacher.dim
        num_codes = task.num_codes or (100 if self.teacher is None else 500)
        return np.zeros((num_codes, dim), dtype=np.float32), None

    def _choose_frames(self, mask: Tensor, num_frames: Tensor | None) -> Tensor:
        """Choose the frames (B, T) whose codes are predicted: the masked ones, or all that are no padding."""
        if self.task.unmasked_weight == 0:
            return mask
        return torch.ones_like(mask) if num_frames is None else make_valid_mask(num_frames, mask.shape[1])

    def _predict(self, x: Tensor, head: int, positions: Tensor) -> Tensor:
        """Give the logits (B, M, V) of the masked frames, in float32."""
        logits: Tensor = self.module.objective.heads[head](gather_frames(x, positions))
        return logits.float()

    @torch.no_grad()
    def _describe(self, batch: Batch) -> list[Tensor]:
        """Give what k-means clusters for each row: MFCC, or a layer of the teacher, which hears the row unmasked.

        In float32 and, on a CPU, one row after the other: the codes do not depend on what else is in the batch. A GPU
        takes all rows at once, since it would wait for its launches most of the time, and codes agree to rounding.
        """
        lengths = [batch.waveforms.shape[1]] * len(batch.ids) if batch.num_samples is None else batch.num_samples
        rows = [waveform[: int(length)] for waveform, length in zip(batch.waveforms, lengths, strict=True)]
        if self.teacher is None:
            return [self.prepare.compute_mfcc(row.cpu().numpy()) for row in rows]
        teacher, device = self.teacher.to(batch.waveforms.device), batch.waveforms.device.type
        layer = self.task.teacher_layer
        with torch.autocast(device, enabled=False):
            if device == "cpu":
                return [teacher(row[None]).layers[layer][0] for row in rows]
            frames = teacher(batch.waveforms, batch.num_samples)
            states = zip(frames.layers[layer], frames.num_frames.tolist(), strict=True)
            return [row[:count] for row, count in states]

    @torch.no_grad()
    def _ask_teacher(self, batch: Batch, positions: Tensor) -> Tensor:
        """Find the codes (B, M) of the masked frames."""
        with torch.autocast(batch.waveforms.device.type, enabled=False):
            rows = [targets.find_nearest(row, self.module.objective.codes) for row in self._describe(batch)]
        return pad_sequence(rows, batch_first=True).gather(1, positions)


def _count_frames(num_samples: int, config: ModelConfig) -> int:
    return compute_num_frames(num_samples, config.frame_kernels, config.frame_strides)


def _find_field(config: ModelConfig) -> int:
    return compute_receptive_field(config.frame_kernels, config.frame_strides)


def _load_teacher(config: ModelConfig, task: ObjectiveConfig) -> SpeechModel:
    """Load the teacher and check that its frames are the student's."""
    teacher = load_model(task.teacher, key="objective.teacher")
    layer, last, own = task.teacher_layer, teacher.num_layers, teacher.config
    check(0 <= layer <= last, "objective.teacher_layer", f"between 0 and the teacher's {last} blocks", layer)
    shape, wanted = (own.frame_kernels, own.frame_strides), (config.frame_kernels, config.frame_strides)
    check(shape == wanted, "objective.teacher", f"a model with the convolutions {wanted}", shape)
    knows_level = own.normalize_waveform or not config.normalize_waveform
    check(knows_level, "objective.teacher", "a model that takes normalised waveforms, as `model` does", task.teacher)
    return teacher


def _digest(model: nn.Module) -> Tensor:
    """Digest the weights of a model: (32,) uint8."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _sum_loss(logits: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
    """Sum the cross-entropy (nats) of (B, M, V) logits and (B, M) codes where `valid` (B, M)."""
    loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
    return torch.where(valid.flatten(), loss, 0.0).sum()


def _count(codes: Tensor, valid: Tensor, num_codes: int) -> Tensor:
    """Count how often each code comes where `valid`: (V,) float64."""
    counts = torch.zeros(num_codes, dtype=torch.float64, device=codes.device)
    return counts.scatter_add_(0, codes.flatten(), valid.flatten().double())


def _compute_entropy(counts: Tensor) -> float:
    """Compute the entropy, in bits, of codes that came so often: (V,)."""
    shares = counts / counts.sum().clamp(min=1)
    return float(torch.special.entr(shares).sum()) * NATS_TO_BITS
