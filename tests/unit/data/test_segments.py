"""Segments: each format gives the same, as other people's programs write it, and a wrong one a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechssl.data.segments import Segments, read_segments
from speechssl.errors import DataError
from tests.cases import each_case

SPANS = [("a", 0.0, 0.5, "HE"), ("a", 0.5, 1.25, 'S"AID'), ("b", 0.25, 2.0, "ÑO")]


def list_spans(segments: Segments) -> list[tuple[str, float, float, str]]:
    found = []
    for name in segments.ids:
        times, labels = segments.find(name)
        found += [(name, float(s), float(e), label) for (s, e), label in zip(times, labels, strict=True)]
    return found


def write(folder: Path, name: str) -> Path:
    """Write the spans, the last one first, with remarks where the format has them."""
    rows, path = SPANS[::-1], folder / name
    if name.endswith(".ctm"):
        path.write_text(";; a remark\n\n" + "".join(f"{n} 1 {s} {e - s} {w} 0.9\n" for n, s, e, w in rows))
    elif name.endswith(".rttm"):
        lines = "".join(f"SPEAKER {n} 1 {s} {e - s} <NA> <NA> {w} <NA> <NA>\n" for n, s, e, w in rows)
        path.write_text(f"SPKR-INFO a 1 <NA> <NA> <NA> unknown HE <NA> <NA>\n{lines}")
    elif name.endswith(".parquet"):
        columns = dict(zip(("id", "start", "end", "label"), zip(*rows, strict=True), strict=True))
        pq.write_table(pa.table({"more": [1, 2, 3]} | {key: list(value) for key, value in columns.items()}), path)
    elif name.endswith(".tsv"):
        path.write_text("start\tid\tlabel\tend\n" + "".join(f"{s}\t{n}\t{w}\t{e}\n" for n, s, e, w in rows))
    else:
        quoted = (f'{n},{s},{e},"{w}"\n'.replace('S"AID', 'S""AID') for n, s, e, w in rows)
        path.write_text("id,start,end,label\n" + "".join(quoted))
    return path


@each_case("name", ["x.ctm", "x.rttm", "x.parquet", "x.tsv", "x.csv"])
def test_every_format_gives_the_same_sorted(tmp_path: Path, name: str) -> None:
    segments = read_segments(str(write(tmp_path, name)))
    assert list_spans(segments) == SPANS
    assert segments.find("nowhere")[0].shape == (0, 2)
    assert segments.digest == read_segments(str(write(tmp_path, "again.tsv"))).digest


def test_names_with_escapes_are_those_that_transcribe_was_given(tmp_path: Path) -> None:
    (tmp_path / "x.ctm").write_text("my%20clip 1 0 1 OH\n")
    assert list(read_segments(str(tmp_path / "x.ctm")).ids) == ["my clip"]


def test_a_table_need_not_have_labels(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("id\tstart\tend\n007\t0\t1\n")
    assert list(read_segments(str(tmp_path / "x.tsv")).ids) == ["007"]
    assert read_segments(str(tmp_path / "x.tsv")).find("007")[1] == [None]


LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "HE"
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "S""AID"
        intervals [3]:
            xmin = 1.25
            xmax = 2
            text = " "
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 2
        points: size = 1
        points [1]:
            number = 0.7
            mark = "12"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2
            text = "h 1 2"
"""


@each_case("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_one_tier_of_a_textgrid_without_what_has_no_label(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.TextGrid").write_bytes(LONG.encode(encoding))
    assert list_spans(read_segments(str(tmp_path / "a.TextGrid"), "words")) == SPANS[:2]
    assert list_spans(read_segments(str(tmp_path / "a.TextGrid"), "phones")) == [("a", 0.0, 2.0, "h 1 2")]
    for tier, words in (("", "''"), ("clicks", "'clicks'")):
        with pytest.raises(DataError, match=f"`tier` must name a tier of .*, but is {words}: it has words, phones"):
            read_segments(str(tmp_path / "a.TextGrid"), tier)


def test_a_folder_of_textgrids_is_named_as_its_audio(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "a.TextGrid").write_text(LONG)
    (tmp_path / "b.textgrid").write_text(LONG)
    assert list(read_segments(str(tmp_path), "words").ids) == ["b", "s1/a"]


@each_case("form", ["Save as text file...", "Save as short text file..."])
def test_praats_own_files(tmp_path: Path, form: str) -> None:
    parselmouth = pytest.importorskip("parselmouth")
    call = parselmouth.praat.call
    grid = call("Create TextGrid", 0.0, 2.0, "words clicks", "clicks")
    call(grid, "Insert boundary", 1, 0.5)
    call(grid, "Insert boundary", 1, 1.25)
    for number, text in enumerate(("HE", 'S"AID'), 1):
        call(grid, "Set interval text", 1, number, text)
    call(grid, "Insert point", 2, 0.7, "12")
    call(grid, form, str(tmp_path / "a.TextGrid"))
    assert list_spans(read_segments(str(tmp_path / "a.TextGrid"))) == SPANS[:2]


def test_what_no_file_of_segments_is(tmp_path: Path) -> None:
    cases = {
        "x.txt": ("", r"`segments` must end in \.ctm, \.rttm, \.textgrid, \.tsv, \.csv, \.parquet or be a folder"),
        "x.ctm": ("a 1 0.5\n", r"must be a file of segments \(ctm\), but .*line 1 has 3 fields"),
        "y.ctm": ("a 1 half 1 b\n", "could not convert"),
        "z.ctm": (";; nothing\n", "`segments` must hold segments, but"),
        "n.ctm": ("a 1 nan 1 b\n", "must start at 0 s or later and end after that"),
        "e.ctm": ("a 1 3 0 b\n", r"has one of a from 3 to 3 s"),
        "x.rttm": ("SPEAKER a 1 0 1\n", "line 1 has 5 fields"),
        "x.tsv": ("id\tstart\n", "it has no column end"),
        "y.tsv": ("id\tstart\tend\na\t0\t\n", "must have a value for id, start and end"),
        "x.parquet": ("PAR1", r"must be a file of segments \(parquet\)"),
        "x.TextGrid": ('File type = "ooTextFile"\n', "does not begin as one"),
        "y.TextGrid": (LONG[:400], "is missing"),
        "z.TextGrid": (LONG.replace('"phones"', '"words"'), "two of its tiers have one name"),
    }
    for name, (text, words) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=words):
            read_segments(str(tmp_path / name), "words" if name.endswith("TextGrid") else "")
    with pytest.raises(DataError, match="`tier` must be left out where"):
        read_segments(str(tmp_path / "x.ctm"), "words")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"a folder of TextGrids, but .*empty holds none"):
        read_segments(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="cannot be read"):
        read_segments(str(tmp_path / "nowhere.ctm"))


def test_a_million_segments_are_found_by_name(tmp_path: Path) -> None:
    count = 1_000_000
    names = [f"u{k // 10:06d}" for k in range(count)]
    starts = np.tile(np.arange(10.0), count // 10)
    pq.write_table(pa.table({"id": names, "start": starts, "end": starts + 1}), tmp_path / "x.parquet")
    segments = read_segments(str(tmp_path / "x.parquet"))
    assert len(segments) == count
    assert segments.find("u054321")[0][:, 0].tolist() == list(range(10))
