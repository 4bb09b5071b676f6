"""Error rates of a corpus and where its errors are."""

from __future__ import annotations

import jiwer
import pytest

from speechssl.errors import DataError
from speechssl.evaluation.wer import Edit, SpeakerScore, compute_error_rates, score

SAID = ["THE CAT SAT", "A DOG", "IT'S  TEA", ""]
HEARD = ["THE CAT SAD", "DOG", "IT'S HOT TEA", "UM"]


def test_rates_are_corpus_sums() -> None:
    scores = score(SAID, HEARD)
    assert scores.num_words == 7
    assert scores.wer == pytest.approx(100 * 4 / 7)
    assert scores.cer == pytest.approx(100 * (1 + 2 + 4 + 2) / (11 + 5 + 8))
    assert (scores.wer, scores.cer) == compute_error_rates(SAID, HEARD)


def test_rates_agree_with_jiwer_and_with_the_listed_edits() -> None:
    said, heard = SAID[:3], HEARD[:3]
    scores = score(said, heard)
    assert scores.wer == pytest.approx(100 * jiwer.wer(said, heard))
    assert sum(len(u.word_edits) for u in scores.utterances) / scores.num_words == pytest.approx(scores.wer / 100)
    assert sum(len(u.letter_edits) for u in scores.utterances) / scores.num_letters == pytest.approx(scores.cer / 100)


def test_confusions_name_both_sides() -> None:
    scores = score(SAID, HEARD)
    words = scores.count_word_confusions()
    assert words[Edit("substitution", "SAT", "SAD")] == 1
    assert words[Edit("deletion", "A", "")] == 1
    assert words[Edit("insertion", "", "HOT")] == words[Edit("insertion", "", "UM")] == 1
    assert scores.count_letter_confusions()[Edit("substitution", "T", "D")] == 1


def test_worst_come_first_and_ties_keep_their_order() -> None:
    scores = score(["A B", "C", "D E F", "G"], ["A B", "X", "", "Y"], ids=["a", "b", "c", "d"])
    assert [u.id for u in scores.sort_worst_first()] == ["c", "b", "d", "a"]


def test_speakers_are_summed_apart() -> None:
    scores = score(["A B", "C D", "E"], ["A X", "C D", ""], speakers=["s2", "s2", "s1"])
    assert scores.score_speakers() == [SpeakerScore("s1", 1, 1, 100.0, 100.0), SpeakerScore("s2", 2, 4, 25.0, 100 / 6)]
    interval = scores.compute_wer_interval(100, seed=1)
    assert (interval.unit, interval.count, interval.reliable) == ("speaker", 2, False)
    assert interval.low == 25.0
    assert interval.high == 100.0


def test_one_missing_speaker_makes_utterances_the_unit() -> None:
    scores = score(["A", "B"], ["A", "X"], speakers=["s", None])
    assert scores.score_speakers() == []
    assert scores.compute_cer_interval(100, seed=1).unit == "utterance"


def test_a_rate_can_pass_100_percent() -> None:
    assert score(["A"], ["A B C"]).wer == 200.0


def test_references_without_words_are_refused() -> None:
    with pytest.raises(DataError, match=r"`data\.valid` must have words"):
        score(["", "  "], ["A", ""], key="data.valid")
