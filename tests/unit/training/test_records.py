"""A changed line of a log is found, and a changed checksum is not taken for one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from speechssl.checkpoints.layout import METRICS
from speechssl.errors import DataError
from speechssl.training.metrics import JsonLinesWriter
from speechssl.training.records import MAX_LINE_BYTES, name_sums, read_log, take_record
from tests.cases import each_case


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return make_log(tmp_path)


def make_log(folder: Path) -> Path:
    writer = JsonLinesWriter(folder, 0)
    for update in range(1, 6):
        writer.write({"update": update, "split": "train", "loss": 4.0 / update, "hard_perplexity": [3.0, float("nan")]})
    writer.close()
    return folder / METRICS


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_every_flipped_bit_of_a_log_is_found_and_what_precedes_it_is_kept(log: Path) -> None:
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    for place in range(len(whole) - 1):
        flip(log, place, place % 8)
        found = read_log(log)
        assert found.lines == lines[: whole[:place].count(b"\n")]
        assert "is not what was written (its CRC-32 differs)" in found.problem
        log.write_bytes(whole)
    assert read_log(log).problem == "" and len(read_log(log).records) == 5


def test_a_flipped_bit_of_the_checksums_costs_nothing(log: Path) -> None:
    sums = name_sums(log)
    whole = sums.read_bytes()
    # The last one has none after it that speaks for its line.
    for place in range(len(whole) - 9):
        flip(sums, place, place % 7)
        assert (len(read_log(log).records), read_log(log).problem) == (5, "")
        sums.write_bytes(whole)


@each_case("content", [b"", b"\0" * 45, None, "cut"])
def test_a_log_without_checksums_is_read_all_the_same(tmp_path: Path, content: bytes | str | None) -> None:
    """After a power cut there may be zeros; one that a kill left short by lines is trusted no less."""
    log = make_log(tmp_path)
    whole = name_sums(log).read_bytes()
    name_sums(log).unlink()
    if content is not None:
        name_sums(log).write_bytes(whole[:18] if isinstance(content, str) else content)
    assert (len(read_log(log).records), read_log(log).problem) == (5, "")
    log.write_bytes(log.read_bytes() + b"nonsense\n" + b'{"update": 7}\n')
    found = read_log(log)
    assert len(found.records) == 5 and "line 6 is damaged (Expecting value" in found.problem


def test_a_half_written_line_is_no_damage(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-3])
    found = read_log(log)
    assert (len(found.records), found.problem) == (4, "")


@each_case(
    "line",
    [
        "[]", "{}", '{"update": "1"}', '{"update": true}', '{"update": -1}', '{"update": 1.5}', "1", "[" * 100_000,
        '{"update": 1, "loss": "4.0"}', '{"update": 1, "loss": {"a": 1}}', '{"update": 1, "loss": [[1]]}',
        '{"update": 1, "split": 3}', '{"update": 1, "ids": "a"}', '{"update": 1, "loss": 1' + "0" * 400 + "}",
        '{"update": ' + "1" * 5000 + "}", '{"update": 1, "loss": ' + " " * MAX_LINE_BYTES + "1}",
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(line: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        take_record(line.encode())


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("folder", "pipe", "loop"):
        with pytest.raises(DataError, match="must be the log of a run, but cannot be read"):
            read_log(tmp_path / name)
    assert read_log(tmp_path / "none").records == []
