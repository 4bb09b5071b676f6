"""Audio to embeddings: layers, pooling, audio of any length, rows in the order of the manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from speechssl.audio import SAMPLE_RATE
from speechssl.data.manifest import Manifest, Utterance
from speechssl.errors import ConfigError, DataError
from speechssl.evaluation.recognition import (
    Audio,
    Source,
    cut_chunks,
    find_source,
    needs_equal_lengths,
    plan_batches,
    read_ahead,
    stack_waveforms,
)
from speechssl.evaluation.windows import plan_windows
from speechssl.model.lengths import HOP_SAMPLES, compute_num_frames, compute_receptive_field
from speechssl.model.speech_model import Frames, SpeechModel

FloatArray = npt.NDArray[np.float32]

FRAME_S = HOP_SAMPLES / SAMPLE_RATE
CHUNK_BATCHES = 32
"""Utterances are sorted by length within so many batches' worth of audio, so that results keep coming in order."""

POOLINGS = ("mean", "max", "statistics", "frames")


@dataclass(frozen=True)
class LayerChoice:
    """Which tensors of a model are embeddings.

    Attributes:
        names: what the column `layer` says, one a tensor.
        pick: gives these tensors (B, T, D) of a model's frames.
    """

    names: tuple[str, ...]
    pick: Callable[[Frames], list[Tensor]]


def choose_layers(layer: Any, num_layers: int) -> LayerChoice:
    """Understand a value of the key `layer`.

    Args:
        layer: 0 to L, a list of these, `all`, `mean`, `last`, or a probe's folder (its learned mix), as text or path.
        num_layers: transformer blocks L of the model.

    Raises:
        ConfigError: it is none of these, or out of range.
    """
    layer = os.fspath(layer) if isinstance(layer, os.PathLike) else layer
    if layer == "last":
        return LayerChoice(("last",), lambda frames: [frames.last])
    if layer == "mean":
        return LayerChoice(("mean",), lambda frames: [torch.stack(frames.layers).mean(0)])
    if isinstance(layer, str) and (Path(layer) / "result.json").is_file():
        return _choose_mix(Path(layer), num_layers)
    numbers = range(num_layers + 1) if layer == "all" else layer if isinstance(layer, Sequence) else [layer]
    if isinstance(numbers, str) or not numbers or not all(isinstance(n, int) and 0 <= n <= num_layers for n in numbers):
        raise ConfigError(
            f"`layer` must be 0 to {num_layers}, a list of these, all, mean, last or a probe's folder, but is {layer!r}"
        )
    chosen = tuple(numbers)
    return LayerChoice(tuple(str(n) for n in chosen), lambda frames: [frames.layers[n] for n in chosen])


def _choose_mix(folder: Path, num_layers: int) -> LayerChoice:
    weights = json.loads((folder / "result.json").read_text(encoding="utf-8")).get("layer_weights")
    if not weights or len(weights) != num_layers + 1:
        count = len(weights) if weights else 0
        raise ConfigError(
            f"`layer` must be a probe of a model with {num_layers + 1} states, but {folder} mixes {count}"
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
    largest: Tensor | None = None
    pieces: list[FloatArray] = field(default_factory=list)

    def add(self, frames: Tensor) -> None:
        """Take in (T, D) frames."""
        if self.pooling == "frames":
            self.pieces.append(frames.float().cpu().numpy())
            return
        self.count += len(frames)
        if self.pooling == "max":
            peak = frames.max(0).values.double()
            self.largest = peak if self.largest is None else torch.maximum(self.largest, peak)
            return
        total = frames.sum(0, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        if self.pooling == "statistics":
            squares = frames.double().square().sum(0)
            self.squares = squares if self.squares is None else self.squares + squares

    def finish(self) -> FloatArray:
        """Give (1, D'), or (T, D) for `frames`: float32."""
        if self.pooling == "frames":
            return np.concatenate(self.pieces)
        if self.largest is not None:
            return self.largest.float().cpu().numpy()[None]
        assert self.total is not None, "no frames"
        mean = self.total / self.count
        if self.squares is not None:
            deviation = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
            mean = torch.cat([mean, deviation])
        return mean.float().cpu().numpy()[None]


@dataclass(frozen=True)
class Embedder:
    """How audio becomes embeddings.

    Attributes:
        model: on whatever device; it works in evaluation mode.
        choice: layers.
        pooling: of frames.
        batch_s: seconds of audio that a forward may hold; memory only.
        window_s: audio up to this long is one pass; beyond it the plan of overlapping windows.
        precision: `float32` or `bf16`.
    """

    model: SpeechModel
    choice: LayerChoice
    pooling: str = "mean"
    batch_s: float = 60.0
    window_s: float = 30.0
    precision: str = "float32"

    @property
    def dim(self) -> int:
        """Numbers in one embedding."""
        return self.model.dim * (2 if self.pooling == "statistics" else 1)

    @property
    def receptive_samples(self) -> int:
        """Samples that one frame sees."""
        return compute_receptive_field(self.model.config.frame_kernels, self.model.config.frame_strides)

    def count_rows(self, source: Source) -> int:
        """Count the rows that `iterate` will give for all utterances together."""
        config = self.model.config
        frames = compute_num_frames(np.asarray(source.lengths), config.frame_kernels, config.frame_strides)
        rows = int(frames.sum()) if self.pooling == "frames" else len(source.lengths)
        return rows * len(self.choice.names)

    def iterate(self, source: Source) -> Iterator[list[FloatArray]]:
        """Yield for each utterance, in order, one array (rows, dim) a layer.

        Raises:
            DataError: an utterance is shorter than one frame, or a file is damaged.
        """
        lengths = source.lengths
        self._check_long_enough(source)
        limit, window = int(self.batch_s * SAMPLE_RATE), round(self.window_s * SAMPLE_RATE)
        # Single frames of all layers are a thousand times as much as one vector, and are not kept for long.
        for chunk in cut_chunks(lengths, limit * (1 if self.pooling == "frames" else CHUNK_BATCHES)):
            made: dict[int, list[FloatArray]] = {}
            batches = plan_batches(chunk[lengths[chunk] <= window], lengths, limit, needs_equal_lengths(self.model))
            for batch, waveforms in read_ahead(source, batches):
                made |= zip(batch, self._embed_batch(waveforms), strict=True)
            for index in chunk[lengths[chunk] > window].tolist():
                made[index] = self._embed_long(source.read(index), window)
            yield from (made.pop(index) for index in chunk.tolist())

    def _check_long_enough(self, source: Source) -> None:
        shortest = self.receptive_samples
        short = np.flatnonzero(source.lengths < shortest)
        if len(short):
            names = ", ".join(source.ids[int(index)] for index in short[:5])
            raise DataError(
                f"`{source.key}` must be at least {shortest} samples at 16 kHz ({1000 * shortest / SAMPLE_RATE:g} ms), "
                f"but {len(short)} are shorter: {names}"
            )

    @torch.inference_mode()
    def _embed_batch(self, waveforms: Sequence[FloatArray]) -> list[list[FloatArray]]:
        tensors, num_frames = self._run(waveforms)
        rows = []
        for row, count in enumerate(num_frames):
            pools = [Pool(self.pooling) for _ in tensors]
            for pool, tensor in zip(pools, tensors, strict=True):
                pool.add(tensor[row, :count])
            rows.append([pool.finish() for pool in pools])
        return rows

    @torch.inference_mode()
    def _embed_long(self, waveform: FloatArray, window_samples: int) -> list[FloatArray]:
        """Embed audio longer than a window: each frame from the window that the plan takes it from."""
        pools = [Pool(self.pooling) for _ in self.choice.names]
        for window in plan_windows(len(waveform), window_samples, self.receptive_samples):
            tensors, _ = self._run([waveform[window.start : window.start + window.num_samples]])
            for pool, tensor in zip(pools, tensors, strict=True):
                pool.add(tensor[0, window.first : window.last])
        return [pool.finish() for pool in pools]

    def _run(self, waveforms: Sequence[FloatArray]) -> tuple[list[Tensor], list[int]]:
        """Run the model over a batch: the chosen tensors (B, T, D) and the valid frames of each row."""
        batch, num_samples = stack_waveforms(self.model, waveforms)
        was_training = self.model.training
        with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            frames: Frames = self.model.eval()(batch, num_samples)
        self.model.train(was_training)
        return self.choice.pick(frames), frames.num_frames.tolist()


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
            starts = begin + FRAME_S * np.arange(len(array))
            ends = starts + embedder.receptive_samples / SAMPLE_RATE
        count, path = len(array), str(utterance.path) if utterance.path.name else None
        columns = [[utterance.id] * count, [path] * count, [utterance.speaker] * count, [name] * count]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        parts.append(pa.table([*columns, starts, ends, vectors], schema=make_schema(array.shape[1])))
    return pa.concat_tables(parts)


def iterate_tables(embedder: Embedder, manifest: Manifest) -> Iterator[pa.Table]:
    """Yield the rows of each utterance of a manifest, in its order."""
    for index, arrays in enumerate(embedder.iterate(Source.from_manifest(manifest))):
        yield make_table(manifest[index], arrays, embedder)


def embed(
    model: SpeechModel,
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
        k starts at 0.020·k seconds and sees 0.025 s of waveform directly.

    Raises:
        ConfigError: `layer` or `pooling` is not one that there is.
        DataError: nothing matches, a file is no audio, or waveforms come without their sample rate.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"`pooling` must be one of {', '.join(POOLINGS)}, but is {pooling!r}")
    embedder = Embedder(model, choose_layers(layer, model.num_layers), pooling, batch_s, window_s, precision)
    source, manifest = find_source(audio, sample_rate)
    if manifest is None:
        return pa.concat_tables(_embed_arrays(embedder, source))
    return pa.concat_tables(iterate_tables(embedder, manifest))


def _embed_arrays(embedder: Embedder, source: Source) -> Iterator[pa.Table]:
    """Yield the rows of each waveform in memory, which has no path."""
    for index, made in enumerate(embedder.iterate(source)):
        utterance = Utterance(source.ids[index], Path(), SAMPLE_RATE, int(source.lengths[index]))
        yield make_table(utterance, made, embedder)
