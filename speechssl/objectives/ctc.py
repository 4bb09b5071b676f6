"""Speech recognition with connectionist temporal classification on top of the backbone (wav2vec 2.0 §3.3, §4.3)."""

from __future__ import annotations

from collections.abc import Sequence
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
from speechssl.objectives.losses import compute_ctc_loss
from speechssl.objectives.protocol import LossTerms, Metrics, Objective, draw_kept_layers, draw_masks
from speechssl.seeds import make_rng
from speechssl.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class CTCCollate:
    """Encodes transcripts and draws masks in the loader's workers.

    Attributes:
        vocabulary: labels.
        config: the network: masks and how frames are counted.
    """

    vocabulary: Vocabulary
    config: ModelConfig

    def __call__(self, examples: Sequence[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
        """Return for each row `labels` (U,), `num_labels`, and the masks that the configuration asks for."""
        labels = [np.array(self.vocabulary.encode(e.text or ""), dtype=np.int64) for e in examples]
        made = {"labels": labels, "num_labels": [np.array([len(row)]) for row in labels]}
        mask = self.config.mask
        if mask.prob > 0:
            made["mask"] = list(draw_masks(examples, self.config, make_rng(seed, "mask", number)))
        if mask.channel_prob > 0:
            rng = make_rng(seed, "channel mask", number)
            made["channel_mask"] = list(sample_channel_masks(len(examples), self.config.model_dim, mask, rng))
        return made


class CTCObjective(Objective):
    """Fine-tuning with CTC: the sum over utterances, divided by their number.

    Args:
        model: backbone and CTC head.
        seed: of LayerDrop.
        frozen_updates: so many first updates train only the head, the backbone runs without gradient.
    """

    module: SpeechModel
    best_metric, tie_metric = "wer", "cer"
    """WER stays at 100 for long while CER falls already: by WER alone, the first checkpoint of all would be best."""

    def __init__(self, model: SpeechModel, seed: int, frozen_updates: int = 0) -> None:
        assert model.head is not None and model.vocabulary is not None, "CTC needs a head and a vocabulary"
        self.module, self.seed, self.frozen_updates = model, seed, frozen_updates
        self.vocabulary = model.vocabulary

    def make_collate(self) -> CTCCollate:
        """Make the part of the work that loader workers do."""
        return CTCCollate(self.vocabulary, self.module.config)

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the CTC loss of one forward; masks and LayerDrop only in training."""
        logits, num_frames = self.forward(batch, update)
        num_labels = batch.inputs["num_labels"][:, 0]
        loss = compute_ctc_loss(logits, num_frames, batch.inputs["labels"], num_labels)
        count = torch.tensor(len(batch.ids), device=logits.device)
        stats = {"loss": loss.detach().double(), "labels": num_labels.sum().double()}
        if not self.module.training:
            stats |= self._count_errors(logits, num_frames, batch)
        return LossTerms(loss, count, stats)

    def forward(self, batch: Batch, update: int) -> tuple[Tensor, Tensor]:
        """Give logits (B, T, V) and valid frames (B,) of a batch, whose waveforms are normalised already."""
        training = self.module.training
        masks = batch.inputs if training else {}
        return compute_logits(
            self.module,
            batch.waveforms,
            batch.num_samples,
            masks.get("mask"),
            masks.get("channel_mask"),
            draw_kept_layers(self.module, self.seed, update),
            is_frozen=training and update <= self.frozen_updates,
        )

    def is_trained(self, name: str, update: int) -> bool:
        """The head always learns; the backbone after its frozen updates, without parts that nothing depends on."""
        config = self.module.config
        if name.startswith("head."):
            return True
        if update <= self.frozen_updates or (name == "backbone.mask_embedding" and config.mask.prob == 0):
            return False
        return config.feature_gradient_scale > 0 or not name.startswith("backbone.encoder.")

    def summarise(self, terms: LossTerms, update: int) -> Metrics:
        """Loss in nats an utterance, and a label; in validation also word and character error rate in percent."""
        sums = {name: float(value) for name, value in terms.stats.items()}
        metrics: Metrics = {
            "loss": float(terms.sum) / float(terms.count),
            "loss_per_label": sums["loss"] / max(sums["labels"], 1.0),
        }
        if "words" in sums:
            metrics["wer"] = 100.0 * sums["word_errors"] / max(sums["words"], 1.0)
            metrics["cer"] = 100.0 * sums["letter_errors"] / max(sums["letters"], 1.0)
        return metrics

    def _count_errors(self, logits: Tensor, num_frames: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Decode greedily and count errors against the labels, so that rates are sums over the validation set."""
        labels, lengths = batch.inputs["labels"].tolist(), batch.inputs["num_labels"][:, 0].tolist()
        references = [self.vocabulary.decode(row[:length]) for row, length in zip(labels, lengths, strict=True)]
        utterances = compare(references, greedy_decode(logits, num_frames, self.vocabulary))
        counts = {
            "word_errors": sum(len(utterance.word_edits) for utterance in utterances),
            "letter_errors": sum(len(utterance.letter_edits) for utterance in utterances),
            "words": sum(utterance.num_words for utterance in utterances),
            "letters": sum(utterance.num_letters for utterance in utterances),
        }
        return {name: torch.tensor(float(count), dtype=torch.float64) for name, count in counts.items()}


def compute_logits(
    model: SpeechModel,
    waveforms: Tensor,
    num_samples: Tensor | None,
    mask: Tensor | None = None,
    channel_mask: Tensor | None = None,
    keep: Tensor | None = None,
    is_frozen: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run backbone and head with everything that is usually drawn given explicitly; `torch.compile` finds one graph.

    Args:
        model: with its CTC head.
        waveforms: (B, N) float32 at 16 kHz, normalised already where the model wants it.
        num_samples: (B,) valid samples; None where nothing is padded.
        mask: (B, T') bool, T' at most the frames T of the batch, True where masked.
        channel_mask: (B, D) bool, True where a channel is zero.
        keep: (L,) bool, False for blocks that LayerDrop skips.
        is_frozen: the backbone gets no gradient.

    Returns:
        Logits (B, T, V), and the valid frames (B,).
    """
    assert model.head is not None, "CTC needs a head"
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen):
        features = model.backbone.encode(waveforms, num_samples)
        if mask is not None:
            # Drawn over the frames of the longest row, which the batch's padding may exceed.
            mask = F.pad(mask, (0, features.normed.shape[1] - mask.shape[1]))
        context, _ = model.backbone.contextualise(features, mask, channel_mask, keep)
    return model.head(context), model.count_frames(waveforms, num_samples)


def needs_more_frames(text_labels: Sequence[int], num_frames: int) -> bool:
    """Say whether CTC has no path: it needs a frame a label, and one more between equal neighbours."""
    repeats = sum(a == b for a, b in pairwise(text_labels))
    return len(text_labels) + repeats > num_frames
