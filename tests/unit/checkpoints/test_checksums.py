"""Checksums find what is missing, cut off, changed, or no longer a list of checksums."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechssl.checkpoints.checksums import CHECKSUMS, check_whole, find_damage, has_checksums, write_checksums
from speechssl.errors import CheckpointError
from tests.cases import each_case


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"alpha")
    (tmp_path / "b").write_bytes(b"beta")
    write_checksums(tmp_path)
    return tmp_path


def test_whole_is_whole(folder: Path) -> None:
    assert has_checksums(folder)
    assert find_damage(folder) == find_damage(folder, ["a"]) == find_damage(folder, is_quick=True) == ""
    check_whole(folder, ["a", "b"], "init")


def test_what_was_changed_is_named(folder: Path) -> None:
    (folder / "b").write_bytes(b"bexa")
    assert "b is not what was written (its SHA-256 differs)" in find_damage(folder)
    assert find_damage(folder, ["a"], is_partial=True) == ""
    assert "b is not what was written" in find_damage(folder, ["a"])
    assert find_damage(folder, is_quick=True) == ""
    (folder / "b").write_bytes(b"bet")
    assert "b has 3 of 4 bytes" in find_damage(folder, is_quick=True)
    (folder / "b").unlink()
    assert "b is missing" in find_damage(folder, is_quick=True)
    with pytest.raises(CheckpointError, match="`init` must be a whole checkpoint, but .*b is missing"):
        check_whole(folder, ["b"], "init")


def test_a_file_that_is_not_listed_is_damage_where_it_is_needed(folder: Path) -> None:
    assert find_damage(folder, ["a", "c"])


@each_case(
    "content",
    [b"", b"{", b"[]", b"3", b'{"version": 1}', b'{"version": 1, "files": {}}', b'{"version": 1, "files": [1]}',
     b'{"version": 1, "files": {"a": 3}}', b'{"version": 2, "files": {}}', b"\xff", b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_list_is_damage(content: bytes, folder: Path) -> None:
    (folder / CHECKSUMS).write_bytes(content)
    assert CHECKSUMS in find_damage(folder)
    assert CHECKSUMS in find_damage(folder, is_quick=True)


def test_sizes_must_be_right_too(folder: Path) -> None:
    stored = json.loads((folder / CHECKSUMS).read_text())
    stored["files"]["a"]["size"] = 6
    (folder / CHECKSUMS).write_text(json.dumps(stored))
    assert "a has 5 of 6 bytes" in find_damage(folder)
