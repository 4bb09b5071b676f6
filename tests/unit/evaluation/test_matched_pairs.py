"""Alignments and segments as NIST's sclite and sc_stats have them, and figures as jiwer's."""

from __future__ import annotations

import json
import shutil

import jiwer
import pytest
from scipy import stats

from speechssl.evaluation.matched_pairs import Alignment, align_words, count_segment_errors
from speechssl.evaluation.statistics import compute_matched_pairs
from speechssl.evaluation.wer import score
from tests.cases import each_case
from tests.unit.evaluation.sclite import GOLDENS, TOOLS, make_pairs, run_sclite


def align(said: str, heard: str) -> Alignment:
    return align_words(said.split(), heard.split())


def test_counts_of_1000_pairs_are_those_of_sclite_and_errors_those_of_jiwer() -> None:
    goldens, (references, *sides) = json.loads(GOLDENS.read_text()), make_pairs()
    for heard, counted in zip(sides, goldens["counts"], strict=True):
        assert [list(align(*pair).counts) for pair in zip(references, heard, strict=True)] == counted
        scores, given = score(references, heard), (list(references), list(heard))
        words, letters = jiwer.process_words(*given), jiwer.process_characters(*given)
        assert scores.wer == pytest.approx(100 * words.wer, rel=1e-12)
        assert scores.cer == pytest.approx(100 * letters.cer, rel=1e-12)
        kinds = [edit.kind for item in scores.utterances for edit in item.word_edits]
        assert [kinds.count(kind) for kind in ("substitution", "deletion", "insertion")] == [
            words.substitutions, words.deletions, words.insertions,
        ]  # fmt: skip
        # sclite pays less for a gap than for a substitution, so it has a few errors more.
        assert 0 <= sum(map(sum, counted)) - len(kinds) <= 0.01 * len(kinds)


def test_the_matched_pairs_test_is_that_of_sc_stats() -> None:
    goldens, (references, *sides) = json.loads(GOLDENS.read_text()), make_pairs()
    segments = [
        segment
        for said, *heard in zip(references, *sides, strict=True)
        for segment in count_segment_errors(*(align(said, text) for text in heard))
    ]
    found = compute_matched_pairs(segments)
    assert found.num_segments == goldens["segments"]
    assert found.z == pytest.approx(goldens["z"], abs=5e-4)
    assert found.mean == pytest.approx(goldens["mean"], abs=5e-4)
    alone = stats.ttest_rel(*zip(*segments, strict=True))
    assert found.z == pytest.approx(alone.statistic, rel=1e-9)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(alone.statistic)), rel=1e-9)


@pytest.mark.skipif(not shutil.which("sclite", path=TOOLS), reason="sclite is not installed (Debian's package sctk)")
def test_the_goldens_are_what_sclite_says() -> None:
    assert run_sclite() == json.loads(GOLDENS.read_text())


@each_case(
    "said, heard, marks, insertions",
    [
        ("a b c", "a b c", "CCC", (0, 0, 0, 0)),
        ("a b c", "a x c", "CSC", (0, 0, 0, 0)),
        ("a b c", "x a c y", "CDC", (1, 0, 0, 1)),
        ("", "x y", "", (2,)),
        ("a b", "", "DD", (0, 0, 0)),
        ("", "", "", (0,)),
        # Five substitutions, or three insertions and three deletions around two right words: sclite takes these.
        ("p q r a b", "a b u v w", "DDDCC", (0, 0, 0, 0, 0, 3)),
    ],
)
def test_words_are_aligned(said: str, heard: str, marks: str, insertions: tuple[int, ...]) -> None:
    assert align(said, heard) == Alignment(marks, insertions)


@each_case(
    "said, first, second, segments",
    [
        ("a b c d e", "a b c d e", "a b c d e", []),
        ("a b c d e", "x b c d y", "a b c d e", [(1, 0), (1, 0)]),
        ("a b c d e", "x b d e", "a b c d e", [(2, 0)]),
        ("a b c d e", "x b c d e", "a b c d y", [(1, 0), (0, 1)]),
        ("a b c d e", "a b u c d e", "a b c d e", [(1, 0)]),
        ("a b", "a b", "a b u v", [(0, 2)]),
        ("", "u", "u v", [(1, 2)]),
        ("a b c", "x b c", "a b y", [(1, 1)]),
    ],
)
def test_a_segment_ends_with_two_words_that_both_have_right(
    said: str, first: str, second: str, segments: list[tuple[int, int]]
) -> None:
    assert count_segment_errors(align(said, first), align(said, second)) == segments
