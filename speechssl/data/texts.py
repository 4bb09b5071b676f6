"""Texts by id, from the files that people keep them in: manifests and tables, lines, NIST's `.trn`, Kaldi's `text`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.manifest import load_manifest
from speechssl.data.manifest_reading import ROOT_LINE, name_columns
from speechssl.errors import ConfigError, DataError
from speechssl.parsing import parsing, read_bytes
from speechssl.printable import abbreviate

MAX_BYTES = 2**30
"""Longest file of texts: 1 GiB, some ten million utterances."""

_TRN = re.compile(r"(?P<text>.*)\((?P<id>[^()\s]+)\)\s*", re.DOTALL)
_ESCAPE = re.compile(r"\\([tnr\\])")
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


@dataclass(frozen=True)
class Texts:
    """Texts of utterances, row for row.

    Attributes:
        ids: unique names.
        texts: one each; '' where the file has none.
        columns: further columns of a table, '' where a row has nothing.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    columns: Mapping[str, Sequence[str]]


def load_texts(path: str, key: str, column: str = "text") -> Texts:
    r"""Read the texts of a file.

    Args:
        path: `.parquet` is a manifest; `.trn` has lines of `text (id)`; other files have a header line with `id` and
            `text` (or `column`), lines of `id<TAB>text`, or Kaldi's `id text`. In a table, `\t`,
            `\n`, `\r` and `\\` are escapes, as in manifests.
        key: the key that errors name.
        column: what else the column of the texts may be called, such as `reference` in our `utterances.tsv`.

    Raises:
        DataError: it is none of these, an id comes twice, or it has no texts.
    """
    file = Path(path)
    if file.suffix == ".parquet":
        manifest = load_manifest(path, key)
        columns = {name: manifest.labels(name) for name in manifest.table.column_names}
    else:
        with parsing(f"`{key}`", "text in UTF-8", where=path):
            text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        columns = _read_lines(lines, path, key, column)
    ids = columns.pop("id")
    name = column if column in columns else "text"
    if name not in columns:
        raise DataError(f"`{key}` must have a column text, but {path} has {name_columns(columns)}")
    texts = columns.pop(name)
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice or not ids or "" in ids:
        problem = f"{abbreviate(twice[0])} comes twice in" if twice else "a line has none in" if ids else "none is in"
        raise DataError(f"`{key}` must have one text for each id, but {problem} {path}")
    return Texts(ids, texts, columns)


def match_texts(reference: Texts, hypothesis: Texts, key: str = "hypothesis", whose: str = "`reference`") -> list[str]:
    """Bring the texts of the hypothesis into the order of the reference; errors name `key`, and call the reference so.

    Raises:
        DataError: they have not the same ids; it names those that are missing and those that are too many.
    """
    found = dict(zip(hypothesis.ids, hypothesis.texts, strict=True))
    missing, extra = [name for name in reference.ids if name not in found], set(found) - set(reference.ids)
    if missing or extra:
        parts = [f"lacks {_list_ids(missing)}"] if missing else []
        parts += [f"has {_list_ids(sorted(extra))}, which {whose} has not"] if extra else []
        raise DataError(f"`{key}` must have a text for each id of {whose}, but {' and '.join(parts)}")
    return [found[name] for name in reference.ids]


def check_trn_ids(ids: Sequence[str]) -> None:
    """Make sure that ids can stand in NIST's transcripts.

    Raises:
        ConfigError: one cannot.
    """
    for name in ids:
        if not re.fullmatch(r"[^()\s]+", name):
            raise ConfigError(f"`trn` must be false where ids have spaces or parentheses, but one is {name!r}")


def format_trn(ids: Sequence[str], texts: Sequence[str]) -> str:
    """Write texts as NIST's transcripts, `text (id)` a line; raises as `check_trn_ids`."""
    check_trn_ids(ids)
    return "".join(f"{' '.join(text.split())} ({name})\n" for name, text in zip(ids, texts, strict=True))


def _read_lines(lines: list[str], path: str, key: str, column: str) -> dict[str, list[str]]:
    start = int(lines[0].startswith(ROOT_LINE))
    numbered = [(number, line) for number, line in enumerate(lines[start:], start + 1) if line.strip()]
    first = numbered[0][1] if numbered else ""
    header = first.split("\t")
    if path.endswith(".trn"):
        pairs = _read_trn(numbered, path, key)
    elif "id" in header and ("text" in header or column in header):
        return _read_table(header, numbered[1:], path, key)
    elif path.endswith(".tsv") or "\t" in first:
        pairs = _read_pairs(numbered, path, key)
    else:
        pairs = ((name, text) for name, _, text in (line.strip().partition(" ") for _, line in numbered))
    ids, texts = [], []
    for name, text in pairs:
        ids.append(name)
        texts.append(text)
    return {"id": ids, "text": texts}


def _read_table(header: list[str], rows: list[tuple[int, str]], path: str, key: str) -> dict[str, list[str]]:
    fields = [line.split("\t") for _, line in rows]
    for (number, _), row in zip(rows, fields, strict=True):
        if len(row) != len(header):
            must = f"{len(header)} fields a line, as its header"
            raise DataError(f"`{key}` must have {must}, but line {number} of {path} has {len(row)}")
    return {name: [_unescape(row[k]) for row in fields] for k, name in enumerate(header)}


def _read_pairs(lines: list[tuple[int, str]], path: str, key: str) -> Iterator[tuple[str, str]]:
    for number, line in lines:
        name, tab, text = line.partition("\t")
        if not tab:
            raise DataError(f"`{key}` must have lines of id<TAB>text, but line {number} of {path} has no tab")
        yield _unescape(name), text


def _read_trn(lines: list[tuple[int, str]], path: str, key: str) -> Iterator[tuple[str, str]]:
    for number, line in lines:
        if line.startswith(";;"):
            continue
        found = _TRN.fullmatch(line)
        if found is None or "{" in found["text"]:
            why = "has alternatives in braces" if found else f"is {abbreviate(line)}"
            raise DataError(f"`{key}` must have lines of plain `text (id)`, but line {number} of {path} {why}")
        yield found["id"], found["text"].strip()


def _unescape(field: str) -> str:
    return _ESCAPE.sub(lambda found: _LETTERS[found[1]], field) if "\\" in field else field


def _list_ids(ids: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(abbreviate(name) for name in ids[:most])
    return shown + (f" and {len(ids) - most:,} others" if len(ids) > most else "")
