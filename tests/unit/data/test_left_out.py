"""The table of what is left out: sorted, safe to print, and gone where nothing is left out any more."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Utterance, build_manifest
from speechssl.errors import DataError


def test_the_table_is_sorted_and_safe_and_an_earlier_one_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left_out = LeftOut()
    left_out.add("b\x1b[2J", tmp_path / "b.wav", "it is\tbroken\nspeechssl: all is well")
    left_out.add("a", "a.wav", "it is short")
    left_out.add("a", "a.wav", "another thread was told otherwise")
    with caplog.at_level(logging.WARNING, "speechssl"):
        left_out.save(tmp_path / "x.parquet")
    table = tmp_path / "x.left_out.tsv"
    assert table.read_text(encoding="utf-8").splitlines() == [
        "id\tpath\treason",
        "a\ta.wav\tit is short",
        f"b\\x1b[2J\t{tmp_path}/b.wav\tit is\\tbroken\\nspeechssl: all is well",
    ]
    assert caplog.messages == [f"left out: 2 that cannot be used, listed in {table}; the first: it is short"]
    left_out.save(tmp_path)
    LeftOut().save(tmp_path / "x.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["left_out.tsv"], "a folder has a table of that name"


def test_what_is_left_is_known_and_nothing_is_a_mistake(tmp_path: Path) -> None:
    manifest = build_manifest([Utterance(name, tmp_path / name, 16_000, 400) for name in "abc"], tmp_path)
    left_out = LeftOut("data.test")
    assert left_out.drop_from(manifest) is manifest
    left_out.require_others(0)
    left_out.add("b", "b", "b must be whole")
    assert left_out.drop_from(manifest).column("id") == ["a", "c"]
    with pytest.raises(DataError, match=r"^b must be whole$"):
        left_out.require_others(0)
    left_out.add("a", "a", "a must be whole")
    with pytest.raises(DataError, match=r"`data\.test` must have some .* but none of 2 can be: a must be whole$"):
        left_out.require_others(0)
