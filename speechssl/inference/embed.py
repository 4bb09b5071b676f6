"""Audio to a table of embeddings: a row an utterance, a segment or a frame, in their order, and of each its layers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.data.manifest import Utterance
from speechssl.data.segments import Segments, read_segments
from speechssl.errors import ConfigError, DataError
from speechssl.inference.batches import CHUNK_BATCHES, find_grid, stream_model
from speechssl.inference.embedder import POOLINGS
from speechssl.inference.embedder import Embedder as Embedder
from speechssl.inference.embedder import choose_layers as choose_layers
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.pooling import find_frames, normalise_rows, pool_segments
from speechssl.inference.source import Audio, FloatArray, IntArray, Source, find_source

NORMS = ("", "l2")
DTYPES = ("float32", "float16")

MAX_FLOAT16 = 65504.0
"""Largest number that float16 has."""

OVERHANG_S = 0.1
"""How far a segment may end behind its utterance: alignments are in steps of a frame, and other tools pad."""


def make_schema(dim: int, dtype: str = "float32", has_label: bool = False) -> pa.Schema:
    """The columns of a table of embeddings."""
    text, real = pa.string(), pa.float64()
    names = [("id", text), ("path", text), ("speaker", text), ("layer", text), ("start_s", real), ("end_s", real)]
    number = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema([*names, *([("label", text)] if has_label else []), ("embedding", pa.list_(number, dim))])


@dataclass
class Rows:
    """What becomes rows, and how.

    Attributes:
        embedder: layers and pooling.
        source: the utterances.
        segments: of them, a row each (`frames`: a row for each frame of one); None: an utterance is one.
        normalise: `l2` or empty.
        dtype: `float32` or `float16`.
        begun: utterance → rows that the caller has of it already.
    """

    embedder: Embedder
    source: Source
    segments: Segments | None = None
    normalise: str = ""
    dtype: str = "float32"
    begun: dict[int, int] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        """Of the tables."""
        return make_schema(self.embedder.dim, self.dtype, self.segments is not None)

    def count(self, index: int) -> int:
        """Count the rows of utterance k."""
        layers = len(self.embedder.choice.names)
        if self.segments is None:
            return layers * (self._count_frames(index) if self.embedder.pooling == "frames" else 1)
        return layers * int(self._count_of_segments(self._find_bounds(index)).sum())

    def iterate(self, done: frozenset[int] = frozenset(), description: str = "embed") -> Iterator[pa.Table]:
        """Yield rows in the order of the utterances and of time, without those that the caller has.

        Memory does not grow with the length of a file. One in which damage is come to late is left out when some of
        its rows have been given.

        Args:
            done: utterances of which the caller has all rows; those that `begun` names beside them need not be here.

        Raises:
            DataError: an utterance cannot be used, or has no segment, and the source leaves none out.
        """
        embedder, source = self.embedder, self.source
        source.leave_out_short(embedder.model.config.output_field)
        unusable = self._leave_out_by_segments(done)
        layers, firsts = len(embedder.choice.names), {}
        for index, rows in self.begun.items():
            whole = self.segments is None and embedder.pooling != "frames"
            firsts[index] = 0 if whole else self._find_first_frame(index, rows // layers)
        for _, table in stream_model(
            embedder.model, source, embedder.forward, self._split,
            batch_s=embedder.batch_s, window_s=embedder.window_s, description=description,
            # Single frames, and vectors of segments, are many times as much as one vector: not held for long.
            chunk_batches=CHUNK_BATCHES if self.segments is None and embedder.pooling != "frames" else 1,
            is_output=embedder.choice.is_output, done=done | unusable, first_frames=firsts,
        ):  # fmt: skip
            yield table

    @property
    def _grid(self) -> tuple[int, int]:
        return find_grid(self.embedder.model.config, self.embedder.choice.is_output)

    def _count_frames(self, index: int) -> int:
        config, length = self.embedder.model.config, int(self.source.lengths[index])
        return config.count_outputs(length) if self.embedder.choice.is_output else config.count_frames(length)

    def _find_bounds(self, index: int) -> IntArray:
        assert self.segments is not None
        times, _ = self.segments.find(self.source.ids[index])
        return find_frames(times, self._count_frames(index), self._grid)

    def _count_of_segments(self, bounds: IntArray) -> IntArray:
        """Count the rows of each segment, of one layer."""
        is_frames = self.embedder.pooling == "frames"
        counts: IntArray = bounds[:, 1] - bounds[:, 0] if is_frames else np.ones(len(bounds), dtype=np.int64)
        return counts

    def _find_first_frame(self, index: int, rows: int) -> int:
        """Find the first frame that is needed where some rows of one layer are there."""
        if self.segments is None:
            return rows
        bounds = self._find_bounds(index)
        number = int(np.searchsorted(np.cumsum(self._count_of_segments(bounds)), rows, side="right"))
        return int(bounds[number, 0]) if number < len(bounds) else self._count_frames(index)

    def _leave_out_by_segments(self, done: frozenset[int]) -> frozenset[int]:
        """Leave out utterances that have no segment, or one that lies behind their end.

        Raises:
            DataError: no segment is of any utterance.
        """
        if self.segments is None:
            return frozenset()
        has, lengths, bad = self.segments, self.source.lengths, set()
        if not set(has.ids) & set(self.source.ids):
            raise DataError(
                f"`segments` must be of the utterances in `audio`, such as {self.source.ids[0]}, but {has.source} has "
                f"none of them: {next(iter(has.ids))} is its first"
            )
        for index, name in enumerate(self.source.ids):
            times, _ = has.find(name)
            duration_s = lengths[index] / SAMPLE_RATE
            last_s, latest_s = times.max(initial=0.0), times[:, :1].max(initial=0.0)
            if not len(times):
                self.source.leave_out(index, f"`segments` must have some of {name}, but {has.source} has none")
            elif last_s > duration_s + OVERHANG_S or latest_s >= duration_s:
                self.source.leave_out(
                    index,
                    f"`segments` must lie within {name}, which lasts {duration_s:.2f} s, but one in {has.source} goes "
                    f"from {times[times[:, 1].argmax(), 0]:g} to {last_s:g} s",
                )
            else:
                continue
            bad.add(index)
        return frozenset(bad) - done

    def _split(self, index: int, at: int, pieces: Iterator[list[Tensor]]) -> Iterator[pa.Table]:
        """Make the tables of one utterance, of whole rows that the caller does not have."""
        embedder, row = self.embedder, self.source[index]
        begun = self.begun.get(index, 0) // len(embedder.choice.names)
        if self.segments is not None:
            yield from self._split_segments(index, at, pieces, begun)
        elif embedder.pooling != "frames":
            yield self._make_table(row, embedder.pool(pieces), [0.0], [row.duration_s])
        else:
            for piece in pieces:
                first, at = max(at, begun), at + len(piece[0])
                if first < at:
                    arrays = [frames[first - at :].float().cpu().numpy() for frames in piece]
                    yield self._make_table(row, arrays, *self._time_frames(first, len(arrays[0])))

    def _split_segments(self, index: int, at: int, pieces: Iterator[list[Tensor]], begun: int) -> Iterator[pa.Table]:
        assert self.segments is not None
        times, labels = self.segments.find(self.source.ids[index])
        bounds = self._find_bounds(index)
        first = int(np.searchsorted(np.cumsum(self._count_of_segments(bounds)), begun, side="right"))
        row, is_frames = self.source[index], self.embedder.pooling == "frames"
        for number, arrays in enumerate(pool_segments(pieces, at, bounds[first:], self.embedder.pooling), first):
            count = len(arrays[0])
            starts, ends = self._time_frames(int(bounds[number, 0]), count) if is_frames else times[number, :, None]
            yield self._make_table(row, arrays, starts, ends, [labels[number]] * count)

    def _time_frames(self, first: int, count: int) -> tuple[Any, Any]:
        """Give the start and end of frames, s from the beginning of the utterance."""
        seen, hop = self._grid
        starts = hop / SAMPLE_RATE * np.arange(first, first + count)
        return starts, starts + seen / SAMPLE_RATE

    def _make_table(
        self, row: Utterance, arrays: Sequence[FloatArray], starts: Any, ends: Any, labels: Sequence[str | None] = ()
    ) -> pa.Table:
        """Make the rows of a stretch: in time, and of each time its layers."""
        names, count = self.embedder.choice.names, len(arrays[0])
        vectors = np.stack(arrays, axis=1).reshape(count * len(names), -1)
        vectors = normalise_rows(vectors) if self.normalise else vectors
        begin, size = row.offset / row.sample_rate, len(vectors)
        path = str(row.path) if row.path.name else None
        columns: list[Any] = [[row.id] * size, [path] * size, [row.speaker] * size, [*names] * count]
        columns += [begin + np.repeat(np.asarray(times), len(names)) for times in (starts, ends)]
        columns += [[label for label in labels for _ in names]] if self.segments is not None else []
        if self.dtype == "float16" and (peak := float(np.abs(vectors).max())) > MAX_FLOAT16:
            raise ConfigError(
                f"`dtype` must be float32 for numbers beyond {MAX_FLOAT16:.0f}, but {row.id} has {peak:g}"
            )
        numbers = pa.array(vectors.astype(self.dtype).ravel())
        return pa.table([*columns, pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])], schema=self.schema)


def embed(
    model: AnyModel,
    audio: Audio,
    *,
    layer: Any = "last",
    pooling: str = "mean",
    sample_rate: int | None = None,
    segments: str | os.PathLike[str] = "",
    tier: str = "",
    normalise: str = "",
    dtype: str = "float32",
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
        segments, tier, normalise, dtype: as the keys of the verb.
        batch_s, window_s, precision: as the keys of the verb.

    Returns:
        A table with the columns id, path, speaker, layer, start_s, end_s, with `segments` label, and embedding
        (fixed-size list of float32). Frame k starts at k / model.frame_rate seconds and sees 0.025 s of waveform
        directly.

    Raises:
        ConfigError: `layer` or `pooling` is not one that there is.
        DataError: nothing matches, a file is no audio, or waveforms come without their sample rate.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"`pooling` must be one of {', '.join(POOLINGS)}, but is {pooling!r}")
    for key, value, choices in (("normalise", normalise, NORMS), ("dtype", dtype, DTYPES)):
        if value not in choices:
            raise ConfigError(f"`{key}` must be one of {', '.join(filter(None, choices))}, but is {value!r}")
    embedder = Embedder(model, choose_layers(layer, model.num_layers), pooling, batch_s, window_s, precision)
    found = read_segments(os.fspath(segments), tier) if segments else None
    rows = Rows(embedder, find_source(audio, sample_rate), found, normalise, dtype)
    return pa.concat_tables([rows.schema.empty_table(), *rows.iterate()])
