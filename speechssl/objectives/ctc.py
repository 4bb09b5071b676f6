"""Speech recognition with connectionist temporal classification on top of the backbone (wav2vec 2.0 §3.3, §4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch
from speechssl.evaluation.wer import compare
from speechssl.inference.decoding.greedy import greedy_decode
from speechssl.model.masking import sample_channel_masks
from speechssl.model.speech_model import SpeechModel
from speechssl.model.transformer import learning
from speechssl.objectives.losses import compute_consistency_loss, compute_ctc_loss
from speechssl.objectives.protocol import LossTerms, Metrics, Objective, draw_kept_layers, draw_masks
from speechssl.objectives.tolerant_ctc import compute_tolerant_ctc_loss
from speechssl.seeds import make_rng
from speechssl.text.vocabulary import Vocabulary

BLOCKS = "backbone.transformer.blocks."


@dataclass(frozen=True)
class CTCCollate:
    """Encodes transcripts and draws masks in the loader's workers.

    Attributes:
        vocabulary: labels.
        config: the network: masks and how frames are counted.
        num_views: 2 draws masks for a second view of each row.
    """

    vocabulary: Vocabulary
    config: ModelConfig
    num_views: int = 1

    def __call__(self, examples: Sequence[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
        """Return for each row `labels` (U,), `num_labels`, and the masks that the configuration asks for.

        Those of the second view are `second_mask` and `second_channel_mask`.
        """
        labels = [np.array(self.vocabulary.encode(e.text or ""), dtype=np.int64) for e in examples]
        made = {"labels": labels, "num_labels": [np.array([len(row)]) for row in labels]}
        made |= self._draw(examples, make_rng(seed, "mask", number), make_rng(seed, "channel mask", number))
        if self.num_views == 2:
            rngs = make_rng(seed, "second mask", number), make_rng(seed, "second channel mask", number)
            made |= {f"second_{name}": masks for name, masks in self._draw(examples, *rngs).items()}
        return made

    def _draw(
        self, examples: Sequence[Example], rng: np.random.Generator, channel_rng: np.random.Generator
    ) -> dict[str, list[np.ndarray]]:
        """Draw the masks of one view of each row."""
        made, mask = dict[str, list[np.ndarray]](), self.config.mask
        if mask.prob > 0:
            made["mask"] = list(draw_masks(examples, self.config, rng))
        if mask.channel_prob > 0:
            made["channel_mask"] = list(sample_channel_masks(len(examples), self.config.model_dim, mask, channel_rng))
        return made


@dataclass(frozen=True)
class Tolerance:
    """What it costs to hear otherwise than a transcript says, at the first update.

    Attributes:
        star_penalty: nats for each frame of speech that the transcript has not.
        word_penalty: nats for each word of the transcript that is not heard.
        decay: what is left of both after all updates.
        updates: of the whole run.
    """

    star_penalty: float
    word_penalty: float
    decay: float
    updates: int

    def compute_penalties(self, update: int) -> tuple[float, float]:
        """Let both decay exponentially: early on, only the transcript can teach."""
        left = float(self.decay ** (update / self.updates))
        return left * self.star_penalty, left * self.word_penalty


@dataclass(frozen=True)
class CTCOptions:
    """What a fine-tuning adds to the plain CTC loss of the output.

    Attributes:
        head_updates: so many first updates train only the head.
        frozen_layers: so many first blocks stay as they are, and the front end with them; -1: none.
        frozen_updates: for so many first updates.
        intermediate_weight: of the CTC loss of `intermediate_layer`, against 1 minus it for the output.
        intermediate_layer: a block before the last.
        consistency_weight: of the divergence between two views of each utterance; 0: there is one view.
        best_by: the metric that marks the best checkpoint.
        tolerance: of errors in transcripts; None takes them at their word.
    """

    head_updates: int = 0
    frozen_layers: int = -1
    frozen_updates: int = 0
    intermediate_weight: float = 0.0
    intermediate_layer: int = 0
    consistency_weight: float = 0.0
    best_by: str = "wer"
    tolerance: Tolerance | None = None

    @property
    def num_views(self) -> int:
        """How many differently masked views of each utterance are compared in training."""
        return 2 if self.consistency_weight > 0 else 1


class CTCObjective(Objective):
    """Fine-tuning with CTC: the sum over utterances, divided by their number.

    With two views, each counts half. An inner block's loss and the views' divergence are sums over the same utterances.

    Args:
        model: backbone and CTC head.
        seed: of LayerDrop.
        options: what is frozen and what is added to the loss.
    """

    module: SpeechModel
    best_metric, tie_metric = "wer", "cer"
    """WER stays at 100 for long while CER falls already: by WER alone, the first checkpoint of all would be best."""

    def __init__(self, model: SpeechModel, seed: int, options: CTCOptions | None = None) -> None:
        assert model.head is not None and model.vocabulary is not None, "CTC needs a head and a vocabulary"
        self.module, self.seed, self.options = model, seed, options or CTCOptions()
        self.vocabulary = model.vocabulary
        if self.options.best_by != self.best_metric:
            self.best_metric, self.tie_metric = self.options.best_by, "loss"

    def make_collate(self) -> CTCCollate:
        """Make the part of the work that loader workers do."""
        return CTCCollate(self.vocabulary, self.module.config, self.options.num_views)

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward; masks, LayerDrop and all but the output's CTC loss only in training."""
        options, is_training = self.options, self.module.training
        views = options.num_views if is_training else 1
        context, states, num_frames = self._contextualise(batch, update, views)
        assert self.module.head is not None, "CTC needs a head"
        logits: Tensor = self.module.head(context)
        num_labels = batch.inputs["num_labels"][:, 0]
        targets = num_frames.repeat(views), batch.inputs["labels"].repeat(views, 1), num_labels.repeat(views)
        loss = ctc = self._compute_ctc(logits, *targets, update) / views
        stats = {"loss": ctc.detach().double(), "labels": num_labels.sum().double()}
        if is_training and options.intermediate_weight > 0:
            with learning(self.find_frozen(update) <= self.module.num_layers):
                inside = self.module.normalise(states[options.intermediate_layer])
            inner = self._compute_ctc(self.module.head(inside), *targets, update) / views
            loss = (1.0 - options.intermediate_weight) * loss + options.intermediate_weight * inner
            stats["intermediate"] = inner.detach().double()
        if views == 2:
            first, second = logits.chunk(2)
            apart = compute_consistency_loss(first, second, num_frames)
            loss = loss + options.consistency_weight * apart
            stats["consistency"] = apart.detach().double()
        if not is_training:
            stats |= self._count_errors(logits, num_frames, batch)
        return LossTerms(loss, torch.tensor(len(batch.ids), device=logits.device), stats)

    def _compute_ctc(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, num_labels: Tensor, update: int
    ) -> Tensor:
        """Compute the loss of some logits; validation takes transcripts at their word."""
        tolerance = self.options.tolerance
        if tolerance is None or not self.module.training:
            return compute_ctc_loss(logits, num_frames, labels, num_labels)
        ends_word = find_word_ends(labels, self.vocabulary)
        penalties = tolerance.compute_penalties(update)
        return compute_tolerant_ctc_loss(logits, num_frames, labels, num_labels, ends_word, *penalties)

    def _contextualise(self, batch: Batch, update: int, views: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """Contextualise all views of a batch, with everything that is drawn for it."""
        model, masks = self.module, batch.inputs if self.module.training else {}
        mask, channel_mask = (_stack_views(masks, name, views) for name in ("mask", "channel_mask"))
        keep = draw_kept_layers(model, self.seed, update)
        num_frozen = self.find_frozen(update) if model.training else -1
        audio = batch.waveforms, batch.num_samples
        return contextualise(model, *audio, mask, channel_mask, keep, views, num_frozen)

    def find_frozen(self, update: int) -> int:
        """Find what is frozen in an update, as `find_place` counts: all up to this place; -1: nothing."""
        if update <= self.options.head_updates:
            return self.module.num_layers + 1
        return self.options.frozen_layers if update <= self.options.frozen_updates else -1

    def find_place(self, name: str) -> int:
        """Find where a parameter is: 0 before the blocks, 1 to L in them, L + 1 after them, L + 2 the head."""
        last, config = self.module.num_layers, self.module.config
        if name.startswith("head."):
            return last + 2
        if name.startswith("conditioning."):
            return config.self_conditioning + 1  # it changes what that block gets
        if name.startswith(BLOCKS):
            return int(name.removeprefix(BLOCKS).split(".")[0]) + 1
        is_norm = config.norm_first and name.startswith("backbone.transformer.norm.")
        return last + 1 if is_norm or name.startswith("backbone.length_adapter.") else 0

    def find_depth(self, name: str) -> int:
        """Count from the head, which is at 0 with the norm before it, the last block at 1."""
        last = self.module.num_layers
        return 0 if name.startswith("conditioning.") else max(last + 1 - self.find_place(name), 0)

    def is_trained(self, name: str, update: int) -> bool:
        """What is not frozen learns, without parts that nothing depends on."""
        config, adaptation = self.module.config, self.module.adaptation
        if adaptation is not None and not adaptation.learns(name):
            return False
        if self.find_place(name) <= self.find_frozen(update):
            return False
        if name == "backbone.mask_embedding" and config.mask.prob == 0:
            return False
        return config.feature_gradient_scale > 0 or not name.startswith("backbone.encoder.")

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Loss in nats an utterance, and of the output alone a label; what is added to that, in nats an utterance.

        In validation also word and character error rate in percent.
        """
        sums = {name: float(value) for name, value in terms.stats.items()}
        metrics: Metrics = {
            "loss": float(terms.sum) / float(terms.count),
            "loss_per_label": sums["loss"] / max(sums["labels"], 1.0),
        }
        for name in ("intermediate", "consistency"):
            if name in sums:
                metrics[f"loss_{name}"] = sums[name] / float(terms.count)
        if "words" in sums:
            metrics["wer"] = 100.0 * sums["word_errors"] / max(sums["words"], 1.0)
            metrics["cer"] = 100.0 * sums["letter_errors"] / max(sums["letters"], 1.0)
        return metrics

    def _count_errors(self, logits: Tensor, num_frames: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Decode greedily and count errors against the labels, so that rates are sums over the validation set."""
        labels, lengths = batch.inputs["labels"].tolist(), batch.inputs["num_labels"][:, 0].tolist()
        references = [self.vocabulary.decode(row[:length]) for row, length in zip(labels, lengths, strict=True)]
        utterances = compare(
            references, greedy_decode(logits, num_frames, self.vocabulary), has_words=self.vocabulary.has_words
        )
        counts = {
            "word_errors": sum(len(utterance.word_edits) for utterance in utterances),
            "letter_errors": sum(len(utterance.letter_edits) for utterance in utterances),
            "words": sum(utterance.num_words for utterance in utterances),
            "letters": sum(utterance.num_letters for utterance in utterances),
        }
        return {name: torch.tensor(float(count), dtype=torch.float64) for name, count in counts.items()}


def contextualise(
    model: SpeechModel,
    waveforms: Tensor,
    num_samples: Tensor | None,
    mask: Tensor | None = None,
    channel_mask: Tensor | None = None,
    keep: Tensor | None = None,
    views: int = 1,
    num_frozen: int = -1,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Run the backbone with everything that is usually drawn given explicitly; `torch.compile` finds one graph.

    Args:
        model: the recogniser.
        waveforms: (B, N) float32 at 16 kHz, normalised already where the model wants it.
        num_samples: (B,) valid samples; None where nothing is padded.
        mask: (views · B, T') bool, T' at most the frames T of the batch, True where masked.
        channel_mask: (views · B, D) bool, True where a channel is zero.
        keep: (L,) bool, False for blocks that LayerDrop skips.
        views: so often all rows go through the blocks; the front end, which sees no masks, serves all views.
        num_frozen: as `CTCObjective.find_frozen`.

    Returns:
        Output and L + 1 states (views · B, T, D), and the valid frames (B,) of the output.
    """
    with learning(num_frozen < 0):
        features = model.backbone.encode(waveforms, num_samples).repeat(views)
    if mask is not None:
        # Drawn over the frames of the longest row, which the batch's padding may exceed.
        mask = F.pad(mask, (0, features.normed.shape[1] - mask.shape[1]))
    context, states = model.backbone.contextualise(features, mask, channel_mask, keep, num_frozen, model.adjust)
    with learning(num_frozen <= model.num_layers):
        last = model.backbone.finish(context, features)
    return last, states, model.count_outputs(waveforms, num_samples)


def _stack_views(inputs: Mapping[str, Tensor], name: str, views: int) -> Tensor | None:
    """Stack the masks of this name of all views (B, …) to (views · B, …); None where there are none."""
    names = (name, f"second_{name}")[:views]
    return torch.cat([inputs[each] for each in names]) if name in inputs else None


def count_needed_frames(labels: Sequence[int]) -> int:
    """Count the frames without which CTC has no path: one a label, and one more between equal neighbours."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def find_word_ends(labels: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Find the labels (B, U) that are the last of a word: its boundary, or the piece before the next word's first.

    A vocabulary without words has a word in each label. Of the last label of all, the answer has no meaning.
    """
    if not vocabulary.has_words and vocabulary.pieces is None:
        return torch.ones_like(labels, dtype=torch.bool)
    is_mark = torch.tensor([symbol.startswith(vocabulary.boundary) for symbol in vocabulary.symbols])
    found = is_mark.to(labels.device)[labels]
    return found if vocabulary.pieces is None else found.roll(-1, 1)
