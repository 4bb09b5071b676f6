"""The model as a user holds it: backbone, and whatever heads its checkpoint brought along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from speechssl.config.adaptation import Adaptation
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.model.adaptation import add_lora, merge_lora
from speechssl.model.heads import CTCHead
from speechssl.model.lengths import check_num_samples, check_waveforms
from speechssl.model.pretraining import PretrainingModel
from speechssl.model.transformer import Adjust
from speechssl.model.wav2vec2 import Wav2Vec2, normalize_waveforms
from speechssl.text.vocabulary import Vocabulary

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass
class Frames:
    """What a model makes of waveforms.

    Attributes:
        last: (B, T, D) the model's output, after the final norm where it has one; fewer frames where the model has a
            length adapter (`model.length_adapter_layers`).
        layers: L + 1 tensors (B, T, D): what enters the first block, then each block's output, without final norm.
        num_frames: (B,) int64 valid frames of each row. Frame k starts at k / model.frame_rate seconds.
        num_outputs: (B,) those of `last` and `logits`: the same without a length adapter.
        logits: (B, T, V) scores of a recogniser's symbols, as many as `last`; None for a model without a CTC head.
    """

    last: Tensor
    layers: list[Tensor]
    num_frames: Tensor
    num_outputs: Tensor
    logits: Tensor | None = None


class SpeechModel(nn.Module):
    """A backbone with, where the checkpoint has them, its pretraining heads or its CTC head and vocabulary.

    Args:
        config: the network.
        vocabulary: labels of the CTC head; None for a model without one.
        pretraining: bring the quantizer and the projections of pretraining along.

    Attributes:
        adaptation: of a network that learns by a few weights beside frozen ones; None for every other.
    """

    adaptation: Adaptation | None = None

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary | None = None, pretraining: bool = False) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.pretraining = PretrainingModel(config) if pretraining else None
        self.backbone: Wav2Vec2 = self.pretraining.backbone if self.pretraining else Wav2Vec2(config)
        self.head = CTCHead(config.model_dim, len(vocabulary), config.head_dropout) if vocabulary else None
        self.conditioning: nn.Linear | None = None
        if vocabulary and config.self_conditioning:
            self.conditioning = nn.Linear(len(vocabulary), config.model_dim)
            # Zero at first: a pretrained block gets what it got in pretraining.
            nn.init.zeros_(self.conditioning.weight)
            nn.init.zeros_(self.conditioning.bias)

    @property
    def num_layers(self) -> int:
        """Blocks L; layers are numbered 0 to L."""
        return self.config.num_layers

    @property
    def dim(self) -> int:
        """Width D of a frame."""
        return self.config.model_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.mask_embedding.device

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None) -> Frames:
        """Turn waveforms into frames.

        Args:
            waveforms: (B, N) float32 at 16 kHz, in [-1, 1]; normalised inside where the model wants it.
            num_samples: (B,) int64 valid samples of each row; None where nothing is padded.

        Returns:
            Output, layers, valid frames and, of a recogniser, logits. With `model.group_norm_frames=valid`, or layer
            norm, a row's valid frames do not depend on the other rows or on padding.

        Raises:
            DataError: the waveforms are no such tensor or shorter than one frame, or `num_samples` are not whole
                numbers, one a row; on the CPU also where one is out of range.
        """
        x = self._prepare(waveforms, num_samples)
        features = self.backbone.encode(x, num_samples)
        context, layers = self.backbone.contextualise(features, adjust=self.adjust)
        last = self.backbone.finish(context, features)
        logits = None if self.head is None else self.head(last)
        num_frames, num_outputs = (f(waveforms, num_samples) for f in (self.count_frames, self.count_outputs))
        return Frames(last, layers, num_frames, num_outputs, logits)

    def adapt(self, adaptation: Adaptation) -> None:
        """Freeze all but the head and the few weights that `adaptation` names; those of LoRA are added."""
        if adaptation.adapt == "lora":
            add_lora(self.backbone, adaptation.lora)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(adaptation.learns(name))
        self.adaptation = adaptation

    def merge(self) -> None:
        """Become a network like every other, that gives the same: what LoRA has learned goes into its weights."""
        merge_lora(self.backbone)
        self.requires_grad_(True)
        self.adaptation = None

    @property
    def adjust(self) -> Adjust | None:
        """What happens between two blocks; None where nothing does."""
        return None if self.conditioning is None else self._condition

    def normalise(self, frames: Tensor) -> Tensor:
        """Give a block's output as the CTC head takes it: after the norm that the last block's goes through.

        Source: intermediate CTC shares head and norm between the layers (arXiv 2102.03216; the norm as ESPnet).
        """
        normed: Tensor = self.backbone.transformer.norm(frames) if self.config.norm_first else frames
        return normed

    def _condition(self, num_blocks: int, frames: Tensor) -> Tensor:
        """Add what the head makes of the frames to them, after the block of `self_conditioning` (arXiv 2104.02724)."""
        if num_blocks != self.config.self_conditioning:
            return frames
        assert self.conditioning is not None and self.head is not None, "a recogniser has both"
        told: Tensor = self.conditioning(self.head(self.normalise(frames)).softmax(-1))
        return frames + told

    def logits(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give the CTC logits (B, T, V) and valid frames (B,) of each row, of waveforms as `forward` takes them.

        Raises:
            CheckpointError: the model has no CTC head.
        """
        if self.head is None:
            raise CheckpointError("`checkpoint` must be a recogniser, but has no CTC head: finetune it first")
        frames: Frames = self(waveforms, num_samples)
        assert frames.logits is not None
        return frames.logits, frames.num_outputs

    def codes(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give the quantizer's codes (B, T, G) of each frame, chosen without noise, and the valid frames (B,).

        Raises:
            CheckpointError: the model has no quantizer.
        """
        if self.pretraining is None:
            raise CheckpointError("`checkpoint` must be a pretrained model with its quantizer, but this one has none")
        features = self.backbone.encode(self._prepare(waveforms, num_samples), num_samples)
        codes: Tensor = self.pretraining.quantizer(features.normed).codes
        return codes, self.count_frames(waveforms, num_samples)

    def count_frames(self, waveforms: Tensor, num_samples: Tensor | None) -> Tensor:
        """Count the valid frames of each row: (B,) int64."""
        return self.config.count_frames(_fill_lengths(waveforms, num_samples))

    def count_outputs(self, waveforms: Tensor, num_samples: Tensor | None) -> Tensor:
        """Count the valid frames of each row of the output: (B,) int64."""
        return self.config.count_outputs(_fill_lengths(waveforms, num_samples))

    def _prepare(self, waveforms: Tensor, num_samples: Tensor | None) -> Tensor:
        shortest = self.config.output_field
        check_waveforms(waveforms, self.backbone.mask_embedding, shortest)
        check_num_samples(waveforms, num_samples)
        if not self.config.normalize_waveform:
            return waveforms
        return normalize_waveforms(waveforms, num_samples, self.config.waveform_epsilon)


def _fill_lengths(waveforms: Tensor, num_samples: Tensor | None) -> Tensor:
    """Give the valid samples of each row, which are all where nothing is padded."""
    if num_samples is not None:
        return num_samples
    return torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)


def as_evaluating(model: AnyModule) -> AnyModule:
    """Give a module in evaluation mode, and leave the given one as it is.

    Where it is in training mode, the one that is given back has modules of its own, with the same weights, buffers and
    hooks: switching the mode of a module that another thread is running would change what that thread computes.

    Args:
        model: any module; itself where all of it is in evaluation mode already.
    """
    return _share(model, {}) if any(module.training for module in model.modules()) else model


def _share(module: AnyModule, done: dict[nn.Module, nn.Module]) -> AnyModule:
    """Copy a module and those in it, each once, but nothing that they hold."""
    if module not in done:
        # Not copy.copy, which parametrised modules (weight norm) refuse.
        twin = object.__new__(type(module))
        done[module] = twin
        twin.__dict__.update(module.__dict__)
        children = {name: None if child is None else _share(child, done) for name, child in module._modules.items()}
        twin.__dict__.update(_modules=children, training=False)
    found = done[module]
    assert isinstance(found, type(module))
    return found
