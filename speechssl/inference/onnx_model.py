"""An ONNX export in place of a model: onnxruntime gives what a `SpeechModel` would."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.model.speech_model import Frames, SpeechModel
from speechssl.parsing import parsing
from speechssl.text.vocabulary import Vocabulary


class Session(Protocol):
    """What is asked of an `onnxruntime.InferenceSession`."""

    def run(self, output_names: None, input_feed: dict[str, Any]) -> list[Any]:
        """Give the outputs as arrays."""


class OnnxModel(nn.Module):
    """What inference asks of a `SpeechModel`, answered by an export, which holds one of its outputs and no layers.

    Args:
        config: the network that was exported.
        vocabulary: of its logits; None where it gives features.
        session: runs it.
        min_samples: fewest samples that a batch may have; shorter ones are padded.
        name: the file, for messages.
    """

    num_layers = None
    device = torch.device("cpu")

    def __init__(
        self, config: ModelConfig, vocabulary: Vocabulary | None, session: Session, min_samples: int, name: str
    ) -> None:
        super().__init__()
        self.config, self.vocabulary, self.session = config, vocabulary, session
        self.min_samples, self.name = min_samples, name
        self.eval()

    @property
    def dim(self) -> int:
        """Width D of a frame."""
        return self.config.model_dim

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None) -> Frames:
        """Turn waveforms (B, N) into frames, as `SpeechModel` does; there are no layers.

        Raises:
            CheckpointError: the export gives logits, or does not run.
        """
        if self.vocabulary is not None:
            raise CheckpointError(
                f"`checkpoint` must be an export of features (convert to=onnx_features), but {self.name} gives logits"
            )
        last, num_frames = self._run(waveforms, num_samples, self.dim)
        return Frames(last, [], num_frames, num_frames)

    def logits(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give the CTC logits (B, T, V) and valid frames (B,) of waveforms (B, N).

        Raises:
            CheckpointError: the export gives features, or does not run.
        """
        if self.vocabulary is None:
            raise CheckpointError(f"`checkpoint` must be an export of logits (convert to=onnx), but {self.name} is not")
        return self._run(waveforms, num_samples, len(self.vocabulary))

    def _run(self, waveforms: Tensor, num_samples: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
        if num_samples is None:
            num_samples = torch.full((len(waveforms),), waveforms.shape[1])
        num_frames = self.config.count_outputs(num_samples)
        padded = F.pad(waveforms, (0, max(0, self.min_samples - waveforms.shape[1])))
        feed = {"waveforms": padded.float().numpy(), "num_samples": num_samples.numpy()}
        with parsing("`checkpoint`", "an ONNX file that runs", CheckpointError, self.name):
            values, counts = (torch.from_numpy(value) for value in self.session.run(None, feed))
        # The metadata of a file need not be true.
        expected = (len(waveforms), self.config.count_outputs(padded.shape[1]), width)
        if tuple(values.shape) != expected or not torch.equal(counts, num_frames):
            raise CheckpointError(
                f"`checkpoint` must be an ONNX file that gives what its metadata say, but {self.name} gives "
                f"{tuple(values.shape)} for {expected}"
            )
        return values, num_frames


AnyModel = SpeechModel | OnnxModel
"""What inference runs."""
