"""Embeddings from disk, as `embed` wrote them: vectors, what each row is, and how they were made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv
from safetensors import safe_open

from speechssl.checkpoints.checks import check_header
from speechssl.config.model import MAX_WIDTH
from speechssl.data.manifest_reading import FREE_BYTES, MAX_GROWTH, MAX_LINE, unescape
from speechssl.inference.embed import make_schema
from speechssl.inference.embedding_files import SUFFIXES, name_index
from speechssl.parsing import open_regular, parse_json, parsing

FloatArray = npt.NDArray[np.float32]

FACTS = "speechssl"
"""The entry of a Parquet file's metadata that says, as JSON, how its rows were made."""

NEEDED = ("id", "layer")
COLUMNS = pa.schema(list(make_schema(1, has_label=True))[:-1])


@dataclass(frozen=True)
class Embeddings:
    """A file of embeddings.

    Attributes:
        rows: id, path, speaker, layer, start_s and end_s of each; and label, where they are segments.
        vectors: (N, D) float32, or float16 where the file has that.
        facts: checkpoint, weights, language, pooling, window_s, channel and mix that they were made with; empty where
            the file says nothing of it.
    """

    rows: pa.Table
    vectors: FloatArray
    facts: dict[str, Any]

    def select_layer(self, layer: str) -> Embeddings:
        """Take the rows of one layer."""
        chosen = np.flatnonzero(pc.fill_null(pc.equal(self.rows.column("layer"), layer), False).to_numpy())
        return self if len(chosen) == len(self.vectors) else Embeddings(
            self.rows.take(chosen), self.vectors[chosen], self.facts
        )  # fmt: skip


def read_embeddings(file: str, key: str = "embeddings") -> Embeddings:
    """Read a file that `embed` wrote: `.parquet`, or `.npy` or `.safetensors` with the index beside it.

    Raises:
        DataError: it is missing, damaged, or no such file.
    """
    path = Path(file)
    with parsing(f"`{key}`", f"a file of embeddings ({', '.join(SUFFIXES)}) that `speechssl embed` wrote", where=file):
        if path.suffix not in SUFFIXES:
            raise ValueError(f"it ends in {path.suffix or 'no suffix'}")
        open_regular(path).close()
        rows, vectors, stored = _read_parquet(path) if path.suffix == ".parquet" else _read_array(path)
        facts = _check_facts(parse_json(stored.encode()) if stored else {})
        if vectors.ndim != 2 or not 1 <= vectors.shape[1] <= MAX_WIDTH or vectors.dtype.kind != "f":
            raise ValueError(f"its embeddings are {vectors.dtype} of the shape {vectors.shape}")
        if not len(vectors) or rows.num_rows != len(vectors):
            raise ValueError(f"it has {len(vectors)} vectors, and its index {rows.num_rows} rows")
        missing = [name for name in NEEDED if name not in rows.column_names]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        fields = [field for field in COLUMNS if field.name in rows.column_names or field.name != "label"]
        columns = [
            pc.cast(rows.column(field.name), field.type) if field.name in rows.column_names
            else pa.nulls(rows.num_rows, field.type) for field in fields
        ]  # fmt: skip
        table = pa.table(columns, schema=pa.schema(fields))
        table.validate(full=True)
        if any(table.column(name).null_count for name in NEEDED):
            raise ValueError("a row has no id or no layer")
    return Embeddings(table, vectors, facts)


def _check_facts(stored: dict[str, Any]) -> dict[str, Any]:
    """Give what is said of rows on one level, and make sure that it is what `embed` says."""
    settings = stored.get("settings", {})
    facts = {**stored, **(settings if isinstance(settings, dict) else {})}
    texts = [facts.get(name, "") for name in ("checkpoint", "weights", "language", "pooling", "mix")]
    window_s, channel = facts.get("window_s", 30), facts.get("channel", 0)
    are_right = all(isinstance(text, str) for text in texts) and type(window_s) in (int, float) and window_s >= 5
    if not are_right or type(channel) is not int or channel < 0:
        raise ValueError("its metadata are not those of embed")
    return facts


def _read_parquet(path: Path) -> tuple[pa.Table, FloatArray, str]:
    """Read batch by batch into one array, so that vectors are in memory once."""
    with open_regular(path) as source:
        size = os.fstat(source.fileno()).st_size
        parquet = pq.ParquetFile(source)
        schema, count = parquet.schema_arrow, parquet.metadata.num_rows
        kind = schema.field("embedding").type
        if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
            raise ValueError(f"its column embedding holds {kind}")
        dtype = np.float16 if pa.types.is_float16(kind.value_type) else np.float32
        if count * (kind.list_size * 4 + 1) > max(FREE_BYTES, MAX_GROWTH * size):
            raise ValueError(f"it announces {count} vectors of {kind.list_size} numbers in {size} bytes")
        vectors = np.empty((count, kind.list_size), dtype=dtype)
        names = [name for name in schema.names if name in COLUMNS.names]
        parts, first, taken = [], 0, 0
        for batch in parquet.iter_batches(2**12, columns=[*names, "embedding"]):
            column = batch.column("embedding")
            if column.null_count:
                raise ValueError("a row has no embedding")
            last = first + batch.num_rows
            vectors[first:last] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
            parts.append(batch.select(names))
            first, taken = last, taken + parts[-1].nbytes
            if taken > max(FREE_BYTES, MAX_GROWTH * size):
                raise ValueError(f"{size} bytes of it take more than {taken} in memory")
        rows = pa.Table.from_batches(parts, pa.schema([schema.field(name) for name in names]))
        return rows, vectors[:first], (schema.metadata or {}).get(FACTS.encode(), b"").decode()


def _read_array(path: Path) -> tuple[pa.Table, FloatArray, str]:
    stored = ""
    if path.suffix == ".npy":
        # Mapped, not read: a damaged header cannot ask for more than the file has.
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        check_header(path)
        with safe_open(path, framework="np") as file:
            vectors, stored = file.get_tensor("embeddings"), (file.metadata() or {}).get(FACTS, "")
    index = name_index(path)
    with open_regular(index) as source:
        block = max(2**20, min(os.fstat(source.fileno()).st_size, MAX_LINE))
        table = csv.read_csv(
            source,
            csv.ReadOptions(block_size=block),
            csv.ParseOptions(delimiter="\t", quote_char=False, newlines_in_values=False),
            csv.ConvertOptions(
                column_types=dict.fromkeys(COLUMNS.names, pa.string()), strings_can_be_null=True, null_values=[""]
            ),
        )
    names = [name for name in table.column_names if name in COLUMNS.names]
    return pa.table({name: unescape(table.column(name)) for name in names}), vectors, stored
