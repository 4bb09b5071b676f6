"""Audio to embeddings: layers, pooling, audio of any length, rows in the order of the manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.data.manifest import Utterance
from speechssl.errors import ConfigError
from speechssl.inference.batches import CHUNK_BATCHES, find_grid, run_model
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.source import Audio, FloatArray, Source, find_source
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


@dataclass
class Pool:
    """Takes in the frames of one utterance, piece by piece, and gives one vector (or all frames).

    Attributes:
        pooling: `mean`, `max`, `statistics` (mean and population standard deviation side by side) or `frames`.
    """

    pooling: str
    count: int = 0
    total: Tensor | None = None
    squares: Tensor | None = None
    pieces: list[FloatArray] = field(default_factory=list)

    def add(self, frames: Tensor) -> None:
        """Take in (T, D) frames."""
        if self.pooling == "frames":
            self.pieces.append(frames.float().cpu().numpy())
            return
        if self.pooling == "max":
            peak = frames.max(0).values.double()
            self.total = peak if self.total is None else torch.maximum(self.total, peak)
            return
        self.count += len(frames)
        total = frames.sum(0, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        if self.pooling == "statistics":
            squares = frames.double().square().sum(0)
            self.squares = squares if self.squares is None else self.squares + squares

    def finish(self) -> FloatArray:
        """Give (1, D'), or (T, D) for `frames`: float32."""
        if self.pooling == "frames":
            return np.concatenate(self.pieces)
        assert self.total is not None, "no frames"
        pooled = self.total if self.pooling == "max" else self.total / self.count
        if self.squares is not None:
            deviation = (self.squares / self.count - pooled.square()).clamp(min=0).sqrt()
            pooled = torch.cat([pooled, deviation])
        return pooled.float().cpu().numpy()[None]


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
            self.model, source, self.forward, self._pool,
            batch_s=self.batch_s, window_s=self.window_s, chunk_batches=chunk, description=description,
            is_output=self.choice.is_output,
        )  # fmt: skip

    def forward(self, model: AnyModel, waveforms: Tensor, num_samples: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Give the chosen layers (B, T, D) of one batch, and its valid frames (B,)."""
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            frames: Frames = model(waveforms, num_samples)
        return self.choice.pick(frames), frames.num_outputs if self.choice.is_output else frames.num_frames

    def _pool(self, pieces: Iterator[list[Tensor]]) -> list[FloatArray]:
        pools = [Pool(self.pooling) for _ in self.choice.names]
        for piece in pieces:
            for pool, frames in zip(pools, piece, strict=True):
                pool.add(frames)
        return [pool.finish() for pool in pools]


def make_schema(dim: int) -> pa.Schema:
    """The columns of a file of embeddings."""
    text, real = pa.string(), pa.float64()
    names = [("id", text), ("path", text), ("speaker", text), ("layer", text), ("start_s", real), ("end_s", real)]
    return pa.schema([*names, ("embedding", pa.list_(pa.float32(), dim))])


def make_table(utterance: Utterance, arrays: Sequence[FloatArray], embedder: Embedder) -> pa.Table:
    """Make the rows of one utterance: layer by layer, and frame by frame for `frames`."""
    begin = utterance.offset / utterance.sample_rate
    parts = []
    for name, array in zip(embedder.choice.names, arrays, strict=True):
        starts, ends = np.array([begin]), np.array([begin + utterance.duration_s])
        if embedder.pooling == "frames":
            field, hop = find_grid(embedder.model.config, embedder.choice.is_output)
            starts = begin + hop / SAMPLE_RATE * np.arange(len(array))
            ends = starts + field / SAMPLE_RATE
        count, path = len(array), str(utterance.path) if utterance.path.name else None
        columns = [[utterance.id] * count, [path] * count, [utterance.speaker] * count, [name] * count]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        parts.append(pa.table([*columns, starts, ends, vectors], schema=make_schema(array.shape[1])))
    return pa.concat_tables(parts)


def iterate_tables(embedder: Embedder, source: Source) -> Iterator[pa.Table]:
    """Yield the rows of each utterance, in order, without those that are left out.

    Raises:
        DataError: one cannot be used, and the source leaves none out; or none can.
    """
    num_used = 0
    for index, arrays in embedder.iterate(source):
        yield make_table(source[index], arrays, embedder)
        num_used += 1
    if source.left_out is not None:
        source.left_out.require_others(num_used)


def embed(
    model: AnyModel,
    audio: Audio,
    *,
    layer: Any = "last",
    pooling: str = "mean",
    sample_rate: int | None = None,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
) -> pa.Table:
    """Embed audio: `speechssl.embed`.

    Args:
        model: on whatever device; it works in evaluation mode.
        audio: what the key `audio` takes (files, folders, globs, a manifest), or waveforms in [-1, 1].
        layer: 0 to L, a list, `all`, `mean`, `last`, or a probe's folder.
        pooling: `mean`, `max`, `statistics` or `frames`.
        sample_rate: of waveforms, in Hz.
        batch_s, window_s, precision: as the keys of the verb.

    Returns:
        A table with the columns id, path, speaker, layer, start_s, end_s, embedding (fixed-size float32 list). Frame
        k starts at k / model.frame_rate seconds and sees 0.025 s of waveform directly.

    Raises:
        ConfigError: `layer` or `pooling` is not one that there is.
        DataError: nothing matches, a file is no audio, or waveforms come without their sample rate.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"`pooling` must be one of {', '.join(POOLINGS)}, but is {pooling!r}")
    embedder = Embedder(model, choose_layers(layer, model.num_layers), pooling, batch_s, window_s, precision)
    return pa.concat_tables(iterate_tables(embedder, find_source(audio, sample_rate)))
