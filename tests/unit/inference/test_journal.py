"""What is done of a command: kept whole, read back as it was, gone on from or refused."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import pytest

from speechssl.errors import ConfigError
from speechssl.inference.journal import Entry, Journal
from speechssl.inference.timed import Span, TimedText
from tests.cases import each_case

REQUEST = {"checkpoint": "runs/x", "window_s": 30.0, "beam": {"lm": "a.arpa", "weights": (1, 2)}}


def make_entry(id: str) -> Entry:
    spans = (Span('É"', 0.1, 1 / 3, 2 / 3), Span("\udcff\n", 0.4, 0.5, 1.0))
    return Entry(TimedText(id, "a\udcff.wav", "", 1, 1.1, "É", 0.123456789, spans, spans[:1]), (3, 2, 1))


def write(path: Path, *ids: str) -> None:
    """Leave a journal as an interruption does."""
    with suppress(KeyboardInterrupt), Journal(path, REQUEST) as journal:
        for id in ids:
            journal.add(make_entry(id))
        raise KeyboardInterrupt


def test_what_is_kept_is_what_was_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ".a.part"
    write(path, "x", "\n", "y")
    write(path, "z")
    assert f"broken off: 4 texts are kept in {path}" in caplog.text
    with Journal(path, REQUEST) as journal:
        assert len(journal) == 4 and "z" in journal and "w" not in journal
        assert list(journal.iterate(["z", "w", "x", "\n"])) == [make_entry(id) for id in ("z", "x", "\n")]
        journal.keep(["x", "y"])
        assert len(journal) == 2 and [entry.text.id for entry in journal.iterate(["y", "z"])] == ["y"]
    assert not path.exists()


def test_nothing_that_is_done_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "a", REQUEST):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@each_case("damage", ["cut", "flip", "junk", "end"])
def test_what_is_damaged_is_done_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a"
    write(path, "x", "y", "z")
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    third = len(b"".join(lines[:3]))
    damaged = {
        "cut": data[: third + 30],
        "flip": data[: third + 30] + bytes([data[third + 30] ^ 1]) + data[third + 31 :],
        "junk": b"".join([*lines[:3], b"junk\n", lines[3]]),
        "end": data + b"\x00" * 100,
    }
    path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING, "speechssl"), Journal(path, REQUEST) as journal:
        left = 3 if damage == "end" else 2
        assert len(journal) == left
        assert f"{path} is damaged behind the first {left} texts" in caplog.text
        journal.add(make_entry("z"))
        assert [entry.text.id for entry in journal.iterate("xyz")] == ["x", "y", "z"]


def test_another_commands_is_refused_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, "x")
    with pytest.raises(ConfigError, match=r"`beam` must be as .* is of, \{.*'a.arpa'.*\}, but is \{.*'b.arpa'"):
        Journal(path, REQUEST | {"beam": {"lm": "b.arpa"}})
    with pytest.raises(ConfigError, match=r"`window_s` must be as .* is of, 30.0, but is None \(overwrite=true"):
        Journal(path, {key: value for key, value in REQUEST.items() if key != "window_s"})
    with Journal(path, REQUEST | {"window_s": 9.0}, overwrite=True) as journal:
        assert len(journal) == 0
        journal.add(make_entry("y"))
        assert list(journal.iterate("xy")) == [make_entry("y")]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("of somebody else")
    (tmp_path / "a").symlink_to(tmp_path / "other")
    with Journal(tmp_path / "a", REQUEST) as journal:
        journal.add(make_entry("x"))
        assert len(journal) == 1
    assert (tmp_path / "other").read_text() == "of somebody else"
