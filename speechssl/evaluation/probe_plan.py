"""What a probe is asked, from its keys and the columns of its manifests: labels, groups, and folds."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechssl.config.inference import ProbeConfig
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.errors import DataError
from speechssl.evaluation.probe_features import split_stratified
from speechssl.evaluation.probe_split import (
    TEST_SHARE,
    Fold,
    check_folds,
    check_leak,
    describe_confound,
    find_kind,
    leave_groups_out,
)

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Plan:
    """What is told of n utterances, those of `data.train` and then those of `data.test`, and how they are divided.

    Attributes:
        kind: `identification`, `regression` or `verification`.
        values: of the label, as text.
        groups: of each utterance, which intervals resample.
        unit: what a group is.
        is_apart: whether no group may be on both sides of a split.
        folds: rows to learn from and rows to be tested on.
        confound: what the data itself cannot tell apart, in a sentence; empty: nothing that is known.
    """

    kind: str
    values: list[str]
    groups: list[str]
    unit: str
    is_apart: bool
    folds: list[Fold]
    confound: str = ""


def load_labelled(paths: list[str], key: str, where: str, label: str) -> Manifest:
    """Load the rows that have a label, and say how many have none."""
    manifest = load_manifests(paths, key).filter_where(where)
    manifest.require(label, key)
    kept = [row for row, value in enumerate(manifest.column(label)) if value not in (None, "")]
    if len(kept) < len(manifest):
        missing = len(manifest) - len(kept)
        _logger.warning("%d of %d utterances of `%s` have no %s and are left out", missing, len(manifest), key, label)
    return manifest.select(kept)


def plan_probe(config: ProbeConfig, parts: Sequence[Manifest]) -> Plan:
    """Plan a probe of `data.train`, or of this and `data.test`.

    Raises:
        DataError: one label alone; a label that is tested and was never heard, or has one utterance and is to be
            split; a group on both sides, or missing; a number that is none.
    """
    values = [str(value) for part in parts for value in part.column(config.label)]
    kind = find_kind(config.label, values) if config.task == "auto" else config.task
    if kind == "regression":
        _check_numbers(config.label, values)
    learnt, tested = values[: len(parts[0])], values[len(parts[0]) :]
    _check_two(config.label, learnt)
    group = "" if kind == "verification" else _find_group(config, parts)
    groups = [_read_groups(part, group) for part in parts] if group else []
    joined = [name for names in groups for name in names]
    if len(parts) > 1:
        if groups:
            check_leak(group, *groups)
        if kind == "identification":
            _check_known(config.label, learnt, tested)
        folds = [Fold(np.arange(len(learnt)), np.arange(len(learnt), len(values)))]
    elif group:
        if len(set(joined)) < 2:
            raise DataError(f"`data.train` must have two values of {group} or more, but has {joined[0]} alone")
        folds = leave_groups_out(joined, config.folds)
        if kind == "identification":
            check_folds(folds, config.label, values, group, joined)
    else:
        folds = [_split_by_utterance(kind, config, values)]
    is_apart = group not in ("", "id")
    unit, owners = _find_unit(group, joined, parts)
    confound = "" if kind != "identification" else _find_confound(config.label, values, group, joined, parts)
    return Plan(kind, values, owners, unit, is_apart, folds, confound)


def _find_group(config: ProbeConfig, parts: Sequence[Manifest]) -> str:
    """Find the column that is kept apart: the one that is asked for, else speaker, if it is there; else empty."""
    if config.group:
        return config.group
    if config.label == "speaker":
        return ""
    if all(part.has("speaker") for part in parts):
        return "speaker"
    _logger.warning("no column speaker in all manifests: one speaker may be on both sides of the split")
    return ""


def _read_groups(manifest: Manifest, group: str) -> list[str]:
    manifest.require(group, "group")
    names = manifest.column(group)
    missing = sum(name in (None, "") for name in names)
    if missing:
        raise DataError(
            f"`group` must be a column with a value in every row (group=id compares utterances), but {missing} of "
            f"{len(names)} rows of {manifest.source} have no {group}"
        )
    return [str(name) for name in names]


def _split_by_utterance(kind: str, config: ProbeConfig, values: list[str]) -> Fold:
    """Hold out a fifth of each label's utterances, or of all where it is a number."""
    if kind == "regression":
        return Fold(*split_stratified([""] * len(values), TEST_SHARE, config.seed))
    lone = next((name for name, count in Counter(values).items() if count < 2), None)
    if lone is not None:
        raise DataError(
            f"`data.train` must have two utterances of each {config.label} to be split, but has one of {lone}"
        )
    return Fold(*split_stratified(values, TEST_SHARE, config.seed))


def _find_unit(group: str, groups: list[str], parts: Sequence[Manifest]) -> tuple[str, list[str]]:
    """Find what intervals resample: the groups, else the speakers where all are known, else utterances."""
    if group and group != "id":
        return group, groups
    if all(part.has("speaker") for part in parts):
        speakers = [name for part in parts for name in part.column("speaker")]
        if all(speakers):
            return "speaker", [str(name) for name in speakers]
    return "utterance", [str(name) for part in parts for name in part.column("id")]


def _find_confound(label: str, values: list[str], group: str, groups: list[str], parts: Sequence[Manifest]) -> str:
    """Say what stands for the label; where no group is kept apart, of the speaker."""
    if group not in ("", "id"):
        return describe_confound(label, values, group, groups, True)
    if label == "speaker" or not all(part.has("speaker") for part in parts):
        return ""
    speakers = [str(name) for part in parts for name in part.column("speaker")]
    return describe_confound(label, values, "speaker", speakers, False)


def _check_two(label: str, values: Sequence[str]) -> None:
    if len(set(values)) < 2:
        what = "speakers" if label == "speaker" else f"values of {label}"
        raise DataError(f"`data.train` must have two {what} or more, but has {values[0]} alone")


def _check_known(label: str, learnt: Sequence[str], tested: Sequence[str]) -> None:
    unknown = sorted(set(tested) - set(learnt))
    if unknown:
        what = "the speakers" if label == "speaker" else f"no {label} but those"
        raise DataError(f"`data.test` must have {what} of data.train, but has {', '.join(unknown[:5])}")


def _check_numbers(label: str, values: Sequence[str]) -> None:
    for value in values:
        try:
            is_finite = math.isfinite(float(value))
        except ValueError:
            is_finite = False
        if not is_finite:
            raise DataError(f"`label` must be a column of numbers with task=regression, but {label} has {value}")
