"""What a probe is asked, from keys and columns alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from speechssl.config.inference import ProbeConfig
from speechssl.data.manifest import Manifest
from speechssl.errors import DataError
from speechssl.evaluation.probe_plan import Plan, plan_probe
from tests.cases import each_case

SPEAKERS = ["a", "a", "a", "b", "b", "b", "c", "c", "c"]
SEXES = ["F"] * 6 + ["M"] * 3


def make(**columns: list[object]) -> Manifest:
    count = len(next(iter(columns.values())))
    plain = {"id": [f"u{k}" for k in range(count)], "path": ["x"] * count}
    return Manifest(pa.table(plain | columns), Path("/"), "m.tsv")


def plan(label: str, *parts: Manifest, **keys: object) -> Plan:
    return plan_probe(ProbeConfig(checkpoint="x", label=label, **keys), parts)  # type: ignore[arg-type]


def test_speakers_are_kept_apart_unless_they_are_the_label() -> None:
    words = ["x", "y", "z"] * 3
    found = plan("word", make(speaker=SPEAKERS, word=words))
    assert (found.kind, found.unit, found.is_apart, len(found.folds)) == ("identification", "speaker", True, 3)
    alone = plan("word", make(speaker=SPEAKERS, word=words), group="id", folds=4)
    assert (alone.unit, alone.is_apart, len(alone.folds)) == ("speaker", False, 4)
    named = plan("speaker", make(speaker=SPEAKERS))
    assert (named.unit, named.is_apart, len(named.folds)) == ("speaker", False, 1)
    assert set(SPEAKERS) == {named.values[row] for row in named.folds[0].test}
    unknown = plan("word", make(word=words))
    assert (unknown.unit, unknown.is_apart, len(unknown.folds)) == ("utterance", False, 1)


def test_what_a_speaker_gives_away_is_said() -> None:
    more = make(speaker=[*SPEAKERS, "d", "d"], sex=[*SEXES, "M", "M"])
    assert "as many cases as speakers (2 of F, 2 of M)" in plan("sex", more).confound
    assert "on both sides of the split" in plan("sex", more, group="id").confound
    assert plan("word", make(speaker=SPEAKERS, word=["x", "y", "z"] * 3)).confound == ""


@each_case(
    "label, columns, keys, message",
    [
        ("sex", {"speaker": SPEAKERS, "sex": SEXES}, {}, "all of M is held out with speaker c"),
        ("sex", {"speaker": SPEAKERS, "sex": ["F"] * 9}, {}, "must have two values of sex or more, but has F alone"),
        ("speaker", {"speaker": ["a", "a", "b"]}, {}, "two utterances of each speaker to be split, but has one of b"),
        (
            "word",
            {"word": ["x", "y"], "speaker": ["a", None]},
            {},
            r"`group` must be a column with a value in every row",
        ),
        ("word", {"word": ["x", "y"], "speaker": ["a", "a"]}, {}, "two values of speaker or more, but has a alone"),
        ("word", {"word": ["x", "y"]}, {"group": "room"}, r"`group` must have a column room"),
        ("word", {"word": ["x", "1"]}, {"task": "regression"}, r"`label` must be a column of numbers .* word has x"),
        ("age", {"age": [1.5, float("nan")]}, {}, "age has nan"),
    ],
)
def test_columns_that_cannot_be_told(
    label: str, columns: dict[str, list[object]], keys: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        plan(label, make(**columns), **keys)


def test_a_test_set_has_no_new_label_and_no_old_speaker() -> None:
    train = make(speaker=["a", "b"], word=["x", "y"])
    assert len(plan("word", train, make(speaker=["c"], word=["y"])).folds) == 1
    with pytest.raises(DataError, match=r"`data.test` must have no word but those of data.train, but has z"):
        plan("word", train, make(speaker=["c"], word=["z"]))
    with pytest.raises(DataError, match=r"`data.test` must have no speaker of data.train, but has 1: b"):
        plan("word", train, make(speaker=["b"], word=["y"]))
