"""A manifest's file, which anybody may have written or a disk damaged → a table whose columns hold what they should."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from speechssl.audio.reading import MAX_SAMPLES
from speechssl.audio.waveform import MAX_RATE, MIN_RATE
from speechssl.errors import DataError
from speechssl.parsing import open_regular, shorten
from speechssl.printable import abbreviate

REQUIRED = ("id", "path", "sample_rate", "num_samples")
TEXTS = ("id", "path", "speaker", "text")
ROOT_LINE = "# root="
ROOT_KEY = b"root"

BOUNDS = {
    "sample_rate": (MIN_RATE, MAX_RATE),
    "num_samples": (1, MAX_SAMPLES),
    "offset": (0, MAX_SAMPLES),
    "channel": (0, 1024),
}
"""Least and greatest value of the columns that are counts: their sums and products then fit into 64 bits."""

COUNTS = tuple(BOUNDS)

MAX_COLUMNS = 1000

MAX_HEADER = 2**20
"""Longest header line of a table, in characters."""

MAX_LINE = 2**24
"""Longest line of a `.tsv` manifest, in bytes: a transcript of many days."""

MAX_NAMED = 300
"""An error lists at most this many characters of column names."""

MAX_GROWTH, FREE_BYTES = 100, 2**27
"""A Parquet file may take this many times its size on disk, or 128 MiB if that is more; beyond that it is a bomb."""

MAX_ROOT = 4096
"""Longest path of Linux, in characters."""


def read_columns(file: Path, key: str) -> tuple[pa.Table, str]:
    """Read the table of a manifest, its columns typed, and its root, empty where it names none.

    Args:
        file: `.tsv` with a header line, or `.parquet`.
        key: the key that errors name.

    Raises:
        DataError: it is damaged, lacks a needed column, holds other values than it should, or is empty.
    """
    table, root = _read_parquet(file, key) if file.suffix == ".parquet" else _read_tsv(file, key)
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        has = name_columns(table.column_names)
        raise DataError(f"`{key}` must have the columns {', '.join(REQUIRED)}, but {file} has {has}")
    if table.num_rows == 0:
        raise DataError(f"`{key}` must hold utterances, but {file} has no rows")
    if len(root) > MAX_ROOT:
        at_most = f"at most {MAX_ROOT} characters"
        raise DataError(f"`{key}` must have a root of {at_most}, but that of {file} has {len(root)}")
    return _type_columns(table, file, key), root


def name_columns(names: Iterable[str]) -> str:
    """List columns for a sentence, which ends somewhere though the list may not."""
    return abbreviate(", ".join(names), MAX_NAMED)


def _read_tsv(file: Path, key: str) -> tuple[pa.Table, str]:
    with io.TextIOWrapper(open_regular(file), encoding="utf-8-sig", errors="surrogateescape") as lines:
        first = lines.readline(MAX_HEADER).rstrip("\n")
        has_root = first.startswith(ROOT_LINE)
        header = lines.readline(MAX_HEADER).rstrip("\n") if has_root else first
    names = header.split("\t")
    if "path" not in names:
        raise DataError(f"`{key}` must be a manifest, but {file} has no header line with {', '.join(REQUIRED)}")
    _check_names(names, file, key)
    types, block = dict.fromkeys(names, pa.string()), max(2**20, min(file.stat().st_size, MAX_LINE))
    table = csv.read_csv(
        file,
        csv.ReadOptions(skip_rows=int(has_root), block_size=block),
        csv.ParseOptions(delimiter="\t", quote_char=False, newlines_in_values=False),
        csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
    )
    columns = {name: unescape(table.column(name)) for name in table.column_names}
    return pa.table(columns), first.removeprefix(ROOT_LINE) if has_root else ""


def unescape(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Undo `printable.escape_field` where a column has a backslash at all."""
    if not pc.any(pc.match_substring(column, "\\")).as_py():
        return column
    marked = pc.replace_substring(column, "\\\\", "\x00")
    for plain, escaped in (("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        marked = pc.replace_substring(marked, escaped, plain)
    return pc.replace_substring(marked, "\x00", "\\")


def _read_parquet(file: Path, key: str) -> tuple[pa.Table, str]:
    with open_regular(file) as source:
        size = os.fstat(source.fileno()).st_size
        parquet = pq.ParquetFile(source)
        if (rows := parquet.metadata.num_rows) > size:
            raise DataError(f"`{key}` must be a manifest, but {file} announces {rows} rows in {size} bytes")
        _check_names(parquet.schema_arrow.names, file, key)
        table = pa.Table.from_batches(_read_batches(parquet, size, file, key), parquet.schema_arrow)
    # Parquet's own reader does not look whether text is UTF-8.
    table.validate(full=True)
    return table, os.fsdecode((table.schema.metadata or {}).get(ROOT_KEY, b""))


def _read_batches(parquet: pq.ParquetFile, size: int, file: Path, key: str) -> Iterator[pa.RecordBatch]:
    """Read rows until they take more memory than a table of this size on disk can."""
    limit, taken = max(FREE_BYTES, MAX_GROWTH * size), 0
    # One long text that stands in every row takes few bytes on disk: a small file is read in small steps.
    for batch in parquet.iter_batches(min(2**16, max(2**6, size // 2**10))):
        taken += batch.nbytes
        if taken > limit:
            much = f"more than {limit} bytes of memory"
            raise DataError(f"`{key}` must be a manifest, but {file}, of {size} bytes, takes {much}")
        yield batch


def _check_names(names: list[str], file: Path, key: str) -> None:
    if len(names) > MAX_COLUMNS:
        raise DataError(f"`{key}` must have at most {MAX_COLUMNS} columns, but {file} has {len(names)}")
    twice = [(name, count) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"`{key}` must have each column once, but {file} has {twice[0][0]!r} {twice[0][1]} times")


def _type_columns(table: pa.Table, file: Path, key: str) -> pa.Table:
    """Turn counts into integers; ids, paths, speakers and texts are text."""
    for index, name in enumerate(table.column_names):
        if name in COUNTS or name in TEXTS:
            kind, words = (pa.int64(), "whole numbers") if name in COUNTS else (pa.string(), "text")
            try:
                table = table.set_column(index, name, pc.cast(table.column(name), kind))
            except pa.ArrowException as error:
                why = shorten(error)
                raise DataError(f"`{key}` must have {words} in its column {name}, but {file}: {why}") from error
    empty = [name for name in REQUIRED if _has_gap(table.column(name))]
    if empty:
        raise DataError(f"`{key}` must have a value in its column {empty[0]} in every row, but {file} has not")
    for name in (name for name in COUNTS if name in table.column_names):
        _check_counts(table.column(name), name, file, key)
    for name in ("id", "path"):
        if pc.any(pc.match_substring(table.column(name), "\0")).as_py():
            raise DataError(f"`{key}` must have names without NUL bytes in its column {name}, but {file} has one")
    return table


def _has_gap(column: pa.ChunkedArray) -> bool:
    is_text = pa.types.is_string(column.type)
    return bool(column.null_count) or (is_text and bool(pc.any(pc.equal(pc.binary_length(column), 0)).as_py()))


def _check_counts(column: pa.ChunkedArray, name: str, file: Path, key: str) -> None:
    least, most = BOUNDS[name]
    found = pc.min_max(column).as_py()
    for value in (found["min"], found["max"]):
        if value is not None and not least <= value <= most:
            must = f"numbers from {least} to {most} in its column {name}"
            raise DataError(f"`{key}` must have {must}, but {file} has {value}")
