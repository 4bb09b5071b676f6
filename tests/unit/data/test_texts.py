"""Texts by id, in the forms that people keep them in."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechssl.data.manifest import Utterance, build_manifest, save_manifest
from speechssl.data.texts import Texts, format_trn, load_texts, match_texts
from speechssl.errors import ConfigError, DataError
from tests.cases import each_case

IDS, TEXTS = ["u1", "u-2", "u3"], ["A cat", "", "naïve 你好"]


def load(folder: Path, name: str, text: str, column: str = "text") -> Texts:
    (folder / name).write_text(text, encoding="utf-8")
    return load_texts(str(folder / name), "reference", column)


@each_case(
    "name, text",
    [
        ("a.tsv", "u1\tA cat\nu-2\t\nu3\tnaïve 你好\n"),
        ("a.txt", "u1\tA cat\r\nu-2\t\r\nu3\tnaïve 你好"),
        ("a.tsv", "\ufeffid\tspeaker\ttext\nu1\ts\tA cat\nu-2\t\t\nu3\ts\tnaïve 你好\n"),
        ("a.tsv", "# root=/x\nid\tpath\ttext\nu1\ta\tA cat\nu-2\tb\t\nu3\tc\tnaïve 你好\n"),
        ("a.trn", ";; a comment\nA cat (u1)\n (u-2)\nnaïve 你好 (u3)\n"),
        ("a.trn", "A cat(u1)\n(u-2)\n\nnaïve 你好 (u3)  \n"),
        ("text", "u1 A cat\nu-2\nu3 naïve 你好\n"),
        ("a.trans.txt", "u1   A cat\nu-2 \nu3 naïve 你好\n\n"),
    ],
)
def test_texts_are_read(tmp_path: Path, name: str, text: str) -> None:
    found = load(tmp_path, name, text)
    assert (found.ids, [" ".join(text.split()) for text in found.texts]) == (IDS, TEXTS)


def test_manifests_are_read_with_their_columns(tmp_path: Path) -> None:
    rows = [
        Utterance(name, Path("/a.wav"), 16_000, 100, 0, "s\t1", text) for name, text in zip(IDS, TEXTS, strict=True)
    ]
    for suffix in ("tsv", "parquet"):
        save_manifest(build_manifest(rows, Path("/")), tmp_path / f"m.{suffix}")
        found = load_texts(str(tmp_path / f"m.{suffix}"), "reference")
        assert (found.ids, found.texts, found.columns["speaker"]) == (IDS, TEXTS, ["s\t1"] * 3)


def test_a_table_of_ours_has_both_sides(tmp_path: Path) -> None:
    table = "id\treference\thypothesis\nu\ta\\\\b\\tc\td\n"
    assert load(tmp_path, "a.tsv", table, "reference").texts == ["a\\b\tc"]
    assert load(tmp_path, "a.tsv", table, "hypothesis").texts == ["d"]


@each_case(
    "name, text, why",
    [
        ("a.tsv", "", "none is in"),
        ("a.tsv", "u1\ta\nu2\n", r"lines of id<TAB>text, but line 2 of .*a\.tsv has no tab"),
        ("a.tsv", "u1\ta\nu1\tb\n", "one text for each id, but u1 comes twice in"),
        ("a.tsv", "\ta\n", "a line has none in"),
        ("a.tsv", "id\ttext\nu\n", "2 fields a line, as its header, but line 2 of .* has 1"),
        ("a.tsv", "id\ttext\n", "none is in"),
        ("a.trn", "A cat (u1)\nA cat\n", r"plain `text \(id\)`, but line 2 of .* is A cat"),
        ("a.trn", "a { b / c } (u1)\n", "line 1 of .* has alternatives in braces"),
    ],
)
def test_what_is_none_of_these_is_refused(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(DataError, match=f"`reference` must have .*{why}"):
        load(tmp_path, name, text)


def test_other_bytes_and_a_manifest_without_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"must be text in UTF-8"):
        load_texts(str(tmp_path / "a.txt"), "reference")
    with pytest.raises(DataError, match="nowhere.txt"):
        load_texts(str(tmp_path / "nowhere.txt"), "reference")
    save_manifest(build_manifest([Utterance("u", Path("/a"), 16_000, 9)], Path("/")), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="`reference` must have a column text, but .* has path"):
        load_texts(str(tmp_path / "m.parquet"), "reference")


def test_ids_that_do_not_match_are_named() -> None:
    said, heard = Texts(["a", "b"], ["x", "y"], {}), Texts(["b", "a"], ["1", "2"], {})
    assert match_texts(said, heard) == ["2", "1"]
    with pytest.raises(DataError, match="`hypothesis` must have .* but lacks b and has c, which `reference` has not"):
        match_texts(said, Texts(["a", "c"], ["", ""], {}))
    many = Texts([f"u{k}" for k in range(9)], [""] * 9, {})
    with pytest.raises(DataError, match="but lacks u0, u1, u2, u3, u4 and 4 others$"):
        match_texts(many, Texts([], [], {}))


def test_transcripts_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = load(tmp_path, "a.trn", format_trn(IDS, ["a (b) c", "", " x\n y"]))
    assert (found.ids, found.texts) == (IDS, ["a (b) c", "", "x y"])
    with pytest.raises(ConfigError, match=r"`trn` must be false .* but one is 'a b'"):
        format_trn(["a b"], ["x"])
