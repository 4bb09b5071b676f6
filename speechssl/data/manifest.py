"""Manifests: one row an utterance, columnar in memory; `.tsv` for people, `.parquet` for millions of rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.data.manifest_reading import COUNTS, REQUIRED, ROOT_KEY, ROOT_LINE, name_columns, read_columns
from speechssl.data.sampler import take_turns
from speechssl.errors import ConfigError, DataError
from speechssl.parsing import parsing
from speechssl.printable import escape_field

IntArray = npt.NDArray[np.int64]

OPTIONAL = {"offset": 0, "channel": 0, "speaker": None, "text": None}
"""Columns that are left out where every row has this, and what a row without one has."""


@dataclass(frozen=True)
class Utterance:
    """One row.

    Attributes:
        id: unique name.
        path: absolute path of the file.
        sample_rate: of the file, Hz.
        num_samples: of the utterance, at that rate.
        offset: first sample of the utterance in the file, at that rate.
        speaker: label, where known.
        text: transcript, where known.
        channel: which channel of the file, from 1; 0 is the mean of all.
    """

    id: str
    path: Path
    sample_rate: int
    num_samples: int
    offset: int = 0
    speaker: str | None = None
    text: str | None = None
    channel: int = 0

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate


class Manifest:
    """A table of utterances; a row costs no Python object until it is asked for.

    Args:
        table: columns `id`, `path`, `sample_rate`, `num_samples`, where needed `offset` and `channel`, where known
            `speaker` and `text`; further columns are kept.
        root: folder that relative paths start from.
        source: what messages call it.
    """

    def __init__(self, table: pa.Table, root: Path, source: str) -> None:
        self.table, self.root, self.source = table.combine_chunks(), root, source

    def __len__(self) -> int:
        """Count the utterances."""
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> Utterance:
        """Make the record of one row."""
        row = {name: self.table.column(name)[index].as_py() for name in self.table.column_names if name in _FIELDS}
        counts = {name: row.get(name) or 0 for name in ("offset", "channel")}
        return Utterance(**{**row, **counts, "path": self.root / row["path"]})

    @cached_property
    def num_samples_16k(self) -> IntArray:
        """Length of each utterance at 16 kHz, as `load_audio` returns it: (rows,) int64."""
        samples, rates = self._counts("num_samples"), self._counts("sample_rate")
        lengths: IntArray = (2 * samples * SAMPLE_RATE + rates) // (2 * rates)
        return lengths

    @property
    def total_s(self) -> float:
        """Length of all utterances, seconds."""
        return float(self.num_samples_16k.sum()) / SAMPLE_RATE

    @property
    def digest(self) -> str:
        """SHA-256 of the ids and lengths, in their order: what the plan of a run is a function of."""
        ids = pc.cast(self.table.column("id"), pa.binary()).to_pylist()
        digest = hashlib.sha256(b"\0".join(ids))
        digest.update(self.num_samples_16k.astype("<i8").tobytes())
        return digest.hexdigest()

    def has(self, name: str) -> bool:
        """Say whether a column is there with at least one value."""
        if name not in self.table.column_names:
            return False
        column = self.table.column(name)
        return int(column.null_count) < len(column)

    def column(self, name: str) -> list[Any]:
        """Read a column as Python values; None where a row has none."""
        self.require(name, self.source)
        values: list[Any] = self.table.column(name).to_pylist()
        return values

    def require(self, name: str, key: str) -> None:
        """Make sure that a column is there and not empty.

        Raises:
            DataError: naming `key`, the manifest and its columns.
        """
        if name not in self.table.column_names:
            columns = name_columns(self.table.column_names)
            raise DataError(f"`{key}` must have a column {name}, but {self.source} has {columns}")
        if not self.has(name):
            raise DataError(f"`{key}` must have values in its column {name}, but {self.source} has none")

    def select(self, indices: npt.ArrayLike) -> Manifest:
        """Take rows in the given order."""
        return Manifest(self.table.take(pa.array(np.asarray(indices, dtype=np.int64))), self.root, self.source)

    def filter_where(self, condition: str) -> Manifest:
        """Keep the rows where `column=value`; an empty condition keeps all.

        Raises:
            ConfigError: the condition has no `=`.
            DataError: there is no such column, or no row with that value.
        """
        if not condition:
            return self
        name, equals, value = condition.partition("=")
        if not equals:
            raise ConfigError(f"`data.where` must be column=value, but is {condition!r}")
        self.require(name, "data.where")
        with parsing(f"`data.where` ({name} of {self.source})", "a column of single values and one of them"):
            same = pc.equal(pc.cast(self.table.column(name), pa.string()), value)
        if not pc.any(same).as_py():
            raise DataError(f"`data.where` must keep some rows, but no row of {self.source} has {condition}")
        return Manifest(self.table.filter(same), self.root, self.source)

    def limit_to(self, seconds: float, seed: int) -> Manifest:
        """Take a seeded subset of about `seconds`, balanced over speakers and sexes; 0 takes all.

        The speaker who has said least so far speaks next, of the sex that has said least where the column `sex` is
        full; the first utterance that would pass the limit ends the subset.

        Returns:
            The rows in their order here; those of a smaller limit are among those of a larger one.
        """
        if seconds <= 0 or seconds >= self.total_s:
            return self
        limit = int(seconds * SAMPLE_RATE)
        is_sexed = self.has("sex") and self.table.column("sex").null_count == 0
        speakers, sexes = self.labels("speaker"), self.labels("sex" if is_sexed else "")
        taken = take_turns(self.num_samples_16k, speakers, sexes, limit, seed)
        return self.select(np.sort(taken))

    def labels(self, name: str) -> list[str]:
        """Read a column as text, empty where it has nothing or is not there.

        Raises:
            DataError: its values are lists or the like.
        """
        if not name or not self.has(name):
            return [""] * len(self)
        with parsing(f"the column {name} of {self.source}", "text or single values"):
            labels: list[str] = pc.fill_null(pc.cast(self.table.column(name), pa.string()), "").to_pylist()
        return labels

    def _counts(self, name: str) -> IntArray:
        values: IntArray = self.table.column(name).to_numpy().astype(np.int64, copy=False)
        return values


_FIELDS = frozenset(Utterance.__dataclass_fields__)


def load_manifest(path: str | os.PathLike[str], key: str = "data.train") -> Manifest:
    """Load a manifest.

    Args:
        path: `.tsv` with a header line, or `.parquet`.
        key: the key that errors name.

    Raises:
        DataError: it is missing, of another kind, damaged, without a needed column, or empty; an id is there twice.
    """
    file = Path(path)
    if not os.path.isfile(file):
        what = "a folder" if os.path.isdir(file) else "no regular file"
        found = f"is {what}" if os.path.exists(file) else "does not exist"
        raise DataError(f"`{key}` must be a manifest (.tsv or .parquet), but {file} {found}")
    with parsing(f"`{key}` ({file})", "a whole manifest"):
        table, root = read_columns(file, key)
        folder = (file.parent / root) if root else file.parent
        manifest = Manifest(table, folder.resolve(), str(file))
        del table
    check_unique(manifest, key)
    # Reading takes three times what is kept, and Arrow would keep that too.
    pa.default_memory_pool().release_unused()
    return manifest


def load_manifests(paths: Sequence[str], key: str) -> Manifest:
    """Load one manifest or several, one after the other.

    Raises:
        DataError: none is given, or as `load_manifest`; an id is there twice, in two of them too.
    """
    if not paths:
        raise DataError(f"`{key}` must be a manifest or a list of manifests, but is not given")
    manifests = [load_manifest(path, key) for path in paths]
    if len(manifests) == 1:
        return manifests[0]
    joined = join_manifests(manifests)
    check_unique(joined, key)
    # Counting takes as much as the ids themselves, and Arrow would keep that.
    pa.default_memory_pool().release_unused()
    return joined


def check_unique(manifest: Manifest, key: str) -> None:
    """Make sure that no id is there twice, since results could not be told by it.

    Raises:
        DataError: one is.
    """
    counts = pc.value_counts(manifest.table.column("id")).flatten()
    index = pc.index(pc.greater(counts[1], 1), True).as_py()
    if index >= 0:
        name, times = counts[0][index], counts[1][index]
        raise DataError(f"`{key}` must name each utterance once, but {name} is {times} times in {manifest.source}")


def join_manifests(manifests: Sequence[Manifest]) -> Manifest:
    """Put manifests one after the other; paths become absolute, columns that one lacks are empty there.

    A column that is text in one and numbers in another, as in a `.tsv` and a `.parquet`, becomes text.

    Raises:
        DataError: such a column holds lists or the like in one.
    """
    tables = [_join_root(manifest) for manifest in manifests]
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        fields = [pa.schema([table.schema.field(name)]) for table in tables if name in table.column_names]
        try:
            pa.unify_schemas(fields, promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            tables = [_make_text(table, name) for table in tables]
    table = pa.concat_tables(tables, promote_options="permissive")
    return Manifest(table, Path("/"), ", ".join(manifest.source for manifest in manifests))


def _join_root(manifest: Manifest) -> pa.Table:
    """Give the paths of a manifest its root, except where they are absolute."""
    paths = manifest.table.column("path")
    joined = pc.binary_join_element_wise(str(manifest.root).rstrip("/"), paths, "/")
    absolute = pc.if_else(pc.starts_with(paths, "/"), paths, joined)
    return manifest.table.set_column(manifest.table.column_names.index("path"), "path", absolute)


def _make_text(table: pa.Table, name: str) -> pa.Table:
    """Turn a column into text, where it is there."""
    if name not in table.column_names:
        return table
    try:
        text = pc.cast(table.column(name), pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        kind = table.schema.field(name).type
        raise DataError(f"the column {name} must be alike in all manifests, but holds {kind} in one") from error
    return table.set_column(table.column_names.index(name), name, text)


def build_manifest(rows: Iterable[Utterance], root: Path, source: str = "manifest") -> Manifest:
    """Make a manifest of records; columns that no row fills are left out."""
    records = list(rows)
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in records] for name in (*REQUIRED, *OPTIONAL)}
    columns["path"] = [str(p.relative_to(root)) if p.is_relative_to(root) else str(p) for p in columns["path"]]
    kept = {k: v for k, v in columns.items() if k not in OPTIONAL or any(item != OPTIONAL[k] for item in v)}
    types = {name: pa.int64() if name in COUNTS else pa.string() for name in kept}
    return Manifest(pa.table({k: pa.array(v, types[k]) for k, v in kept.items()}), root, source)


def save_manifest(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write a manifest as `.tsv` or `.parquet`, in one step.

    Raises:
        DataError: another suffix.
    """
    file = Path(path)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    if file.suffix == ".parquet":
        metadata = {**(manifest.table.schema.metadata or {}), ROOT_KEY: os.fsencode(manifest.root)}
        pq.write_table(manifest.table.replace_schema_metadata(metadata), scratch)
    elif file.suffix == ".tsv":
        scratch.write_text(_format_tsv(manifest), encoding="utf-8", errors="surrogateescape")
    else:
        raise DataError(f"a manifest must be written as .tsv or .parquet, but {file} is neither")
    scratch.replace(file)


def _format_tsv(manifest: Manifest) -> str:
    table = manifest.table
    lines = [f"{ROOT_LINE}{manifest.root}", "\t".join(table.column_names)]
    columns = [
        ["" if value is None else escape_field(str(value)) for value in column.to_pylist()] for column in table.columns
    ]
    lines += ["\t".join(row) for row in zip(*columns, strict=True)]
    return "\n".join(lines) + "\n"
