"""What has changed in the data behind a run is said, with the utterances."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from speechssl.checkpoints.layout import DATA
from speechssl.data.manifest import Manifest, Utterance, build_manifest
from speechssl.errors import DataError
from speechssl.training.data_record import check_record, describe_data, write_record
from tests.cases import each_case


def write_rows(folder: Path) -> list[Utterance]:
    rows = []
    for number in range(4):
        path = folder / f"{number}.wav"
        path.write_bytes(bytes(100 + number))
        rows.append(Utterance(f"u{number}", path, 16_000, 1_000 + number, text=f"TEXT {number}"))
    return rows


def describe(rows: list[Utterance], folder: Path, with_texts: bool = True) -> pa.Table:
    return describe_data({"data.train": build_manifest(rows, folder)}, with_texts)


def begin(folder: Path, with_texts: bool = True) -> list[Utterance]:
    rows = write_rows(folder)
    write_record(folder, describe(rows, folder, with_texts))
    return rows


def grow(rows: list[Utterance]) -> list[Utterance]:
    rows[2].path.write_bytes(bytes(500))
    return rows


CHANGES: dict[str, tuple[Callable[[list[Utterance]], list[Utterance]], str]] = {
    "gone": (lambda rows: rows[:1] + rows[2:], r"1 utterances \(u1\) are no longer in it"),
    "new": (lambda rows: [*rows, replace(rows[0], id="v")], r"1 utterances \(v\) are new in it"),
    "order": (lambda rows: rows[::-1], "its utterances are in another order"),
    "length": (lambda rows: [replace(rows[0], num_samples=9), *rows[1:]], r"\(u0\) have another length"),
    "text": (lambda rows: [*rows[:3], replace(rows[3], text="OTHER")], r"\(u3\) have another transcript"),
    "no text": (lambda rows: [*rows[:3], replace(rows[3], text=None)], r"\(u3\) have another transcript"),
    "swapped": (
        lambda rows: [replace(rows[0], path=rows[1].path), replace(rows[1], path=rows[0].path), *rows[2:]],
        r"2 utterances \(u0, u1\) have files of another size",
    ),
    "offset": (lambda rows: [replace(rows[0], offset=5), *rows[1:]], r"\(u0\) begin elsewhere in their files"),
    "channel": (lambda rows: [replace(rows[0], channel=2), *rows[1:]], r"\(u0\) are another channel of their files"),
    "size": (grow, r"\(u2\) have files of another size"),
}


@each_case("change", CHANGES)
def test_what_has_changed_is_named(tmp_path: Path, change: str) -> None:
    rows = begin(tmp_path)
    check_record(tmp_path, describe(rows, tmp_path), {})
    make, told = CHANGES[change]
    with pytest.raises(DataError, match=rf"`data.train` must be the data that the run in .* began with, but .*{told}"):
        check_record(tmp_path, describe(make(rows), tmp_path), {})


def test_transcripts_matter_only_where_they_are_learned(tmp_path: Path) -> None:
    rows = begin(tmp_path, with_texts=False)
    check_record(tmp_path, describe([replace(row, text=None) for row in rows], tmp_path, with_texts=False), {})


def test_files_that_are_gone_or_were_left_out_may_be_others(tmp_path: Path) -> None:
    rows = begin(tmp_path)
    rows[0].path.unlink()
    check_record(tmp_path, describe(rows, tmp_path), {})
    check_record(tmp_path, describe(grow(rows), tmp_path), {"u2": "u2\tpath\treason"})


def test_a_copy_is_told_and_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = begin(tmp_path)
    os.utime(rows[1].path, (1, 1))
    caplog.set_level(logging.WARNING, "speechssl")
    check_record(tmp_path, describe(rows, tmp_path), {})
    (record,) = caplog.records
    assert "files have another time of change than when the run began" in record.message
    assert "1 utterances (u1)" in record.message


@each_case("place", [10, 300])
def test_a_damaged_record_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    rows = begin(tmp_path)
    data = bytearray((tmp_path / DATA).read_bytes())
    data[place : place + 8] = bytes(8)
    (tmp_path / DATA).write_bytes(data)
    caplog.set_level(logging.WARNING, "speechssl")
    check_record(tmp_path, describe(rows, tmp_path), {})
    assert "a whole record of the data" in caplog.text


def test_a_link_in_its_way_is_not_followed(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".{DATA}.part").symlink_to("precious")
    write_record(tmp_path, describe(rows, tmp_path))
    assert (tmp_path / "precious").read_text() == "mine"
    check_record(tmp_path, describe(rows, tmp_path), {})


def test_the_first_record_stays(tmp_path: Path) -> None:
    rows = begin(tmp_path)
    before = (tmp_path / DATA).read_bytes()
    write_record(tmp_path, describe(rows[:2], tmp_path))
    assert (tmp_path / DATA).read_bytes() == before


def test_many_rows_are_compared_within_seconds(tmp_path: Path) -> None:
    count = 100_000
    columns = {
        "id": [f"{n % 2000}-{n:09d}" for n in range(count)],
        "path": [f"train/{n % 2000}/{n:09d}.flac" for n in range(count)],
        "sample_rate": np.full(count, 16_000),
        "num_samples": np.arange(count) + 16_000,
    }
    manifest = Manifest(pa.table(columns), tmp_path, "large")
    start = time.process_time()
    table = describe_data({"data.train": manifest}, with_texts=False)
    write_record(tmp_path, table)
    check_record(tmp_path, table, {})
    seconds = time.process_time() - start
    assert seconds < 3.0
    assert (tmp_path / DATA).stat().st_size < 4 * 2**20
