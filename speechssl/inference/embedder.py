"""Which layers of a model are embeddings, and how their frames come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.inference.batches import CHUNK_BATCHES, run_model
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.pooling import Pool
from speechssl.inference.source import FloatArray, Source
from speechssl.model.speech_model import Frames
from speechssl.parsing import parsing, read_json

POOLINGS = ("mean", "max", "statistics", "frames")


@dataclass(frozen=True)
class LayerChoice:
    """Which tensors of a model are embeddings.

    Attributes:
        names: what the column `layer` says, one a tensor.
        pick: gives these tensors (B, T, D) of a model's frames.
        is_output: whether they are the model's output, of which there are fewer frames after a length adapter.
    """

    names: tuple[str, ...]
    pick: Callable[[Frames], list[Tensor]]
    is_output: bool = False


def choose_layers(layer: Any, num_layers: int | None) -> LayerChoice:
    """Understand a value of the key `layer`.

    Args:
        layer: 0 to L, a list of these, `all`, `mean`, `last`, or a probe's folder (its learned mix), as text or path.
        num_layers: transformer blocks L of the model; None where it gives its output alone.

    Raises:
        ConfigError: it is none of these, or out of range.
    """
    layer = os.fspath(layer) if isinstance(layer, os.PathLike) else layer
    layer = layer.tolist() if isinstance(layer, (np.ndarray, np.generic, Tensor)) else layer
    if isinstance(layer, str) and layer == "last":
        return LayerChoice(("last",), lambda frames: [frames.last], is_output=True)
    if num_layers is None:
        raise ConfigError(f"`layer` must be last for an ONNX file, which has no layers, but is {layer!r}")
    if isinstance(layer, str) and layer == "mean":
        return LayerChoice(("mean",), lambda frames: [torch.stack(frames.layers).mean(0)])
    if isinstance(layer, str) and (Path(layer) / "result.json").is_file():
        return _choose_mix(Path(layer), num_layers)
    several = isinstance(layer, Iterable) and not isinstance(layer, (str, bytes, Mapping))
    numbers: list[Any] = list(range(num_layers + 1)) if layer == "all" else list(layer) if several else [layer]
    # To Python True is a number.
    are_whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in numbers)
    if not numbers or not are_whole or not all(0 <= n <= num_layers for n in numbers):
        raise ConfigError(
            f"`layer` must be 0 to {num_layers}, a list of these, all, mean, last or a probe's folder, but is {layer!r}"
        )
    chosen = tuple(int(n) for n in numbers)
    return LayerChoice(tuple(str(n) for n in chosen), lambda frames: [frames.layers[n] for n in chosen])


def _choose_mix(folder: Path, num_layers: int) -> LayerChoice:
    path = folder / "result.json"
    weights = read_json(path, ConfigError).get("layer_weights") or []
    with parsing(f"{path}: layer_weights", "a list of numbers", ConfigError):
        weights = [float(weight) for weight in weights]
    if len(weights) != num_layers + 1:
        raise ConfigError(
            f"`layer` must be a probe of a model with {num_layers + 1} states, but {folder} mixes {len(weights)}"
        )
    return LayerChoice(
        ("mix",), lambda frames: [sum(w * x for w, x in zip(weights, frames.layers, strict=True)) + torch.zeros(())]
    )


@dataclass(frozen=True)
class Embedder:
    """How audio becomes embeddings.

    Attributes:
        model: on whatever device; it works in evaluation mode, and is left as it is.
        choice: layers.
        pooling: of frames.
        batch_s: seconds of audio that a forward may hold; memory only.
        window_s: audio up to this long is one pass; beyond it the plan of overlapping windows.
        precision: `float32` or `bf16`.
    """

    model: AnyModel
    choice: LayerChoice
    pooling: str = "mean"
    batch_s: float = 60.0
    window_s: float = 30.0
    precision: str = "float32"

    @property
    def dim(self) -> int:
        """Numbers in one embedding."""
        return self.model.dim * (2 if self.pooling == "statistics" else 1)

    def iterate(self, source: Source, description: str = "embed") -> Iterator[tuple[int, list[FloatArray]]]:
        """Yield, in order, number and one array (rows, dim) a layer of each utterance that the source keeps.

        Raises:
            DataError: an utterance is shorter than one frame, or a file is damaged, and the source leaves none out.
        """
        source.leave_out_short(self.model.config.output_field)
        # Single frames of all layers are a thousand times as much as one vector, and are not kept for long.
        chunk = 1 if self.pooling == "frames" else CHUNK_BATCHES
        return run_model(
            self.model, source, self.forward, self.pool,
            batch_s=self.batch_s, window_s=self.window_s, chunk_batches=chunk, description=description,
            is_output=self.choice.is_output,
        )  # fmt: skip

    def forward(self, model: AnyModel, waveforms: Tensor, num_samples: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Give the chosen layers (B, T, D) of one batch, and its valid frames (B,)."""
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            frames: Frames = model(waveforms, num_samples)
        return self.choice.pick(frames), frames.num_outputs if self.choice.is_output else frames.num_frames

    def pool(self, pieces: Iterator[list[Tensor]]) -> list[FloatArray]:
        """Pool all frames of an utterance: one array (rows, dim) a layer."""
        pools = [Pool(self.pooling) for _ in self.choice.names]
        for piece in pieces:
            for pool, frames in zip(pools, piece, strict=True):
                pool.add(frames)
        return [pool.finish() for pool in pools]
