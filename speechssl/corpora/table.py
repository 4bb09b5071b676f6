"""A CSV or TSV file that lists audio, with columns of any name."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechssl.corpora.scan import Recording
from speechssl.corpora.subset import ALL
from speechssl.data.audio_files import make_ids
from speechssl.errors import ConfigError, DataError

DELIMITERS = (",", ";", "\t", "|")
RESERVED = frozenset({"sample_rate", "num_samples", "offset", "channel"})
"""Columns of a manifest that are read from the audio, or said by a key."""

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})

Row = Mapping[str, str]


def read_table(table: Path, root: Path | None, columns: Mapping[str, str]) -> dict[str, list[Recording]]:
    """List the recordings of a table by split, each sorted by path.

    Args:
        table: CSV (comma or semicolon), or separated by tabs or `|`, with a header line.
        root: folder that paths start from; None takes the table's own.
        columns: manifest column → column of the table: `path`, where they are there `text` and `speaker`, and any
            other; `id` names the rows and `split` sorts them into manifests.

    Raises:
        ConfigError: a column is not in the table, or cannot be chosen.
        DataError: the table is missing, no table, or has no rows.
    """
    names, rows = _read_rows(table)
    chosen = _choose_columns(table, names, columns)
    if not rows:
        raise DataError(f"`table` must list audio, but {table} has no rows")
    folder = (root or table.parent).absolute()
    files = [Path(os.path.normpath(folder / row[chosen["path"]])) for row in rows]
    if "id" in chosen:
        ids = [row[chosen["id"]] for row in rows]
        if "" in ids:
            raise DataError(f"`columns.id` must name every row, but row {ids.index('') + 2} of {table} has no id")
    else:
        ids = make_ids(files, Path(os.path.commonpath([file.parent for file in files])))
    splits: dict[str, list[Recording]] = {}
    for name, file, row in sorted(zip(ids, files, rows, strict=True), key=lambda item: os.fspath(item[1])):
        split = row[chosen["split"]] if "split" in chosen else ALL
        splits.setdefault(_check_split(split), []).append(_make_recording(name, file, row, chosen))
    return dict(sorted(splits.items()))


def _read_rows(table: Path) -> tuple[list[str], list[Row]]:
    """Read the header, with each name once, and the rows, with as many fields as the header."""
    if not table.is_file():
        raise DataError(f"`table` must be a CSV or TSV file, but {table} is not there")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(DELIMITERS, key=header.count)
            # In CSV a quoted field may hold the delimiter; in the others a quotation mark is a character like any.
            if delimiter in ",;":
                lines = list(csv.reader(file, delimiter=delimiter, strict=True))
            else:
                lines = list(csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"`table` must be a CSV or TSV file in UTF-8, but {table} is not ({error})") from error
    lines = [line for line in lines if line]
    names = [name.strip() for name in lines[0]] if lines else []
    # Columns without a name, such as a spreadsheet's empty ones, may be many.
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise DataError(f"`table` must have each column once, but {table} has {twice[0]} {names.count(twice[0])} times")
    bad = next((n for n, line in enumerate(lines, 1) if len(line) != len(names)), None)
    if bad is not None:
        raise DataError(
            f"`table` must have {len(names)} fields in each row, but row {bad} of {table} has {len(lines[bad - 1])}"
        )
    return names, [dict(zip(names, line, strict=True)) for line in lines[1:]]


def _choose_columns(table: Path, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Keep the columns that are there; `text` and `speaker` may be absent where the user named no other."""
    chosen = {}
    for column, name in columns.items():
        if column in RESERVED:
            raise ConfigError(f"`columns.{column}` must not be given, but is: it comes from the audio")
        if name in names:
            chosen[column] = name
        elif column not in ("text", "speaker") or name != column:
            raise ConfigError(
                f"`columns.{column}` must be a column of {table}, which has {', '.join(names)}, but is {name}"
            )
    if "path" not in chosen:
        raise ConfigError(f"`columns.path` must be a column of {table}, which has {', '.join(names)}, but is not given")
    return chosen


def _check_split(split: str) -> str:
    """Make sure that a split can be a file name."""
    if not re.fullmatch(r"\w[\w.+-]*", split):
        raise DataError(f"`columns.split` must hold names made of letters, digits, - and _, but one is {split!r}")
    return split


def _make_recording(name: str, file: Path, row: Row, chosen: Mapping[str, str]) -> Recording:
    value = {column: " ".join(row[source].split()) or None for column, source in chosen.items()}
    extra = {column: value[column] for column in chosen if column not in ("id", "path", "speaker", "text", "split")}
    return Recording(name, file, value.get("speaker"), value.get("text"), extra)
