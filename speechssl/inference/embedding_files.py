"""Embeddings on disk: Parquet, NumPy with an index, or safetensors with an index, published when they are whole."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechssl.data.manifest import Manifest
from speechssl.durable import flush, writing
from speechssl.errors import ConfigError
from speechssl.inference.shards import name_texts
from speechssl.parsing import open_regular, parse_json, parsing, show
from speechssl.printable import escape_field, make_printable

SUFFIXES = (".parquet", ".npy", ".safetensors")

HEADER_BYTES = 192
"""Of an array's file, a multiple of 64: room for the longest shape, and numbers that are aligned."""

GROUP_BYTES = 2**24
"""Vectors in a row group of Parquet: a reader holds one at a time, and so does the writer."""


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


def write_embeddings(
    path: Path, tables: Iterable[pa.Table], schema: pa.Schema, facts: Mapping[str, Any] | None = None
) -> int:
    """Write tables of embeddings; the file has its name once it is whole, and an earlier one stays until then.

    Args:
        path: `.parquet` has all columns; `.npy` is (rows, dim) and `.safetensors` the same as the tensor `embeddings`,
            both with the other columns in `<name>.index.tsv` beside them, row for row.
        tables: rows of any number each; row groups of Parquet have one size, whatever that is.
        schema: as `make_schema` gives it.
        facts: what a Parquet file says of itself, as JSON in its metadata under `speechssl`.

    Returns:
        the rows that were written.

    Raises:
        ConfigError: it cannot be written.
    """
    rows = 0
    # A folder of its own, so that whatever was begun goes with it, however the writing ends.
    with (
        writing(path, also=(pa.ArrowException,)),
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder,
    ):
        scratch = Path(folder) / path.name
        with _open_writer(scratch, schema, facts) as write:
            for table in _regroup(tables, schema):
                write(table)
                rows += table.num_rows
        # Not <name>.tsv for the index, which may well be the manifest that the audio came from.
        for name in (path, name_index(path)):
            begun = scratch.with_name(name.name)
            if begun.exists():
                flush(begun)
                begun.replace(name)
    return rows


def _regroup(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Cut rows anew, so that a file does not depend on how they came."""
    vectors = schema.field("embedding").type
    size = max(1, GROUP_BYTES // (vectors.list_size * vectors.value_type.bit_width // 8))
    waiting = schema.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table.cast(schema)])
        while waiting.num_rows >= size:
            yield waiting.slice(0, size).combine_chunks()
            waiting = waiting.slice(size)
    if waiting.num_rows:
        yield waiting.combine_chunks()


class Earlier:
    """A Parquet table of embeddings that is added to.

    Raises:
        ConfigError: it was not made by `embed`, or with other settings than these.
    """

    def __init__(self, path: Path, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        self.path = path
        with self._reading() as file:
            facts = parse_json((file.schema_arrow.metadata or {})[b"speechssl"])["settings"]
            has, self._num_rows = file.schema_arrow, file.metadata.num_rows
        wanted = json.loads(json.dumps(settings))
        for key in (key for key in wanted if facts.get(key) != wanted[key]):
            raise ConfigError(
                f"`{key}` must be that of {path}, {show(facts.get(key))}, to add to it, but is {show(wanted[key])}"
            )
        if not has.equals(schema):
            names = ", ".join(schema.names)
            raise ConfigError(f"`out` must have the columns {names} to be added to, but {path} has not")

    @contextmanager
    def _reading(self) -> Iterator[pq.ParquetFile]:
        must = "embeddings that `embed` wrote, to be added to"
        with parsing("`out`", must, ConfigError, str(self.path)), open_regular(self.path) as file:
            yield pq.ParquetFile(file)

    def __len__(self) -> int:
        """Count its rows."""
        return int(self._num_rows)

    def iterate(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read it, some columns of it or all, a row group at a time."""
        with self._reading() as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=columns)
                # Parquet's own reader does not look whether text is UTF-8.
                table.validate(full=True)
                yield table

    def find_new(self, manifest: Manifest) -> Manifest:
        """Give the rows of a manifest whose ids it has not.

        Raises:
            ConfigError: an id is that of another file in it.
        """
        known: dict[str, str] = {}
        for table in self.iterate(["id", "path"]):
            pairs = table.group_by(["id", "path"]).aggregate([])
            known |= zip(pairs.column("id").to_pylist(), pairs.column("path").to_pylist(), strict=True)
        rows = []
        for number, name in enumerate(manifest.column("id")):
            if name not in known:
                rows.append(number)
            elif known[name] != str(path := manifest[number].path):
                raise ConfigError(
                    f"`audio` must have ids of its own to be added to {self.path}, but {name} is {known[name]} there "
                    f"and {path} here: name the files by a manifest, or by one folder always"
                )
        return manifest.select(rows)


def name_index(path: Path) -> Path:
    """Name the index that lies beside an array."""
    return path.with_suffix(".index.tsv")


@contextmanager
def _open_writer(
    path: Path, schema: pa.Schema, facts: Mapping[str, Any] | None
) -> Iterator[Callable[[pa.Table], object]]:
    """Give the function that writes a table; the file is whole when this is left."""
    if path.suffix == ".parquet":
        described = schema.with_metadata({"speechssl": json.dumps(facts)} if facts else None)
        with pq.ParquetWriter(path, described, use_dictionary=name_texts(schema), write_page_checksum=True) as writer:
            yield lambda table: writer.write_table(table.replace_schema_metadata(described.metadata))
        return
    vectors, rows = schema.field("embedding").type, 0
    with path.open("wb") as array, name_index(path).open("w", encoding="utf-8") as index:
        array.write(bytes(HEADER_BYTES))
        index.write("\t".join(schema.names[:-1]) + "\n")

        def write(table: pa.Table) -> None:
            nonlocal rows
            numbers = table.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            array.write(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
            columns = [column.to_pylist() for column in table.columns[:-1]]
            index.writelines("\t".join(map(_format, row)) + "\n" for row in zip(*columns, strict=True))
            rows += table.num_rows

        yield write
        array.seek(0)
        array.write(_format_header(path.suffix, (rows, vectors.list_size), vectors.value_type.bit_width // 8))


def _format_header(suffix: str, shape: tuple[int, int], num_bytes: int) -> bytes:
    """Write what stands before the numbers; always as long, so that it can be written last, when the rows are known."""
    if suffix == ".npy":
        # Version 1.0 of NumPy's format: its name, the length of the description, and the description.
        text = f"{{'descr': '<f{num_bytes}', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", HEADER_BYTES - 10) + f"{text:{HEADER_BYTES - 11}}\n".encode()
    size = shape[0] * shape[1] * num_bytes
    entry = {"dtype": f"F{8 * num_bytes}", "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"embeddings": entry}, separators=(",", ":"))
    return struct.pack("<Q", HEADER_BYTES - 8) + f"{text:{HEADER_BYTES - 8}}".encode()


def _format(value: str | float | None) -> str:
    """Write a field of the index as manifests do; seconds to the microsecond."""
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return "" if value is None else make_printable(escape_field(value))
