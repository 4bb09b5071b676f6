"""Embeddings on disk: Parquet, NumPy with an index, or safetensors with an index, published when they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from pyarrow import csv

from speechssl.errors import ConfigError
from speechssl.evaluation.embeddings import make_schema

SUFFIXES = (".parquet", ".npy", ".safetensors")


def check_suffix(path: Path) -> None:
    """Make sure that a file's suffix says how it is written.

    Raises:
        ConfigError: another suffix.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"`out` must end in {', '.join(SUFFIXES)}, but is {path}")


def write_embeddings(path: Path, tables: Iterable[pa.Table], num_rows: int, dim: int) -> None:
    """Write tables of embeddings as they come; the file has its name once it is whole.

    Args:
        path: `.parquet` has all columns; `.npy` is (rows, dim) float32 and `.safetensors` the same as the tensor
            `embeddings`, both with the other columns in `<name>.tsv` beside them.
        tables: rows as `evaluation.embeddings` makes them.
        num_rows: of all tables together.
        dim: of one embedding.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    if path.suffix == ".parquet":
        with pq.ParquetWriter(scratch, make_schema(dim)) as writer:
            for table in tables:
                writer.write_table(table)
    else:
        _write_array(path, scratch, tables, (num_rows, dim))
    scratch.replace(path)


def _write_array(path: Path, scratch: Path, tables: Iterable[pa.Table], shape: tuple[int, int]) -> None:
    """Write the array row by row, so that memory does not grow with the corpus, and the index beside it."""
    array = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float32, shape=shape)
    index = path.with_suffix(".tsv")
    index_scratch = index.with_name(f".{index.name}.{os.getpid()}.part")
    schema = make_schema(shape[1]).remove(6)
    done = 0
    options = csv.WriteOptions(delimiter="\t", quoting_style="needed")
    with csv.CSVWriter(index_scratch, schema, write_options=options) as writer:
        for table in tables:
            vectors = table.column("embedding").combine_chunks()
            array[done : done + table.num_rows] = vectors.flatten().to_numpy().reshape(table.num_rows, -1)
            done += table.num_rows
            writer.write(table.drop_columns(["embedding"]))
    assert done == shape[0], f"{done} rows came, {shape[0]} were announced"
    array.flush()
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file({"embeddings": np.asarray(array)}, f"{scratch}.st")
        os.replace(f"{scratch}.st", scratch)
    index_scratch.replace(index)
