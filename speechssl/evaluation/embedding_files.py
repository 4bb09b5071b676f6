"""Embeddings on disk: Parquet, NumPy with an index, or safetensors with an index, published when they are whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from speechssl.errors import ConfigError
from speechssl.evaluation.breakdown import escape_field
from speechssl.evaluation.embeddings import make_schema

SUFFIXES = (".parquet", ".npy", ".safetensors")


def check_place(path: Path, overwrite: bool) -> None:
    """Make sure that a file's suffix says how it is written, and that the index beside it would be its own.

    Raises:
        ConfigError: another suffix, or an index that belongs to another array, or to none and `overwrite` is false.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"`out` must end in {', '.join(SUFFIXES)}, but is {path}")
    index = name_index(path)
    if path.suffix == ".parquet" or not index.exists() or path.exists():
        return
    others = [other for suffix in SUFFIXES if suffix != ".parquet" and (other := path.with_suffix(suffix)) != path]
    owner = next((other for other in others if other.exists()), None)
    if owner is not None:
        raise ConfigError(f"`out` must have a name of its own, but {index} is the index of {owner}")
    if not overwrite:
        raise ConfigError(f"`out` must be a new place, but {index} is there (overwrite=true replaces it)")


def write_embeddings(path: Path, tables: Iterable[pa.Table], num_rows: int, dim: int) -> None:
    """Write tables of embeddings as they come; the file has its name once it is whole.

    Args:
        path: `.parquet` has all columns; `.npy` is (rows, dim) float32 and `.safetensors` the same as the tensor
            `embeddings`, both with the other columns in `<name>.index.tsv` beside them, row for row.
        tables: rows as `evaluation.embeddings` makes them.
        num_rows: of all tables together.
        dim: of one embedding.
    """
    # A folder of its own, so that whatever was begun goes with it, however the writing ends.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        if path.suffix == ".parquet":
            _write_parquet(scratch, tables, dim)
        else:
            _write_array(scratch, tables, (num_rows, dim))
            # Not <name>.tsv, which may well be the manifest that the audio came from.
            name_index(scratch).replace(name_index(path))
        scratch.replace(path)


def name_index(path: Path) -> Path:
    """Name the index that lies beside an array."""
    return path.with_suffix(".index.tsv")


def _write_parquet(path: Path, tables: Iterable[pa.Table], dim: int) -> None:
    with pq.ParquetWriter(path, make_schema(dim)) as writer:
        for table in tables:
            writer.write_table(table)


def _write_array(path: Path, tables: Iterable[pa.Table], shape: tuple[int, int]) -> None:
    """Write the array row by row, so that memory does not grow with the corpus, and the index beside it."""
    plain = path.with_suffix(".npy")
    array = np.lib.format.open_memmap(plain, mode="w+", dtype=np.float32, shape=shape)
    with plain.open("r+b") as file:
        # A disk that is full when a page of the map is written kills the process; asked for all at once it says so.
        os.posix_fallocate(file.fileno(), 0, max(os.fstat(file.fileno()).st_size, 1))
    done = 0
    with name_index(path).open("w", encoding="utf-8") as index:
        index.write("\t".join(make_schema(shape[1]).names[:-1]) + "\n")
        for table in tables:
            vectors = table.column("embedding").combine_chunks()
            array[done : done + table.num_rows] = vectors.flatten().to_numpy().reshape(table.num_rows, -1)
            done += table.num_rows
            columns = [column.to_pylist() for column in table.columns[:-1]]
            index.writelines("\t".join(map(_format, row)) + "\n" for row in zip(*columns, strict=True))
    assert done == shape[0], f"{done} rows came, {shape[0]} were announced"
    array.flush()
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file({"embeddings": np.asarray(array)}, path)


def _format(value: str | float | None) -> str:
    """Write a field of the index as manifests do; seconds to the microsecond."""
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return "" if value is None else escape_field(value)
