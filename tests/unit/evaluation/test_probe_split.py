"""Groups stay on one side, labels on both, and what the data confounds is said."""

from __future__ import annotations

import re

import numpy as np
import pytest

from speechssl.errors import DataError
from speechssl.evaluation.probe_split import (
    check_folds,
    check_leak,
    describe_confound,
    find_kind,
    hold_out,
    leave_groups_out,
)
from tests.cases import each_case


@each_case(
    "label, values, kind",
    [
        ("speaker", [str(k) for k in range(100, 200)], "identification"),
        ("digit", list("0123456789"), "identification"),
        ("sex", ["F", "M"], "identification"),
        ("age", [str(k) for k in range(6, 40)], "regression"),
        ("score", ["1", "2.5"], "regression"),
        ("room", [str(k) for k in range(30)] + ["hall"], "identification"),
    ],
)
def test_numbers_that_measure_are_told_as_numbers(label: str, values: list[str], kind: str) -> None:
    assert find_kind(label, values) == kind


@each_case("most", [2, 3, 5, 100])
def test_each_group_is_left_out_once_and_is_never_on_both_sides(most: int) -> None:
    groups = [str(k % 5) for k in range(23)]
    folds = leave_groups_out(groups, most)
    assert len(folds) == min(most, 5)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(23))
    for fold in folds:
        assert not {groups[row] for row in fold.train} & {groups[row] for row in fold.test}
        assert len(fold.train) + len(fold.test) == 23


def test_a_group_on_both_sides_is_refused() -> None:
    check_leak("speaker", ["a", "b"], ["c"])
    with pytest.raises(DataError, match=r"`data\.test` must have no speaker of data\.train, but has 1: b \(group=id"):
        check_leak("speaker", ["a", "b"], ["b", "c"])


def test_a_label_that_one_group_alone_has_is_refused() -> None:
    labels, groups = ["x", "y", "x", "z"], ["a", "a", "b", "b"]
    with pytest.raises(DataError, match=r"`group` must leave some of every word .* all of y is held out with room a"):
        check_folds(leave_groups_out(groups, 9), "word", labels, "room", groups)
    check_folds(leave_groups_out(groups, 9), "word", ["x", "y", "x", "y"], "room", groups)


def test_what_chooses_a_rate_is_of_other_groups_and_of_every_label() -> None:
    groups = [str(k // 4) for k in range(80)]
    labels = ["child" if int(group) < 5 else "adult" for group in groups]
    division = hold_out(labels, groups, 1)
    assert division is not None
    kept, held = ({groups[row] for row in rows} for rows in (division.train, division.test))
    assert len(held) == 4 and not kept & held
    assert {labels[row] for row in division.test} == {labels[row] for row in division.train} == {"child", "adult"}
    digits = [str(k % 4) for k in range(80)]
    mixed = hold_out(digits, groups, 1)
    assert mixed is not None
    assert len({groups[row] for row in mixed.test}) == 4
    assert not {groups[row] for row in mixed.test} & {groups[row] for row in mixed.train}
    alone = hold_out(digits, None, 1)
    assert alone is not None and len(alone.test) == 16


def test_nothing_is_held_out_where_nothing_can_be() -> None:
    assert hold_out(["x", "y"], ["a", "b"], 1) is None
    assert hold_out(["x", "y"], None, 1) is None


@each_case(
    "labels, is_apart, told",
    [
        (["F", "F", "M", "M", "F", "F"], True, r"each speaker has one sex: .* \(2 of F, 1 of M\)"),
        (["F", "F", "M", "M", "F", "F"], False, "each speaker has one sex, and is on both sides"),
        (["F", "F", "M", "M", "N", "N"], True, "each sex has one speaker: what tells one tells the other"),
        (["F", "M", "M", "F", "F", "M"], True, ""),
    ],
)
def test_a_confound_of_the_data_is_said(labels: list[str], is_apart: bool, told: str) -> None:
    said = describe_confound("sex", labels, "speaker", ["a", "a", "b", "b", "c", "c"], is_apart)
    assert bool(said) == bool(told)
    assert re.search(told, said)
