from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from speechssl.report.evaluation import describe_interval
from speechssl.report.run_folder import load_run
from speechssl.report.transcripts import (
    Transcript,
    choose_some,
    count_errors,
    draw_confusions,
    draw_transcripts,
    pair_words,
    read_transcripts,
)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "pairs"),
    [
        ("a b c", "a x c", [("a", "a"), ("b", "x"), ("c", "c")]),
        ("a b c", "a c", [("a", "a"), ("b", ""), ("c", "c")]),
        ("a c", "a b c", [("a", "a"), ("", "b"), ("c", "c")]),
        ("", "a", [("", "a")]),
        ("a b", "", [("a", ""), ("b", "")]),
        ("", "", []),
    ],
)
def test_words_are_paired(reference: str, hypothesis: str, pairs: list[tuple[str, str]]) -> None:
    assert pair_words(reference, hypothesis) == pairs


def test_each_error_is_marked_by_its_kind_and_text_is_escaped() -> None:
    picture = draw_transcripts([Transcript("<id>", "7", "A B <C> D", "A X <C> E D")], "Title", "")
    assert "<C>" not in picture
    assert "<id>" not in picture
    body = picture.split('<ol class="gloss">')[1]
    assert 'class="pair sub"><span>B</span><span>X</span>' in body
    assert 'class="pair ins"><span>–</span><span>E</span>' in body
    assert "2 of 4 words wrong" in body
    assert "capitals" in body


def test_no_transcripts_no_figure() -> None:
    assert draw_transcripts([], "Title", "") == ""
    assert draw_confusions([], []) == ""


def test_confusions_are_counted_where_no_table_is_stored() -> None:
    transcripts = [Transcript("1", "", "a b", "a c"), Transcript("2", "", "b", "c"), Transcript("3", "", "d", "d")]
    picture = draw_confusions(transcripts, [])
    assert "<b>b</b> → <b>c</b>" in picture
    assert '<span class="count">2</span>' in picture


def test_stored_tables_are_read(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.evaluate(tmp_path / "wer"))
    transcripts = read_transcripts(run)
    assert [count_errors(item) for item in transcripts] == [3, 1, 0, 2]
    picture = draw_confusions(transcripts, run.confusions)
    assert "Commonest letter errors" in picture
    assert '<span class="count">4</span>' in picture


def test_escapes_of_the_table_are_undone(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.evaluate(tmp_path / "wer")
    (folder / "utterances.tsv").write_text("id\tspeaker\treference\thypothesis\na\\tb\t\tx\\\\ny\tx\n")
    assert read_transcripts(load_run(folder)) == [Transcript("a\tb", "", "x\\ny", "x")]


def test_some_of_many_are_chosen_in_order() -> None:
    many = [Transcript(str(k), "", "", "") for k in range(100)]
    chosen = [int(item.id) for item in choose_some(many)]
    assert chosen[0] == 0
    assert chosen[-1] == 99
    assert chosen == sorted(set(chosen))
    assert choose_some(many[:2]) == many[:2]
    assert choose_some([]) == []


def test_intervals_name_their_unit_and_doubt() -> None:
    interval = {"low": 25.0, "high": 40.5, "unit": "speaker", "count": 4, "reliable": False}
    assert describe_interval(interval) == "95 %: 25.0 to 40.5, over 4 speakers, too few to trust"
    assert describe_interval(interval | {"reliable": True, "count": 40}) == "95 %: 25.0 to 40.5, over 40 speakers"
    assert describe_interval({"low": None, "high": None, "unit": "speaker", "count": 1}) == "no interval from 1 speaker"
    assert describe_interval(None) == ""
