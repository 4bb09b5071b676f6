"""Progress in a pipe and on a terminal."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from speechssl import progress


def test_plain_lines_in_a_pipe(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "speechssl"):
        assert list(progress.track([1, 2], "reading", unit="files")) == [1, 2]
    messages = [record.message for record in caplog.records]
    assert messages[0].startswith("reading: 1 of 2 files")
    assert messages[-1].startswith("reading: all 2 files")


def test_nothing_for_what_is_quick(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "speechssl"):
        assert list(progress.track(iter([1, 2]), "reading")) == [1, 2]
    assert not caplog.records


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_stdout_untouched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for item in progress.track(range(3), "reading", unit="files"):
        print(item)
    assert "reading" in terminal.getvalue()
    assert capsys.readouterr().out == "0\n1\n2\n"
