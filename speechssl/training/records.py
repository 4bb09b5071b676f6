"""The log of a run read back: one JSON object a line, and beside it what tells a line that was changed.

`metrics.crc32` holds for each line of `metrics.jsonl` the CRC-32 of the log up to and with that line, as eight
hexadecimal digits. So a line that differs is found though it still reads as JSON, and a number of the list that was
itself damaged is told from a damaged line: all that follow still fit. Logs of earlier versions have no such list.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.checkpoints.layout import name_sums
from speechssl.parsing import parsing, read_bytes, shorten

MAX_LOG_BYTES = 2**30
"""Longest log that is read: 1 GiB, more than a million updates."""

MAX_LINE_BYTES = 2**20
"""Longest line of a log: 1 MiB."""

SUM_BYTES = 8
"""Digits of a checksum; with its newline each has the same place in the list, whatever became of the others."""

MAX_INTEGER = 2**53
"""Largest whole number that is one in every reader of JSON."""

WORDS = frozenset({"split", "reason"})
"""Keys of a record that hold text; `ids` holds a list of texts, and all others numbers or lists of numbers."""


@dataclass(frozen=True)
class Log:
    """What of a log is whole.

    Attributes:
        records: its lines as values.
        lines: the same as bytes, each with its end.
        problem: what is wrong with the line after them, as a clause; empty where none is. A last line without its end
            is no problem: it was being written.
    """

    records: list[dict[str, Any]]
    lines: list[bytes]
    problem: str = ""


def add_sum(total: int, line: bytes) -> tuple[int, bytes]:
    """Give the CRC-32 of a log with one more line, and the line for its list of checksums."""
    total = zlib.crc32(line, total)
    return total, b"%08x\n" % total


def read_log(path: Path) -> Log:
    """Read a log up to where it is damaged; an empty one where there is no file.

    Raises:
        DataError: it is no regular file, cannot be read or is too long; or its list of checksums is.
    """
    with parsing(str(path), "the log of a run"):
        lines = [line + b"\n" for line in _read(path, MAX_LOG_BYTES).split(b"\n")[:-1]]
    sums = name_sums(path)
    with parsing(str(sums), "a list of checksums"):
        content = _read(sums, MAX_LOG_BYTES)
    stored = [content[place : place + SUM_BYTES] for place in range(0, len(content) - SUM_BYTES, SUM_BYTES + 1)]
    num_same = _count_same(lines, stored)
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if number > num_same:
            return Log(records, lines[: number - 1], f"line {number} is not what was written (its CRC-32 differs)")
        try:
            records.append(take_record(line))
        except (ValueError, RecursionError) as error:
            return Log(records, lines[: number - 1], f"line {number} is damaged ({shorten(error)})")
    return Log(records, lines)


def take_record(line: bytes) -> dict[str, Any]:
    """Read one line of a log.

    Raises:
        ValueError, RecursionError: it is no record: an object with an `update`, whose values are numbers, lists of
            them, or null.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"it has more than {MAX_LINE_BYTES} bytes")
    record = json.loads(line.decode("utf-8"))
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    update = record.get("update")
    if not isinstance(update, int) or isinstance(update, bool) or update < 0:
        raise ValueError("it has no `update`")
    wrong = next((key for key, value in record.items() if not _is_right(key, value)), None)
    if wrong is not None:
        raise ValueError(f"its {wrong!r} has a value of another kind")
    return record


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_bytes(path, limit)
    except FileNotFoundError:
        return b""


def _count_same(lines: list[bytes], stored: list[bytes]) -> int:
    """Count the lines up to the last one whose checksum fits: those before it are whole, whatever their own ones say.

    Lines that have none, of an earlier version or because the list was cut, are counted too: nothing speaks against
    them. So are all where not one entry of the list reads.
    """
    total, num_same, has_spoken = 0, 0, False
    for number, (line, entry) in enumerate(zip(lines, stored, strict=False), 1):
        total, own = add_sum(total, line)
        has_spoken |= set(entry) <= set(b"0123456789abcdef")
        if own[:SUM_BYTES] == entry:
            num_same = number
    return num_same if has_spoken and num_same < min(len(lines), len(stored)) else len(lines)


def _is_right(key: str, value: object) -> bool:
    if key in WORDS:
        return isinstance(value, str)
    if key == "ids":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    items = value if isinstance(value, list) else [value]
    return all(_is_number(item) for item in items)


def _is_number(value: object) -> bool:
    """Say whether a value is a number that every reader takes, or null, which stands for one that is not finite."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_INTEGER)
