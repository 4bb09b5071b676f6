"""Texts in time as files: read back by other people's readers, and cut where people pause."""

from __future__ import annotations

import html
import json
import re
from itertools import pairwise
from pathlib import Path, PurePosixPath

import parselmouth
import pytest
import srt
import webvtt
from parselmouth.praat import call

from speechssl.errors import ConfigError
from speechssl.inference.cues import CUE_S, LINE_LETTERS, PAUSE_S, make_cues
from speechssl.inference.text_formats import SUFFIXES, choose_format, fill_gaps, name_file, render
from speechssl.inference.timed import Span, TimedText
from tests.cases import each_case

AWKWARD = [
    'say "A"',
    "1 --> 2",
    "<i>A & B</i>",
    "ÉTÉ ÑU 東京",
    "it's\x1b[2J",
    "{A / B}",
    "00:00:01,000 --> 00:00:02,000",
]


def make_text(text: str, id: str = "u", word_s: float = 0.4, pause_s: float = 0.1, **keys: object) -> TimedText:
    """Put a text in time: each word as long as the others, and its letters as long as one another."""
    words, characters = [], []
    for k, word in enumerate(text.split()):
        start = 0.2 + k * (word_s + pause_s)
        words.append(Span(word, start, start + word_s, 0.75))
        width = word_s / len(word)
        characters += [Span(c, start + n * width, start + (n + 1) * width, 0.5) for n, c in enumerate(word)]
    end = words[-1].end_s + 0.25 if words else 1.5
    given = {"path": "a.flac", "speaker": "mia", "channel": 0, "duration_s": end, "text": " ".join(text.split())}
    return TimedText(id=id, confidence=0.6, words=tuple(words), characters=tuple(characters), **given | keys)  # type: ignore[arg-type]


def write(texts: list[TimedText], format: str) -> str:
    return "".join(render(iter(texts), format))


TEXTS = [make_text(text, f"id {k}\n{text}") for k, text in enumerate(AWKWARD)] + [make_text("", "empty")]


def show(text: str) -> str:
    """Spell a text as files that people open have it."""
    return text.replace("\x1b", "\\x1b")


def test_subtitles_are_read_by_other_readers() -> None:
    """In all utterances, as if one were played after the other."""
    begins = [sum(text.duration_s for text in TEXTS[:k]) for k in range(len(TEXTS))]
    wanted = [(begin + 0.2, show(text.text)) for begin, text in zip(begins, TEXTS, strict=True) if text.text]
    subtitles = list(srt.parse(write(TEXTS, "srt")))
    assert [item.index for item in subtitles] == list(range(1, len(wanted) + 1))
    assert [(item.start.total_seconds(), item.content) for item in subtitles] == [
        (pytest.approx(start, abs=6e-4), text) for start, text in wanted
    ]
    captions = webvtt.from_string(write(TEXTS, "vtt")).captions
    assert [(item.start_in_seconds, html.unescape(item.raw_text)) for item in captions] == [
        (int(start), text) for start, text in wanted
    ]
    assert [item.end for item in captions] == [
        re.sub(",", ".", srt.timedelta_to_srt_timestamp(s.end)) for s in subtitles
    ]
    assert write([TEXTS[-1]], "srt") == "" and not webvtt.from_string(write([TEXTS[-1]], "vtt")).captions


def test_a_textgrid_is_read_by_praat(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_text(write(TEXTS, "textgrid"), encoding="utf-8")
    grid = parselmouth.read(str(path))
    total = sum(text.duration_s for text in TEXTS)
    assert call(grid, "Get end time") == pytest.approx(total)
    read = {}
    for tier in range(1, 5):
        count = call(grid, "Get number of intervals", tier)
        labels = [call(grid, "Get label of interval", tier, k) for k in range(1, count + 1)]
        starts = [call(grid, "Get start time of interval", tier, k) for k in range(1, count + 1)]
        read[call(grid, "Get tier name", tier)] = [(label, s) for label, s in zip(labels, starts, strict=True) if label]
    assert [label for label, _ in read["text"]] == [show(text.text) for text in TEXTS if text.text]
    assert [label for label, _ in read["id"]] == [
        text.id.replace("\n", "\\n").replace("\x1b", "\\x1b") for text in TEXTS
    ]
    assert [label for label, _ in read["words"]] == [show(word.text) for text in TEXTS for word in text.words]
    assert [label for label, _ in read["characters"]] == [show(c.text) for text in TEXTS for c in text.characters]
    assert read["words"][0][1] == pytest.approx(0.2)
    one = tmp_path / "one.TextGrid"
    one.write_text(write([TEXTS[-1]], "textgrid"), encoding="utf-8")
    assert call(parselmouth.read(str(one)), "Get number of intervals", 3) == 1


def test_json_has_everything() -> None:
    found = json.loads(write(TEXTS, "json"))
    assert [(row["id"], row["text"]) for row in found] == [(text.id, text.text) for text in TEXTS]
    assert found[0]["words"][0] == {"text": "say", "start_s": 0.2, "end_s": 0.6, "confidence": 0.75}
    assert "".join(c["text"] for c in found[3]["characters"]) == "ÉTÉÑU東京"
    assert json.loads(write([], "json")) == []
    assert "\x1b" not in write(TEXTS, "json")


def test_nists_formats_have_a_line_a_word_and_a_line_a_segment() -> None:
    """Fields by white space, remarks by `;;`, as SCTK's manual says."""
    lines = [line.split() for line in write(TEXTS, "ctm").splitlines() if not line.startswith(";;")]
    assert [fields[4] for fields in lines] == [show(word.text) for text in TEXTS for word in text.words]
    assert all(len(fields) == 6 and fields[1] == "1" for fields in lines)
    assert lines[0] == ["id%200%0Asay%20%22A%22", "1", "0.200", "0.400", "say", "0.7500"]
    assert write(TEXTS, "ctm").endswith(";; empty 1: no words\n")
    segments = [line.split(maxsplit=5) for line in write(TEXTS, "stm").splitlines()]
    assert [fields[5:] for fields in segments] == [[show(text.text)] if text.text else [] for text in TEXTS]
    assert segments[-1] == ["empty", "1", "mia", "0.000", "1.500"]
    odd = make_text("A", ";;x", speaker="", channel=2)
    assert write([odd], "stm") == "%3B%3Bx 2 unknown 0.000 0.850 A\n"


def test_a_long_segment_of_an_stm_is_cut_at_pauses() -> None:
    text = make_text(" ".join(f"W{k}" for k in range(600)))
    segments = [line.split(maxsplit=5) for line in write([text], "stm").splitlines()]
    assert " ".join(fields[5] for fields in segments) == text.text
    times = [(float(fields[3]), float(fields[4])) for fields in segments]
    assert times[0][0] == 0.0 and times[-1][1] == pytest.approx(text.duration_s, abs=1e-3)
    assert all(left[1] == right[0] for left, right in pairwise(times))
    assert max(last - first for first, last in times) < 31 and len(times) < 30


def test_a_table_is_as_it_was() -> None:
    assert write([make_text("A B", "x\ty\\z"), make_text("", "e")], "tsv") == "x\\ty\\\\z\tA B\ne\t\n"


@each_case("pause_s", [0.0, 0.06, 0.3])
@each_case("length", [1, 3, 9, 30, 60])
def test_cues_are_of_sensible_length(pause_s: float, length: int) -> None:
    words = make_text(
        " ".join(("ABCDEFGHIJ" * 6)[:length] if k % 7 else "AB" for k in range(200)), pause_s=pause_s
    ).words
    cues = make_cues(words)
    assert " ".join(line for cue in cues for line in cue.lines) == " ".join(word.text for word in words)
    assert all(len(cue.lines) <= 2 for cue in cues)
    assert all(len(line) <= LINE_LETTERS or " " not in line for cue in cues for line in cue.lines)
    assert all(cue.end_s - cue.start_s <= CUE_S for cue in cues)
    assert all(left.end_s <= right.start_s for left, right in pairwise(cues))


def test_a_pause_begins_a_cue_and_a_cue_stands_a_second() -> None:
    words = [
        Span("A", 0.0, 0.1, 1.0),
        Span("B", 0.2, 0.3, 1.0),
        Span("C", 0.3 + PAUSE_S, 1.4, 1.0),
        Span("D", 1.5, 1.6, 1.0),
    ]
    words += [Span("E", 4.0, 4.02, 1.0)]
    cues = make_cues(words)
    assert [cue.lines for cue in cues] == [("A B",), ("C D",), ("E",)]
    assert [cue.end_s for cue in cues] == pytest.approx([1.0, 2.3, 5.0])
    longest = make_cues([Span("W" * 30, k * 1.0 + (0.3 if k == 2 else 0.0), k + 0.9, 1.0) for k in range(4)])
    assert [len(cue.lines) for cue in longest] == [2, 2], "cut at the longest pause"


def test_intervals_leave_no_gap_and_do_not_overlap() -> None:
    assert fill_gaps([(0.5, 1.0, "a"), (0.9, 0.95, "in a"), (0.98, 2.5, "b")], 2.0) == [
        (0.0, 0.5, ""), (0.5, 1.0, "a"), (1.0, 2.0, "b")
    ]  # fmt: skip
    assert fill_gaps([], 1.0) == [(0.0, 1.0, "")]


def test_files_are_named_by_ids_below_out() -> None:
    ids = [
        "a/b",
        "..",
        "a/../../b",
        "/etc/x",
        "",
        "a%2Fb",
        "x\ny",
        "x%0Ay",
        "\u202ea",
        "été",
        "a:b",
        ".hidden",
        "a\\b",
        "%",
    ]
    names = [name_file(id, "srt") for id in ids]
    assert names[0] == PurePosixPath("a/b.srt") and names[9] == PurePosixPath("été.srt")
    assert len(set(names)) == len(ids)
    for name in names:
        assert not name.is_absolute() and ".." not in name.parts
        assert not any(part.startswith(".") for part in name.parts)


def test_the_suffix_decides_where_format_does_not() -> None:
    outs = {"x.srt": "srt", "x.TEXTGRID": "textgrid", "x.TextGrid": "textgrid", "x.txt": "tsv", "x": "tsv", "": "tsv"}
    assert {out: choose_format("", out) for out in outs} == outs
    assert [choose_format(name, "folder") for name in SUFFIXES] == list(SUFFIXES)
    assert choose_format("json", "x.txt") == "json"
    with pytest.raises(ConfigError, match="`format` must be srt, as the suffix of out=x.srt says, or left out, but is"):
        choose_format("json", "x.srt")
