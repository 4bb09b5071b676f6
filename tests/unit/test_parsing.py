from __future__ import annotations

import os
from pathlib import Path

import pytest

from speechssl.errors import CheckpointError, ConfigError, DataError
from speechssl.parsing import open_regular, parsing, read_bytes, read_json, read_text, read_yaml, show
from tests.cases import each_case


@each_case("raised", [KeyError("a"), OverflowError("too big"), RecursionError(), MemoryError(), EOFError()])
def test_whatever_a_parser_raises_becomes_the_sentence(raised: Exception) -> None:
    with (
        pytest.raises(CheckpointError, match=r"^x\.pt must be a whole checkpoint, but is not \("),
        parsing("x.pt", "a whole checkpoint", CheckpointError),
    ):
        raise raised


def test_our_own_sentences_pass() -> None:
    with pytest.raises(ConfigError, match="^mine$"), parsing("x", "y", DataError):
        raise ConfigError("mine")


@each_case("stop", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_passes(stop: type[BaseException]) -> None:
    with pytest.raises(stop), parsing("x", "y"):
        raise stop


def test_a_reason_is_one_short_line() -> None:
    with pytest.raises(DataError) as caught, parsing("x", "y"):
        raise ValueError("a" * 1000 + "\nsecond line")
    assert len(str(caught.value)) < 300
    assert "second" not in str(caught.value)


def test_a_named_pipe_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(DataError, match="it is a folder"):
        read_text(tmp_path)


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", limit=5) == b"12345"
    with pytest.raises(DataError, match="more than 4 bytes"):
        read_text(tmp_path / "a", limit=4)


@each_case(
    "content",
    [b"", b"[1, 2]", b"3", b"\xff\xfe", b'{"a": ', b"[" * 100_000, b'{"a": 1e999', b"\0\0\0"],
)
def test_what_is_no_mapping_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match="must be JSON, but is not"):
        read_json(path)
    if content != b'{"a": ':
        with pytest.raises(DataError, match="must be YAML, but is not"):
            read_yaml(path)


def test_aliases_of_yaml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    with pytest.raises(DataError, match="has an alias"):
        read_yaml(path)
    path.write_text("a: [x, x]\n")
    assert read_yaml(path) == {"a": ["x", "x"]}


def test_the_file_is_named_where_the_subject_is_a_key() -> None:
    with (
        pytest.raises(CheckpointError, match=r"^`init` must be whole, but a\.pt is not \(x\)$"),
        parsing("`init`", "whole", CheckpointError, "a.pt"),
    ):
        raise ValueError("x")
    with (
        pytest.raises(CheckpointError, match=r"^`init` must be whole, but a\.pt cannot be read \(No such file"),
        parsing("`init`", "whole", CheckpointError, "a.pt"),
    ):
        open_regular("/there/is/no/such")


@each_case(
    "value, shown", [("a", "'a'"), ([1, 2], "[1, 2]"), ({"a": None}, "{'a': None}"), (2.5, "2.5"), (None, "None")]
)
def test_what_is_short_is_shown_whole(value: object, shown: str) -> None:
    assert show(value) == shown


def test_what_is_long_or_deep_is_cut_short() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("a" * 10**6, [[1] * 10**6], {f"{n}": "b" * 1000 for n in range(1000)}, deep, b"c" * 10**6):
        assert len(show(value)) < 220
