"""A CSV or TSV file that lists audio, with columns of any name; what is wrong with one, and the words that mend it."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path, PurePosixPath

from speechssl.advice import quote_for_shell, spell
from speechssl.audio.reading import AUDIO_SUFFIXES
from speechssl.corpora.scan import Recording
from speechssl.corpora.subset import ALL
from speechssl.data.files import make_ids
from speechssl.data.manifest_reading import MAX_HEADER, name_columns
from speechssl.errors import ConfigError, DataError
from speechssl.parsing import open_regular, parsing
from speechssl.printable import abbreviate

DELIMITERS = (",", ";", "\t", "|")
RESERVED = frozenset({"sample_rate", "num_samples", "offset", "channel"})
"""Columns of a manifest that are read from the audio, or said by a key."""

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})

MAX_FIELD = 2**24
"""Longest field in characters: a transcript of many days."""

USUAL = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path", "audio_filepath", "audio_path"),
        *("audio_file", "audio_filename", "audio", "wav_filename", "wav_path", "wav_file", "wav", "clip"),
    ),
    "text": (
        *("text", "sentence", "transcript", "transcription", "normalized_text", "normalised_text"),
        *("normalized_transcription", "raw_transcription", "raw_text", "wrd", "words"),
    ),
    "speaker": ("speaker", "client_id", "speaker_id", "spk_id", "spk", "reader_id", "reader", "user_id"),
}
"""What tables call these columns, in any case: Common Voice, NeMo, Hugging Face, DeepSpeech, SpeechBrain and others."""

VOXCELEB = re.compile(r"voxceleb\d id", re.IGNORECASE)
"""First column of the tables that come with VoxCeleb, which list its speakers."""

SUFFIXES = ("", ".wav", ".flac", ".mp3", ".opus", ".ogg")
"""What may be missing behind the paths of a table."""

MAX_FOLDERS = 100
"""At most this many folders beside a table are searched for its files."""

MAX_DEPTH = 8
"""At most this many folders of a path from another machine are tried."""

MAX_FIELDS = 20
"""Most columns that a table without a header has."""

MAX_SHOWN = 60
"""An error quotes at most this many characters of a row."""

_logger = logging.getLogger("speechssl")

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
    splits = [row.get("split", ALL) for row in rows]
    # A split becomes a file's name.
    odd = next((split for split in splits if not re.fullmatch(r"\w[\w.+-]*", split)), None)
    if odd is not None:
        raise DataError(f"`columns.split` must hold names made of letters, digits, - and _, but one is {odd!r}")
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
    if columns.get("path") not in names:
        _refuse_json(table)
        _refuse_without_header(table, folder)
    # Columns without a name, such as a spreadsheet's empty ones, may be many.
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise DataError(f"`table` must have each column once, but {table} has {twice[0]} {names.count(twice[0])} times")
    chosen = _choose_columns(table, names, columns)
    places = {column: names.index(name) for column, name in chosen.items()}
    rows: list[Row] = []
    for number, line in enumerate(lines, 2):
        if len(line) != len(names):
            found = f"row {number} of {table} has {len(line)}"
            raise DataError(f"`table` must have {len(names)} fields in each row, but {found}")
        rows.append({column: line[place] for column, place in places.items()})
    if not rows:
        raise DataError(f"`table` must list audio, but {table} has no rows")
    _name_left_out(table, [name for name in names if name not in RESERVED], chosen, columns)
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
            way_out = _describe_columns(names, chosen, columns)
            raise ConfigError(f"`columns.{column}` must be a column of {has}, but is {name}{way_out}")
    if "path" not in chosen:
        has = name_columns(names)
        raise ConfigError(f"`columns.path` must be a column of {table}, which has {has}, but is not given")
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


def _make_recording(name: str, file: Path, row: Row) -> Recording:
    value = {column: " ".join(text.split()) or None for column, text in row.items()}
    extra = {column: value[column] for column in row if column not in ("id", "path", "speaker", "text", "split")}
    return Recording(name, file, value.get("speaker"), value.get("text"), extra)


def _name_left_out(table: Path, names: Sequence[str], chosen: Mapping[str, str], columns: Mapping[str, str]) -> None:
    """Say which columns of a table are not taken, with the words that would take its texts and speakers."""
    proposed = _propose(names, chosen, columns)
    if proposed:
        which = " and ".join(proposed.values())
        _logger.warning("%s: not taken: %s, which %s would take", table.name, which, _spell_columns(proposed))
    others = [name for name in names if name and name not in {*chosen.values(), *proposed.values()}]
    if others:
        example = spell(f"columns.{_make_key(others[0])}", others[0])
        _logger.info("%s: not taken: %s; %s would take the first", table.name, name_columns(others), example)


def _describe_columns(names: Sequence[str], chosen: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """Give the words that would take columns with usual names, after a sentence about one that is missing."""
    if any(VOXCELEB.fullmatch(name) for name in names):
        how = spell("speaker_pattern", r"(id\d+)/")
        return f": the table lists speakers, not files; take the folder of the audio, with corpus=folder {how}"
    proposed = _propose(names, chosen, columns)
    return f": say {_spell_columns(proposed)}" if proposed else ""


def _refuse_json(table: Path) -> None:
    """Refuse JSON, a line an utterance, as NeMo and others have it.

    Raises:
        DataError: it is JSON.
    """
    line = _read_first_line(table)
    if not re.match(r'\s*(\{\s*"|\[\s*(\{|$))', line):
        return
    names = re.findall(r'"(\w+)"\s*:', line)
    old, new = json.dumps(str(table)), json.dumps(_rename(table))
    code = f"import pyarrow.csv as c, pyarrow.json as j; c.write_csv(j.read_json({old}), {new})"
    proposed = {**{"path": "audio_filepath"}, **_propose(names, {}, {column: column for column in USUAL})}
    keys = _spell_columns({column: name for column, name in proposed.items() if column != name})
    way_out = ""
    if line.lstrip().startswith("{"):
        say = f"{spell('table', _rename(table))} {keys}".rstrip()
        way_out = f": make one with python -c {quote_for_shell(code)} and say {say}"
    raise DataError(f"`table` must be CSV or TSV, but {table} is JSON{way_out}")


def _refuse_without_header(table: Path, folder: Path) -> None:
    """Refuse a table whose first line is a row already, as LJSpeech's is.

    Raises:
        DataError: the first line names a file, holds a number or a sentence.
    """
    line = _read_first_line(table)
    delimiter = next((mark for mark in "\t|" if mark in line), max(",;", key=line.count))
    fields = line.split(delimiter) if delimiter in "\t|" else next(csv.reader([line], delimiter=delimiter), [])
    if len(fields) > MAX_FIELDS or not any(_is_value(field) for field in fields):
        return
    place = next((n for n, field in enumerate(fields) if _has_audio_suffix(field)), 0)
    rest = [n for n in range(len(fields)) if n != place]
    # Of two that are alike the last: LJSpeech has a text as printed, and then as spoken.
    text = max(rest, key=lambda n: (len(fields[n]), n), default=None)
    names = ["path" if n == place else "text" if n == text else f"column{n + 1}" for n in range(len(fields))]
    found = _find_place(fields[place], [folder, *_list_near(table)])
    copy = f"cat {quote_for_shell(str(table))}"
    suffix = found[1].removeprefix(fields[0]) if found and place == 0 and found[1].startswith(fields[0]) else ""
    if suffix:
        end = delimiter if rest else "$"
        script = f"s/{end}/{suffix}{end if rest else ''}/"
        copy = f"sed {quote_for_shell(script)} {quote_for_shell(str(table))}"
    header = quote_for_shell(delimiter.join(names).replace("\t", "\\t") + "\\n")
    keys = spell("table", _rename(table)) + (f" {spell('root', str(found[0]))}" if found else "")
    begins = f"begins with a row, {abbreviate(line, MAX_SHOWN)}"
    make = f"{{ printf {header}; {copy}; }} > {quote_for_shell(_rename(table))}"
    raise DataError(
        f"`table` must begin with a line that names its columns, but {table} {begins}: make one with {make} and say "
        f"{keys}"
    )


def check_places(table: Path, root: Path, files: Iterable[Path]) -> None:
    """Refuse a table none of whose files is there, and say where they are.

    Args:
        table: as the user named it.
        root: absolute folder that its paths start from.
        files: absolute.

    Raises:
        DataError: there is none.
    """
    first = None
    for file in files:
        if os.path.lexists(file):
            return
        first = first or file
    if first is None:
        return
    name = str(first.relative_to(root)) if first.is_relative_to(root) else str(first)
    found = _find_place(name, [root, *_list_near(table)])
    way_out = f": say {spell('table', str(table))} root=FOLDER with the one that they do start from"
    if found:
        keys = f"{spell('table', str(table))} {spell('root', str(found[0]))}"
        say = f"say {keys}" if found[1] == name else f"write {found[1]} for {name}, and so for all, and say {keys}"
        way_out = f", while {found[0] / found[1]} is: {say}"
    must = f"the folder that the paths of {table} start from"
    raise DataError(f"`root` must be {must}, but {first} is not there{way_out}")


def _propose(names: Sequence[str], chosen: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, str]:
    """Find columns with usual names for those that are looked for and not there."""
    free = {name.casefold(): name for name in reversed(names) if name not in chosen.values()}
    wanted = {column: USUAL[column] for column in USUAL if column in columns and column not in chosen}
    found = {column: next((free[name] for name in usual if name in free), None) for column, usual in wanted.items()}
    return {column: name for column, name in found.items() if name and columns[column] != name}


def _spell_columns(proposed: Mapping[str, str]) -> str:
    return " ".join(spell(f"columns.{column}", name) for column, name in proposed.items())


def _make_key(name: str) -> str:
    """Make a column's name one that can be a key."""
    key = re.sub(r"\W+", "_", name)
    return key if re.match(r"[^\W\d]", key) else f"c_{key}"


def _read_first_line(table: Path) -> str:
    with parsing(f"`table` ({table})", "a CSV or TSV file in UTF-8"), open_regular(table) as file:
        text = file.readline(MAX_HEADER).decode("utf-8-sig", errors="replace")
    return re.split(r"[\r\n]", text, maxsplit=1)[0]


def _is_value(field: str) -> bool:
    """Say whether a field looks like a value, not a column's name: a file, a number, an id with digits, a sentence."""
    return _has_audio_suffix(field) or bool(re.search(r"\d[-_/.]\d|^\s*[\d.]+\s*$", field)) or len(field.split()) > 4


def _has_audio_suffix(field: str) -> bool:
    return PurePosixPath(field.strip()).suffix.lower() in AUDIO_SUFFIXES


def _rename(table: Path) -> str:
    """Name the new table that the suggested command writes beside the old one."""
    return str(table.with_name(f"{table.stem}-named.csv"))


def _list_near(table: Path) -> list[Path]:
    """List the folders in which the files of a table usually lie: its own, those in it, and the one above."""
    folder = table.parent.absolute()
    inside: list[str] = []
    with suppress(OSError):  # A folder that cannot be listed can still hold a table.
        inside = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())[:MAX_FOLDERS]
    return [folder, *map(Path, inside), folder.parent, Path.cwd()]


def _find_place(name: str, folders: Sequence[Path]) -> tuple[Path, str] | None:
    """Find a file that is not where a table has it: its folder, and its path from there."""
    spellings = dict.fromkeys(_list_spellings(name.strip()))
    places = ((folder, name + suffix) for name, folder, suffix in product(spellings, folders, SUFFIXES))
    return next((place for place in places if os.path.isfile(place[0] / place[1])), None)


def _list_spellings(name: str) -> Iterator[str]:
    """Yield a path with Windows' separators turned, then without its first folders, one after the other."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    yield name
    yield from ("/".join(parts[start:]) for start in range(max(0, len(parts) - MAX_DEPTH), len(parts)))
