"""A CSV or TSV file that lists audio, with columns of any name."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from speechssl.corpora.scan import Recording
from speechssl.corpora.subset import ALL
from speechssl.corpora.table_advice import describe_columns, name_left_out, refuse_json, refuse_without_header
from speechssl.data.files import make_ids
from speechssl.data.manifest_reading import MAX_HEADER, name_columns
from speechssl.errors import ConfigError, DataError
from speechssl.parsing import open_regular, parsing

DELIMITERS = (",", ";", "\t", "|")
RESERVED = frozenset({"sample_rate", "num_samples", "offset", "channel"})
"""Columns of a manifest that are read from the audio, or said by a key."""

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})

MAX_FIELD = 2**24
"""Longest field in characters: a transcript of many days."""

Row = Mapping[str, str]


def read_table(table: Path, root: Path | None, columns: Mapping[str, str]) -> dict[str, list[Recording]]:
    """List the recordings of a table by split, each sorted by path; columns that are not taken are named.

    Args:
        table: CSV (comma or semicolon), or separated by tabs or `|`, with a header line.
        root: folder that paths start from; None takes the table's own.
        columns: manifest column → column of the table: `path`, where they are there `text` and `speaker`, and any
            other; `id` names the rows and `split` sorts them into manifests.

    Raises:
        ConfigError: a column is not in the table, or cannot be chosen.
        DataError: the table is missing, no table, has no rows, or names a file twice.
    """
    folder = (root or table.parent).absolute()
    rows, has_ids = _read_rows(table, folder, columns)
    files = [_locate(folder, row["path"], number, table) for number, row in enumerate(rows, 2)]
    splits = [_check_split(row["split"]) if "split" in row else ALL for row in rows]
    if has_ids:
        ids = [row["id"] for row in rows]
        if "" in ids:
            raise DataError(f"`columns.id` must name every row, but row {ids.index('') + 2} of {table} has no id")
        _check_distinct(splits, ids, f"`columns.id` must tell the rows of {table} apart", "")
    else:
        way_out = ": leave one out, or give each row a name of its own with columns.id=COLUMN"
        _check_distinct(splits, files, f"`table` must name each file of {table} once", way_out)
        ids = make_ids(files)
    recordings: dict[str, list[Recording]] = {}
    for name, file, split, row in sorted(zip(ids, files, splits, rows, strict=True), key=lambda item: str(item[1])):
        recordings.setdefault(split, []).append(_make_recording(name, file, row))
    return dict(sorted(recordings.items()))


def _read_rows(table: Path, folder: Path, columns: Mapping[str, str]) -> tuple[list[Row], bool]:
    """Read the columns that are chosen, of all rows, and say whether `id` is one of them."""
    if not os.path.exists(table):
        raise DataError(f"`table` must be a CSV or TSV file, but {table} is not there")
    lines = _read_lines(table)
    names = [name.strip() for name in next(lines, [])]
    if not names:
        raise DataError(f"`table` must list audio, but {table} has no rows")
    # Columns without a name, such as a spreadsheet's empty ones, may be many.
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if columns.get("path") not in names:
        refuse_json(table)
        refuse_without_header(table, folder)
    if twice:
        raise DataError(f"`table` must have each column once, but {table} has {twice[0]} {names.count(twice[0])} times")
    chosen = _choose_columns(table, names, columns)
    places = {column: names.index(name) for column, name in chosen.items()}
    rows: list[Row] = []
    for number, line in enumerate(lines, 2):
        if len(line) != len(names):
            raise DataError(
                f"`table` must have {len(names)} fields in each row, but row {number} of {table} has {len(line)}"
            )
        rows.append({column: line[place] for column, place in places.items()})
    if not rows:
        raise DataError(f"`table` must list audio, but {table} has no rows")
    name_left_out(table, [name for name in names if name not in RESERVED], chosen, columns)
    return rows, "id" in chosen


def _read_lines(table: Path) -> Iterator[list[str]]:
    """Yield the fields of each line that is not blank, the header's first."""
    csv.field_size_limit(max(MAX_FIELD, csv.field_size_limit()))
    with parsing(f"`table` ({table})", "a CSV or TSV file in UTF-8"), open_regular(table) as source:
        file = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")
        header = file.readline(MAX_HEADER)
        file.seek(0)
        delimiter = max(DELIMITERS, key=header.count)
        # In CSV a quoted field may hold the delimiter; in the others a quotation mark is a character like any.
        if delimiter in ",;":
            lines = csv.reader(file, delimiter=delimiter, strict=True)
        else:
            lines = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        yield from (line for line in lines if line)


def _choose_columns(table: Path, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Keep the columns that are there; `text` and `speaker` may be absent where the user named no other."""
    chosen = {}
    for column, name in columns.items():
        if column in RESERVED:
            raise ConfigError(f"`columns.{column}` must not be given, but is: it comes from the audio")
        if name in names:
            chosen[column] = name
        elif column not in ("text", "speaker") or name != column:
            has = f"{table}, which has {name_columns(names)}"
            way_out = describe_columns(names, chosen, columns)
            raise ConfigError(f"`columns.{column}` must be a column of {has}, but is {name}{way_out}")
    if "path" not in chosen:
        raise ConfigError(
            f"`columns.path` must be a column of {table}, which has {name_columns(names)}, but is not given"
        )
    return chosen


def _locate(folder: Path, path: str, number: int, table: Path) -> Path:
    """Make the path of a row absolute, by its name alone."""
    file = Path(os.path.normpath(folder / path))
    if "\0" in path or not path.strip() or not file.name:
        raise DataError(f"`columns.path` must name a file in every row, but row {number} of {table} has {path!r}")
    return file


def _check_distinct(splits: Sequence[str], values: Sequence[object], must: str, way_out: str) -> None:
    """Refuse the first value that a split has twice, with its rows."""
    seen: dict[tuple[str, object], int] = {}
    for number, (split, value) in enumerate(zip(splits, values, strict=True), 2):
        first = seen.setdefault((split, value), number)
        if first != number:
            raise DataError(f"{must}, but {value} stands in rows {first} and {number}{way_out}")


def _check_split(split: str) -> str:
    """Make sure that a split can be a file name."""
    if not re.fullmatch(r"\w[\w.+-]*", split):
        raise DataError(f"`columns.split` must hold names made of letters, digits, - and _, but one is {split!r}")
    return split


def _make_recording(name: str, file: Path, row: Row) -> Recording:
    value = {column: " ".join(text.split()) or None for column, text in row.items()}
    extra = {column: value[column] for column in row if column not in ("id", "path", "speaker", "text", "split")}
    return Recording(name, file, value.get("speaker"), value.get("text"), extra)
