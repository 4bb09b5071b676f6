from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from speechssl.report.evaluation import describe_evaluation, judge_evaluation, make_evaluation
from speechssl.report.live import Sounds, choose_evenly
from speechssl.report.recognition import (
    Transcript,
    count_errors,
    describe_interval,
    describe_recogniser,
    read_transcripts,
)
from speechssl.report.run_folder import RunFolder, load_run


def row(update: int, wer: float, cer: float, loss: float | None = 1.0) -> dict[str, Any]:
    return {"update": update, "split": "valid", "wer": wer, "cer": cer, "loss": loss}


def test_the_page_is_about_the_checkpoint_that_the_trainer_keeps() -> None:
    """Never the state before the first update, and never one with a number that is not finite (null in the log)."""
    cases = {
        ("100.0 %", "82.0 %"): [row(1, 100, 100), row(2, 100, 82), row(3, 101, 60), row(4, 99, 50, math.nan)],
        ("30.0 %", "9.0 %"): [row(0, 10, 4), row(2, 30, 9), row(3, 20, 8, None)],
        (): [row(0, 10, 4)],
    }
    for wanted, rows in cases.items():
        _, stats = describe_recogniser(RunFolder(Path("run"), "finetune", metrics=rows))
        assert tuple(stat.value for stat in stats) == wanted


def test_words_are_paired() -> None:
    cases = {
        ("a b c", "a x c"): [("a", "a"), ("b", "x"), ("c", "c")],
        ("a b c", "a c"): [("a", "a"), ("b", ""), ("c", "c")],
        ("a c", "a b c"): [("a", "a"), ("", "b"), ("c", "c")],
        ("", "a"): [("", "a")],
        ("a b", ""): [("a", ""), ("b", "")],
        ("", ""): [],
    }
    assert {texts: Transcript("", "", *texts).pairs for texts in cases} == cases


def test_errors_are_counted_where_no_table_is_stored(make: SimpleNamespace, tmp_path: Path) -> None:
    transcripts = [Transcript("1", "", "a b", "a c"), Transcript("2", "", "b", "c"), Transcript("3", "", "d", "")]
    (figure,) = count_errors(transcripts, [])
    assert figure.content.rows == [("b", "c", 2), ("d", "∅", 1)]
    assert "2 written as another, 1 left out" in figure.note
    assert count_errors([], []) == []
    run = load_run(make.evaluate(tmp_path / "wer"))
    stored = read_transcripts(run)
    assert [item.num_errors for item in stored] == [3, 1, 0, 2]
    words, letters = count_errors(stored, run.confusions)
    assert words.content.rows[0] == ("BROWN", "BRAUN", 4) and letters.content.rows == [("E", "A", 7)]


def test_an_evaluation_says_how_texts_were_decoded_and_whether_to_trust_it(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    run = load_run(make.evaluate(tmp_path / "wer"))
    assert describe_evaluation(run)[0].endswith("as sums over the whole test set.")
    assert judge_evaluation(run).level == "doubt" and "too few speakers" in judge_evaluation(run).text
    run.result.update(decoding="beam", beam={"beam_width": 50, "lm": "4.arpa"}, wer=99.5, num_empty=3)
    assert describe_evaluation(run)[0].endswith(", decoded with a beam of 50 and the n-gram 4.arpa.")
    assert judge_evaluation(run).level == "bad" and "3 utterances came out empty" in judge_evaluation(run).text
    run.result["beam"] = {"beam_width": 8}
    assert describe_evaluation(run)[0].endswith(", decoded with a beam of 8 and no language model.")


def test_the_worst_utterances_can_be_heard_where_the_audio_still_is(
    make: SimpleNamespace, tmp_path: Path, manifest: Path
) -> None:
    run = load_run(make.evaluate(tmp_path / "wer"))
    text = manifest.read_text()
    for number, name in enumerate(("7-1-0", "7-1-1")):
        text = text.replace(f"u{number}\t", f"{name}\t")
    manifest.write_text(text)
    run.test_sets.append(str(manifest))
    (tmp_path / "1.wav").unlink()
    worst = make_evaluation(run, Sounds())[1].figures[0].content.transcripts
    assert [bool(item.sound) for item in worst] == [True, False, False, False]
    speakers = make_evaluation(run, Sounds())[0].figures[-1].content
    assert speakers.rows == [("7", 12, 33.3), ("9", 7, 28.6)]


def test_escapes_of_the_table_are_undone(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.evaluate(tmp_path / "wer")
    (folder / "utterances.tsv").write_text("id\tspeaker\treference\thypothesis\na\\tb\t\tx\\\\ny\tx\n")
    assert read_transcripts(load_run(folder)) == [Transcript("a\tb", "", "x\\ny", "x")]


def test_choices_are_even_and_in_order() -> None:
    assert choose_evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert choose_evenly([5, 6], 4) == [5, 6]
    assert choose_evenly([], 4) == []


def test_intervals_name_their_unit_and_doubt() -> None:
    interval = {"low": 25.0, "high": 40.5, "unit": "speaker", "count": 4, "reliable": False}
    assert describe_interval(interval) == "95 %: 25.0 to 40.5, over 4 speakers, too few to trust"
    assert describe_interval(interval | {"reliable": True, "count": 40}) == "95 %: 25.0 to 40.5, over 40 speakers"
    assert describe_interval({"low": None, "high": None, "unit": "speaker", "count": 1}) == "no interval from 1 speaker"
    assert describe_interval(None) == ""
