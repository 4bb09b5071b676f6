"""Progress in a pipe and on a terminal."""

from __future__ import annotations

import io
import logging
import re
import sys
from itertools import islice

import pytest

from speechssl import progress


def test_plain_lines_in_a_pipe(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "speechssl"):
        assert list(progress.track([1, 2], "reading", unit="files")) == [1, 2]
        with progress.Progress("pretrain", total=4, unit="updates", done=2) as shown:
            shown.advance(1, loss=5.12345, best="4.8 at update 2")
        with progress.Progress("quiet", has_lines=False) as quiet:
            quiet.advance()
    messages = [record.message for record in caplog.records]
    assert messages[0] == "reading: 1 of 2 files in 0 s, 0 s left"
    assert messages[2] == "reading: all 2 files in 0 s"
    assert messages[3] == "pretrain: 3 of 4 updates in 0 s, 0 s left; loss 5.123, best 4.8 at update 2"
    assert not any("quiet" in message for message in messages)


def test_no_line_for_what_is_quick_or_broken_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "speechssl"):
        assert list(progress.track(iter([1, 2]), "reading")) == [1, 2]
        monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
        assert list(islice(progress.track([1, 2, 3], "reading"), 2)) == [1, 2]
    assert [record.message[:14] for record in caplog.records] == ["reading: 1 of "]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_on_a_terminal_one_inside_another_and_stdout_untouched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with progress.Progress("pretrain", total=3, unit="updates") as outer:
        outer.advance(1, loss=5.0)
        for item in progress.track(range(3), "validate", unit="utterances"):
            print(item)
        outer.advance(2)
    drawn = terminal.getvalue()
    assert [word for word in ("pretrain", "validate", "updates", "loss 5", "left") if word not in drawn] == []
    assert capsys.readouterr().out == "0\n1\n2\n"
    assert progress._display is None
    monkeypatch.setenv("RANK", "1")
    assert not progress.Progress("one of several").has_bar


def test_no_number_is_cut_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best so far comes first, and stays."""
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with progress.Progress("train", total=40_000, unit="updates", done=12_000) as shown:
        assert shown.left == ""
        shown.advance(300, best="wer 45.12 at 11500", loss=52.14, speed="112 s/s")
        assert shown.left.endswith(" s left") and progress._display is not None
        progress._display.refresh()
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"12300/40000 updates [0-9:-]+ left best wer 45\.12 at", drawn), drawn


def test_logs_are_shown_unless_a_program_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("speechssl")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    progress.show_logs()
    assert not logger.handlers
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    progress.show_logs()
    progress.show_logs(always=True)
    assert len(logger.handlers) == 1
