"""Stretches of utterances with a label: a CTM, an RTTM, TextGrids, or a table → one row a segment, sorted."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from speechssl.data.files import walk_once
from speechssl.data.manifest_reading import FREE_BYTES, MAX_GROWTH
from speechssl.errors import DataError
from speechssl.parsing import open_regular, parsing, read_bytes

TEXTGRID = ".textgrid"
SUFFIXES = (".ctm", ".rttm", TEXTGRID, ".tsv", ".csv", ".parquet")

MAX_BYTES = 2**32
"""Longest file of segments: about a hundred million of them."""

_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(<exists>|<absent>)|(?<!\S)([+-]?[\d.][\d.eE+-]*)(?!\S)')
"""What Praat itself reads of a text file, and nothing else: strings, flags, and numbers that stand alone."""

_SCHEMA = pa.schema([("id", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("label", pa.string())])

Row = tuple[str, float, float, str]


@dataclass(frozen=True)
class Segments:
    """Labelled stretches of utterances.

    Attributes:
        table: columns id, start, end (s, from the beginning of the utterance) and label, sorted by the first three.
        source: where they come from, for messages.
    """

    table: pa.Table
    source: str

    def __len__(self) -> int:
        """Count them."""
        return int(self.table.num_rows)

    @property
    def digest(self) -> str:
        """SHA-256 of all of them."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table, max_chunksize=2**16)
        return hashlib.sha256(sink.getvalue()).hexdigest()

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        runs = pc.run_end_encode(self.table.column("id").combine_chunks())
        ends = runs.run_ends.to_pylist()
        return dict(zip(runs.values.to_pylist(), zip([0, *ends], ends, strict=False), strict=True))

    @property
    def ids(self) -> Iterable[str]:
        """The utterances that have some."""
        return self._places.keys()

    def find(self, name: str) -> tuple[npt.NDArray[np.float64], list[str]]:
        """Give the start and end, s, of an utterance's segments (S, 2), and their S labels."""
        first, last = self._places.get(name, (0, 0))
        rows = self.table.slice(first, last - first)
        times = np.stack([rows.column("start").to_numpy(), rows.column("end").to_numpy()], axis=1)
        return times, rows.column("label").to_pylist()


def read_segments(place: str, tier: str = "") -> Segments:
    """Read segments.

    Args:
        place: a `.ctm`, `.rttm`, `.TextGrid`, or a table (`.tsv`, `.csv`, `.parquet`) with the columns id, start, end
            and by choice label; or a folder of TextGrids, searched in depth.
        tier: which tier of the TextGrids; empty: the only one with intervals.

    Raises:
        DataError: it is missing, none of these, damaged, or has a segment that does not last.
    """
    path = Path(place)
    if path.is_dir():
        files = sorted(Path(at, name) for at, names in walk_once(path, []) for name in names)
        grids = [file for file in files if file.suffix.lower() == TEXTGRID]
        if not grids:
            raise DataError(f"`segments` must be a file or a folder of TextGrids, but {place} holds none")
        # An id is what `make_ids` makes of audio in a folder that is laid out alike.
        rows = (row for file in grids for row in _read_textgrid(file, _name(file, path), tier))
        return _check(_to_table(rows), place)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"`segments` must end in {', '.join(SUFFIXES)} or be a folder of TextGrids, but is {place}")
    if tier and suffix != TEXTGRID:
        raise DataError(f"`tier` must be left out where `segments` is no TextGrid, but is {tier}")
    with parsing("`segments`", f"a file of segments ({suffix[1:]})", where=place):
        if suffix == TEXTGRID:
            table = _to_table(_read_textgrid(path, path.stem, tier))
        elif suffix in (".ctm", ".rttm"):
            table = _to_table(_iterate_lines(path, 5 if suffix == ".ctm" else 8))
        else:
            table = _read_table(path)
        return _check(table, place)


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _to_table(rows: Iterable[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)], _SCHEMA)


def _check(table: pa.Table, place: str) -> Segments:
    """Sort the rows, and make sure that each has a name and lasts.

    Raises:
        DataError: one does not, or there is none.
    """
    if not table.num_rows:
        raise DataError(f"`segments` must hold segments, but {place} has none")
    if any(table.column(name).null_count for name in ("id", "start", "end")):
        raise DataError(f"`segments` must have a value for id, start and end in every row, but {place} has not")
    starts, ends = table.column("start").to_numpy(), table.column("end").to_numpy()
    bad = np.flatnonzero(~((starts >= 0) & (starts < ends) & np.isfinite(ends)))
    if len(bad):
        row = table.slice(int(bad[0]), 1).to_pylist()[0]
        raise DataError(
            f"`segments` must start at 0 s or later and end after that, but {place} has one of {row['id']} from "
            f"{row['start']:g} to {row['end']:g} s"
        )
    order = [(name, "ascending") for name in ("id", "start", "end")]
    return Segments(table.sort_by(order).combine_chunks(), place)


def _iterate_lines(path: Path, label_at: int) -> Iterator[Row]:
    """Read a CTM (recording, channel, start, length, word) or an RTTM (type, recording, channel, start, length, …).

    Of an RTTM the lines of type SPEAKER count, whose label is the speaker; of names with escapes, as `transcribe` has
    them, what they stand for.
    """
    is_rttm = label_at == 8
    with open_regular(path) as file:
        for number, line in enumerate(file, 1):
            fields = line.decode("utf-8-sig" if number == 1 else "utf-8").split()
            if not fields or fields[0].startswith(";;") or (is_rttm and fields[0].upper() != "SPEAKER"):
                continue
            name, first = (1, 3) if is_rttm else (0, 2)
            if len(fields) < (8 if is_rttm else 5):
                raise ValueError(f"line {number} has {len(fields)} fields")
            start, length = float(fields[first]), float(fields[first + 1])
            yield unquote(fields[name]), start, start + length, fields[7 if is_rttm else 4]


def _read_table(path: Path) -> pa.Table:
    """Read a table with a header line, or Parquet.

    Raises:
        ValueError: a column is missing.
    """
    if path.suffix.lower() == ".parquet":
        with open_regular(path) as file:
            table = _read_parquet(file)
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        # An empty label is one, and an id of digits is text.
        types = {name: _SCHEMA.field(name).type for name in _SCHEMA.names}
        with open_regular(path) as file:
            table = csv.read_csv(
                file,
                parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=False if delimiter == "\t" else '"'),
                convert_options=csv.ConvertOptions(column_types=types, include_columns=None),
            )
    missing = [name for name in ("id", "start", "end") if table.column_names.count(name) != 1]
    if missing:
        raise ValueError(f"it has no column {missing[0]}" if missing[0] not in table.column_names else "a column twice")
    label = table.column("label") if "label" in table.column_names else pa.nulls(table.num_rows, pa.string())
    columns = [pc.cast(column, kind) for column, kind in zip([*table.select(("id", "start", "end")).columns, label],
                                                           _SCHEMA.types, strict=True)]  # fmt: skip
    table = pa.table(columns, _SCHEMA)
    table.validate(full=True)
    return table


def _read_parquet(file: BinaryIO) -> pa.Table:
    """Read the columns that count, up to the memory that a table of this size on disk can take.

    Raises:
        ValueError: it takes more.
    """
    size, parquet = os.fstat(file.fileno()).st_size, pq.ParquetFile(file)
    batches, taken = [], 0
    for batch in parquet.iter_batches(columns=[name for name in parquet.schema_arrow.names if name in _SCHEMA.names]):
        taken += batch.nbytes
        if taken > max(FREE_BYTES, MAX_GROWTH * size):
            raise ValueError(f"its {size} bytes take more than {taken} of memory")
        batches.append(batch)
    return pa.Table.from_batches(batches) if batches else _SCHEMA.empty_table()


def _read_textgrid(path: Path, name: str, tier: str) -> Iterator[Row]:
    """Read the intervals of one tier that have a label, of a long or a short TextGrid in UTF-8 or UTF-16.

    Raises:
        DataError: there is no such tier, or more than one where none is named.
    """
    with parsing("`segments`", "a TextGrid in Praat's text format", where=str(path)):
        content = read_bytes(path, MAX_BYTES)
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "ooTextFile" not in text[:100] or "TextGrid" not in text[:200]:
            raise ValueError("it does not begin as one")
        found = list(_iterate_tiers([match.groups() for match in _TOKEN.finditer(text)]))
        tiers = dict(found)
        if len(tiers) < len(found):
            raise ValueError("two of its tiers have one name")
    wanted = [tier] if tier else list(tiers)
    if tier not in tiers and (tier or len(tiers) != 1):
        has = ", ".join(tiers) or "none with intervals"
        raise DataError(f"`tier` must name a tier of {path}, but is {tier!r}: it has {has}")
    yield from ((name, first, last, label) for first, last, label in tiers[wanted[0]] if label.strip())


def _iterate_tiers(tokens: list[tuple[str | None, ...]]) -> Iterator[tuple[str, list[tuple[float, float, str]]]]:
    """Give the tiers of intervals by name; points, which do not last, are passed over."""
    stream = chain(tokens, repeat((None, None, None)))

    def take_text() -> str:
        text = next(stream)[0]
        if text is None:
            raise ValueError("a text is missing")
        return text.replace('""', '"')

    def take_number() -> float:
        number = next(stream)[2]
        if number is None:
            raise ValueError("a number is missing")
        return float(number)

    if [take_text(), take_text()] != ["ooTextFile", "TextGrid"]:
        raise ValueError("it does not begin as one")
    take_number(), take_number()
    has_tiers = next(stream)[1] == "<exists>"
    for _ in range(int(take_number()) if has_tiers else 0):
        kind, name = take_text(), take_text()
        take_number(), take_number()
        count = int(take_number())
        if kind == "IntervalTier":
            yield name, [(take_number(), take_number(), take_text()) for _ in range(count)]
        else:
            for _ in range(count):
                take_number(), take_text()
