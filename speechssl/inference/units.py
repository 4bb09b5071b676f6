"""Audio to discrete units: the nearest cluster of each frame's state, or the codes of a model's quantizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.checkpoints.clusters import Clusters, FloatArray, IntArray, find_nearest
from speechssl.data.manifest import Manifest, Utterance
from speechssl.errors import DataError
from speechssl.inference.batches import CHUNK_BATCHES, run_model
from speechssl.inference.embed import Embedder
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.source import Source
from speechssl.model.speech_model import SpeechModel
from speechssl.printable import escape_field, make_printable
from speechssl.seeds import make_rng

SUFFIXES = (".tsv", ".parquet", ".txt")

ROWS_AT_ONCE = 1000
"""Utterances in a row group of Parquet: one each would make the file's own index longer than the units."""


class Row(NamedTuple):
    """One utterance: (n, G) int64 units, and where repeats are merged the (n,) frames that each lasts."""

    utterance: Utterance
    units: IntArray
    durations: IntArray | None


def choose_sample(manifest: Manifest, seconds: float, seed: int) -> Manifest:
    """Choose utterances by lot until they last `seconds`, in their order."""
    lengths = manifest.num_samples_16k
    order = make_rng(seed, "units").permutation(len(lengths))
    num_taken = int(np.searchsorted(np.cumsum(lengths[order]), seconds * SAMPLE_RATE)) + 1
    return manifest.select(np.sort(order[:num_taken]))


def collect_states(embedder: Embedder, source: Source, seconds: float) -> FloatArray:
    """Collect the states of one layer, (F, D): all of them, or of long files every n-th.

    Fewer frames are held than twice those of `seconds`, however long the files are.

    Raises:
        DataError: no utterance can be used.
    """
    config = embedder.model.config
    most = max(1, config.count_frames(int(seconds * SAMPLE_RATE)))
    step = max(1, int(config.count_frames(source.lengths).sum()) // most)
    source.leave_out_short(config.receptive_field)

    def reduce(pieces: Iterator[list[Tensor]]) -> FloatArray:
        kept, first = [], 0
        for (states,) in pieces:
            kept.append(states[-first % step :: step].float().cpu().numpy())
            first += len(states)
        return np.concatenate(kept)

    found = run_model(
        embedder.model, source, embedder.forward, reduce,
        batch_s=embedder.batch_s, window_s=embedder.window_s, chunk_batches=1, description="listening for k-means",
    )  # fmt: skip
    states = [part for _, part in found]
    if source.left_out is not None:
        source.left_out.require_others(len(states))
    return np.concatenate(states)


def find_units(embedder: Embedder, source: Source, clusters: Clusters | None) -> Iterator[tuple[int, IntArray]]:
    """Yield, in order, number and units (T, G) of each utterance that the source keeps.

    Args:
        embedder: with one layer.
        clusters: of that layer, G = 1; None takes the codes of the model's quantizer, one a codebook.

    Raises:
        CheckpointError: the model has no quantizer.
        DataError: no utterance can be used.
    """
    centroids = None if clusters is None else torch.from_numpy(clusters.centroids).to(embedder.model.device)

    def forward(model: AnyModel, waveforms: Tensor, num_samples: Tensor | None) -> tuple[list[Tensor], Tensor]:
        if centroids is None:
            assert isinstance(model, SpeechModel), "an export has no quantizer"
            codes, num_frames = model.codes(waveforms, num_samples)
            return [codes], num_frames
        (states,), num_frames = embedder.forward(model, waveforms, num_samples)
        return [find_nearest(states.flatten(0, 1), centroids).view(*states.shape[:2], 1)], num_frames

    def reduce(pieces: Iterator[list[Tensor]]) -> IntArray:
        return np.concatenate([codes.cpu().numpy() for (codes,) in pieces])

    source.leave_out_short(embedder.model.config.receptive_field)
    num_used = 0
    for found in run_model(
        embedder.model, source, forward, reduce,
        batch_s=embedder.batch_s, window_s=embedder.window_s, chunk_batches=CHUNK_BATCHES, description="units",
    ):  # fmt: skip
        yield found
        num_used += 1
    if source.left_out is not None:
        source.left_out.require_others(num_used)


def merge_repeats(units: IntArray) -> tuple[IntArray, IntArray]:
    """Tell once what comes several times in a row: (T, G) → (n, G), and the (n,) frames that each lasts."""
    is_new = np.ones(len(units), dtype=np.bool_)
    is_new[1:] = (units[1:] != units[:-1]).any(1)
    starts = np.flatnonzero(is_new)
    return units[starts], np.diff(starts, append=len(units))


class UnitWriter:
    """Writes a table of units as they come; its suffix says how.

    Args:
        path: `.tsv`, `.parquet`, or `.txt` with a line `id|3 3 7` each, as GSLM's tools take them.
        num_groups: G; the units of several codebooks are pairs (triples …), `3-7` in text.
        has_durations: whether rows have them; `.txt` has no place for them.
    """

    def __init__(self, path: Path, num_groups: int, has_durations: bool) -> None:
        number: pa.DataType = pa.int32()
        units = pa.list_(number if num_groups == 1 else pa.list_(number, num_groups))
        names = [("id", pa.string()), ("path", pa.string()), ("speaker", pa.string()), ("units", units)]
        self.schema = pa.schema([*names, ("durations", pa.list_(number))][: 4 + has_durations])
        self.suffix, self.rows = path.suffix, list[Row]()
        self.file = path.open("w", encoding="utf-8") if path.suffix != ".parquet" else None
        self.parquet = None if self.file else pq.ParquetWriter(path, self.schema)
        if self.file and path.suffix == ".tsv":
            self.file.write("\t".join(self.schema.names) + "\n")

    def write(self, row: Row) -> None:
        """Write a row, or keep it until there are some.

        Raises:
            DataError: its id cannot stand in front of a `|`.
        """
        if self.suffix == ".txt" and "|" in row.utterance.id:
            raise DataError(f"`audio` must have ids without | where `out` is a .txt, but one is {row.utterance.id}")
        self.rows.append(row)
        if len(self.rows) >= ROWS_AT_ONCE:
            self._write_rows()

    def close(self) -> None:
        """Write what was kept, and close the file."""
        self._write_rows()
        for file in (self.file, self.parquet):
            if file is not None:
                file.close()

    def _write_rows(self) -> None:
        if self.parquet is not None:
            self.parquet.write_table(self._make_table())
        elif self.file is not None:
            self.file.writelines(map(self._make_line, self.rows))
        self.rows.clear()

    def _make_table(self) -> pa.Table:
        columns: list[Sequence[object]] = [
            [row.utterance.id for row in self.rows],
            [str(row.utterance.path) for row in self.rows],
            [row.utterance.speaker for row in self.rows],
            [(row.units[:, 0] if row.units.shape[1] == 1 else row.units).tolist() for row in self.rows],
            [row.durations.tolist() for row in self.rows if row.durations is not None],
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self.schema, strict=False)]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _make_line(self, row: Row) -> str:
        units = " ".join("-".join(map(str, unit)) for unit in row.units.tolist())
        if self.suffix == ".txt":
            return f"{make_printable(row.utterance.id)}|{units}\n"
        names = (row.utterance.id, str(row.utterance.path), row.utterance.speaker or "")
        fields = [*(make_printable(escape_field(name)) for name in names), units]
        if row.durations is not None:
            fields.append(" ".join(map(str, row.durations.tolist())))
        return "\t".join(fields) + "\n"
