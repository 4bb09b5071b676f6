"""What a probe is trained and tested on: groups that are never on both sides, and what the data itself confounds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechssl.errors import DataError
from speechssl.evaluation.probe_features import split_stratified
from speechssl.seeds import make_rng

IntArray = npt.NDArray[np.int64]

TEST_SHARE = 0.2
"""Of utterances or groups that are held out, for the test and to choose a learning rate."""

MOST_CLASSES = 20
"""Whole numbers of more values than this are told as numbers, like ages; of fewer, they are names, like digits."""


@dataclass(frozen=True)
class Fold:
    """Rows that a probe learns from, and rows that it is tested on."""

    train: IntArray
    test: IntArray


def find_kind(label: str, values: Sequence[str]) -> str:
    """Tell whether a column is to be named (`identification`) or told as a number (`regression`).

    Speakers are names whatever they are called. Numbers are numbers where one is not whole, or where they have more
    than `MOST_CLASSES` values.
    """
    if label == "speaker":
        return "identification"
    try:
        numbers = {float(value) for value in set(values)}
    except ValueError:
        return "identification"
    many = len(numbers) > MOST_CLASSES or any(not number.is_integer() for number in numbers)
    return "regression" if many else "identification"


def check_leak(group: str, train: Sequence[str], test: Sequence[str]) -> None:
    """Make sure that no group is in both sets.

    Raises:
        DataError: one is.
    """
    both = sorted(set(train) & set(test))
    if both:
        raise DataError(
            f"`data.test` must have no {group} of data.train, but has {len(both)}: {', '.join(both[:5])} "
            "(group=id compares them all the same)"
        )


def leave_groups_out(groups: Sequence[str], most: int) -> list[Fold]:
    """Leave each group out in turn, several at a time where there are more than `most`."""
    names, owners = np.array(sorted(set(groups))), np.array(groups)
    folds = []
    for part in (names[k::most] for k in range(min(most, len(names)))):
        held = np.isin(owners, part)
        folds.append(Fold(np.flatnonzero(~held), np.flatnonzero(held)))
    return folds


def check_folds(folds: Sequence[Fold], label: str, labels: Sequence[str], group: str, groups: Sequence[str]) -> None:
    """Make sure that every label that is tested was there to learn from.

    Raises:
        DataError: one was not.
    """
    values = np.array(labels)
    for fold in folds:
        unknown = sorted(set(values[fold.test]) - set(values[fold.train]))
        if unknown:
            held = sorted({groups[row] for row in fold.test if labels[row] == unknown[0]})
            raise DataError(
                f"`group` must leave some of every {label} to learn from, but all of {unknown[0]} is held out "
                f"with {group} {', '.join(held[:5])}"
            )


def hold_out(labels: Sequence[str], groups: Sequence[str] | None, seed: int) -> Fold | None:
    """Hold out a fifth to choose a learning rate by: of the groups, or of each label's utterances without any.

    Where a group has one label alone, each label's groups are divided. What is held out and nowhere else is left out.

    Args:
        labels: of each utterance; all the same for numbers.
        groups: of each utterance, or None.
        seed: of the draw.

    Returns:
        None where nothing can be held out.
    """
    if groups is None:
        kept, held = split_stratified(list(labels), TEST_SHARE, seed)
    else:
        owners, names = np.array(groups), list(dict.fromkeys(groups))
        known = _list_values(groups, labels)
        if all(len(values) == 1 for values in known.values()):
            chosen = split_stratified([next(iter(known[name])) for name in names], TEST_SHARE, seed)[1]
        else:
            count = min(max(round(TEST_SHARE * len(names)), 1), len(names) - 1)
            chosen = make_rng(seed, "probe split").permutation(len(names))[:count]
        is_held = np.isin(owners, [names[k] for k in chosen])
        kept, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    values = np.array(labels)
    held = held[np.isin(values[held], values[kept])]
    return Fold(kept, held) if len(held) else None


def describe_confound(label: str, labels: Sequence[str], group: str, groups: Sequence[str], is_apart: bool) -> str:
    """Say what no split can tell apart: every group has one label, or every label one group; empty: neither.

    Args:
        label: what is told.
        labels: of each utterance.
        group: what may stand for it.
        groups: of each utterance.
        is_apart: whether no group is on both sides of a split.
    """
    of_group, of_label = _list_values(groups, labels), _list_values(labels, groups)
    if len(of_label) < 2 or group == "id":
        return ""
    if all(len(values) == 1 for values in of_label.values()):
        return f"each {label} has one {group}: what tells one tells the other, and this data cannot say which it is"
    if any(len(values) > 1 for values in of_group.values()):
        return ""
    if not is_apart:
        return f"each {group} has one {label}, and is on both sides of the split: knowing the {group} is enough"
    counts = ", ".join(f"{count} of {value}" for value, count in _count_groups(of_label))
    return (
        f"each {group} has one {label}: whatever else differs between them tells it too, "
        f"and there are as many cases as {group}s ({counts})"
    )


def _count_groups(of_label: dict[str, set[str]]) -> list[tuple[str, int]]:
    """Count the groups of the commonest labels."""
    return Counter({value: len(groups) for value, groups in of_label.items()}).most_common(5)


def _list_values(keys: Sequence[str], values: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for key, value in zip(keys, values, strict=True):
        found[key].add(value)
    return dict(found)
