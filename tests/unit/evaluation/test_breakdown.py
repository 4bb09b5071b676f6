"""Tables and files of errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from speechssl.evaluation import breakdown
from speechssl.evaluation.wer import Scores, score


@pytest.fixture
def scores() -> Scores:
    said = ["THE CAT SAT", "THE CAT", "A\u2003DOG"]
    heard = ["THE BAT SAT", "UM THE BAT", ""]
    return score(said, heard, speakers=["s1", "s1", "s2"], ids=["a", "b", "c\td"])


def test_columns_are_aligned() -> None:
    lines = breakdown.format_table(("x", "long"), [("word", "1"), ("w", "22")]).splitlines()
    assert lines == ["  x     long", "  word  1", "  w     22"]


def test_confusions_are_sorted_by_count_and_a_space_is_visible(scores: Scores) -> None:
    lines = breakdown.format_confusions(scores).splitlines()
    assert lines[0].split("  ")[1].startswith("substitutions of words (2)")
    assert "CAT → BAT ×2" in lines[1]
    assert "deletions of words (2)" in lines[0]
    assert any("␣ ×" in line for line in lines)


def test_worst_shows_both_texts_and_leaves_out_what_is_right(scores: Scores) -> None:
    text = breakdown.format_worst(scores)
    assert "said   THE CAT SAT" in text
    assert "heard  ∅" in text
    assert breakdown.format_worst(score(["A"], ["A"])) == ""
    assert breakdown.format_worst(score(["A"], ["B" * 500])).endswith("B" * 160 + "…")


def test_speakers_have_a_line_each(scores: Scores) -> None:
    lines = breakdown.format_speakers(scores.score_speakers()).splitlines()
    assert lines[1].split() == ["s1", "2", "5", "60.0", "27.8"]
    assert lines[2].split() == ["s2", "1", "2", "100.0", "100.0"]


def test_unknown_letters_say_what_they_count_as() -> None:
    lines = breakdown.format_unknown(Counter({"É": 3, ",": 5})).splitlines()
    assert lines[1].split(None, 3) == ["','", "U+002C", "5", "separates words"]
    assert lines[2].split() == ["'É'", "U+00C9", "3", "error"]


def test_utterance_file_is_worst_first_and_escaped(scores: Scores, tmp_path: Path) -> None:
    breakdown.write_utterances(scores, tmp_path / "u.tsv")
    header, *rows = [line.split("\t") for line in (tmp_path / "u.tsv").read_text(encoding="utf-8").splitlines()]
    assert [row[0] for row in rows] == ["c\\td", "b", "a"]
    first = dict(zip(header, rows[0], strict=True))
    assert (first["word_errors"], first["num_words"], first["reference"], first["hypothesis"]) == (
        "2",
        "2",
        "A DOG",
        "",
    )


def test_confusion_file_counts_every_edit(scores: Scores, tmp_path: Path) -> None:
    breakdown.write_confusions(scores, tmp_path / "c.tsv")
    rows = [line.split("\t") for line in (tmp_path / "c.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert rows[0] == ["word", "substitution", "CAT", "BAT", "2"]
    total = sum(int(row[4]) for row in rows if row[0] == "letter")
    assert total == sum(len(utterance.letter_edits) for utterance in scores.utterances)
