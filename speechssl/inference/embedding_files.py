"""Embeddings on disk: Parquet, NumPy with an index, or safetensors with an index, published when they are whole."""

from __future__ import annotations

import json
import logging
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechssl.errors import ConfigError
from speechssl.inference.embed import make_schema
from speechssl.printable import escape_field, make_printable

SUFFIXES = (".parquet", ".npy", ".safetensors")

FACTS = "speechssl"
"""The one entry of the metadata, JSON: checkpoint, layer, pooling, weights and window_s that rows were made with."""

HEADER_BYTES = 192
"""Of an array's file, a multiple of 64: room for the longest shape, and numbers that are aligned."""

_logger = logging.getLogger("speechssl")


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


def write_embeddings(path: Path, tables: Iterable[pa.Table], dim: int, facts: Mapping[str, Any] | None = None) -> int:
    """Write tables of embeddings as they come; the file has its name once it is whole.

    What is written when something breaks it off is kept as `.<name>.part`, whole as far as it goes, and logged.

    Args:
        path: `.parquet` has all columns; `.npy` is (rows, dim) float32 and `.safetensors` the same as the tensor
            `embeddings`, both with the other columns in `<name>.index.tsv` beside them, row for row.
        tables: rows as `iterate_tables` makes them.
        dim: of one embedding.
        facts: how they are made, for the metadata of Parquet.

    Returns:
        the rows that were written.
    """
    # A folder of its own, so that whatever was begun goes with it, however the writing ends.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        written: list[int] = []
        is_whole = False
        try:
            _write_tables(scratch, tables, dim, written, facts or {})
            is_whole = True
        finally:
            _publish(scratch, path, sum(written), is_whole)
    return sum(written)


def _write_tables(
    path: Path, tables: Iterable[pa.Table], dim: int, written: list[int], facts: Mapping[str, Any]
) -> None:
    """Write tables to a file; `written` gets the rows of each that is."""
    with _open_writer(path, dim, facts) as write:
        for table in tables:
            write(table)
            written.append(table.num_rows)


def _publish(scratch: Path, path: Path, rows: int, is_whole: bool) -> None:
    """Give the files their names, or those of a part; a part of nothing is none. An earlier part goes."""
    parts = {name: name.with_name(f".{name.name}.part") for name in (path, name_index(path))}
    for name, part in parts.items():
        part.unlink(missing_ok=True)
        begun = scratch.with_name(name.name)
        # Not <name>.tsv for the index, which may well be the manifest that the audio came from.
        if begun.exists() and (is_whole or rows):
            begun.replace(name if is_whole else part)
    if rows and not is_whole:
        _logger.warning("broken off: the first %d rows are in %s", rows, parts[path])


def name_index(path: Path) -> Path:
    """Name the index that lies beside an array."""
    return path.with_suffix(".index.tsv")


@contextmanager
def _open_writer(path: Path, dim: int, facts: Mapping[str, Any]) -> Iterator[Callable[[pa.Table], object]]:
    """Give the function that writes a table; the file is whole when this is left, however that happens."""
    if path.suffix == ".parquet":
        schema = make_schema(dim).with_metadata(
            {FACTS: json.dumps(facts, ensure_ascii=False, default=str)} if facts else None
        )
        with pq.ParquetWriter(path, schema) as writer:
            yield writer.write_table
        return
    rows = 0
    with path.open("wb") as array, name_index(path).open("w", encoding="utf-8") as index:
        array.write(bytes(HEADER_BYTES))
        index.write("\t".join(make_schema(dim).names[:-1]) + "\n")

        def write(table: pa.Table) -> None:
            nonlocal rows
            vectors = table.column("embedding").combine_chunks()
            array.write(vectors.flatten().to_numpy().astype("<f4").tobytes())
            columns = [column.to_pylist() for column in table.columns[:-1]]
            index.writelines("\t".join(map(_format, row)) + "\n" for row in zip(*columns, strict=True))
            rows += table.num_rows

        try:
            yield write
        finally:
            array.truncate(HEADER_BYTES + 4 * rows * dim)
            array.seek(0)
            array.write(_format_header(path.suffix, rows, dim))


def _format_header(suffix: str, rows: int, dim: int) -> bytes:
    """Write what stands before the numbers; always as long, so that it can be written last, when the rows are known."""
    if suffix == ".npy":
        # Version 1.0 of NumPy's format: its name, the length of the description, and the description.
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", HEADER_BYTES - 10) + f"{text:{HEADER_BYTES - 11}}\n".encode()
    entry = {"dtype": "F32", "shape": [rows, dim], "data_offsets": [0, 4 * rows * dim]}
    text = json.dumps({"embeddings": entry}, separators=(",", ":"))
    return struct.pack("<Q", HEADER_BYTES - 8) + f"{text:{HEADER_BYTES - 8}}".encode()


def _format(value: str | float | None) -> str:
    """Write a field of the index as manifests do; seconds to the microsecond."""
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return "" if value is None else make_printable(escape_field(value))
