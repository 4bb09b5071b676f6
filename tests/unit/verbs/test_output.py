"""Where a verb writes, and its JSON."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import pytest

from speechssl.durable import write_result
from speechssl.errors import ConfigError
from speechssl.verbs.output import format_line, print_line, replacing_result, resolve_out
from tests.cases import each_case


def test_a_missing_out_is_chosen_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "speechssl"):
        first = resolve_out("", "embed", overwrite=False)
        second = resolve_out("", "embed", overwrite=False)
    assert first != second
    assert first.is_dir()
    assert first.parent == Path("runs")
    assert first.name.startswith("embed-")
    assert f"out={first}" in caplog.text


def test_a_finished_result_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "run"
    resolve_out(str(out), "probe", overwrite=False)
    write_result(out, {"accuracy": 1.0})
    with pytest.raises(ConfigError, match=r"`out` must be a new place, but .*overwrite=true"):
        resolve_out(str(out), "probe", overwrite=False)
    assert resolve_out(str(out), "probe", overwrite=True) == out

    def replace() -> None:
        with replacing_result(out):
            assert not (out / "result.json").exists(), "files that are half replaced must not look finished"
            raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused"):
        replace()
    assert json.loads((out / "result.json").read_text()) == {"accuracy": 1.0}
    with replacing_result(out):
        write_result(out, {"accuracy": 2.0})
    assert [path.name for path in out.iterdir()] == ["result.json"]


def test_the_folder_of_a_training_run_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert resolve_out(str(tmp_path), "evaluate", False) == tmp_path, "any project may have such a file"
    (tmp_path / "environment.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"`out` must be a new place, but .* is the folder of a training run"):
            resolve_out(str(tmp_path), "evaluate", overwrite)
    assert resolve_out(str(tmp_path / "report.html"), "report", True, is_file=True) == tmp_path / "report.html"


def test_a_file_is_checked_by_itself(tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.parquet"
    assert resolve_out(str(out), "embed", overwrite=False, is_file=True) == out
    assert out.parent.is_dir()
    out.write_bytes(b"")
    with pytest.raises(ConfigError, match="overwrite=true"):
        resolve_out(str(out), "embed", overwrite=False, is_file=True)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="`out` must be a place that can be written"):
        resolve_out(str(tmp_path / "file" / "run"), "embed", overwrite=False)


def test_the_line_is_strict_json() -> None:
    line = format_line({"path": Path("a/b"), "wer": float("nan"), "rows": ({"x": float("inf")},), "text": "é"})
    assert json.loads(line) == {"path": "a/b", "wer": None, "rows": [{"x": None}], "text": "é"}
    assert "\n" not in line
    assert "é" in line


@each_case("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16-le"])
def test_stdout_of_any_encoding_gets_what_it_can_and_json_that_is_read(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
    result = {"texts": "gr\u00fcn\u65e5\U0001f600.tsv", "out": "caf\udce9"}
    print_line("gr\u00fcn\u65e5\U0001f600 \udce9")
    print_line(format_line(result))
    text, line, _ = raw.getvalue().decode(encoding).split("\n")
    assert json.loads(line) == result
    known = {"ascii": "gr\\xfcn\\u65e5\\U0001f600", "utf-8": "gr\u00fcn\u65e5\U0001f600"}
    known["utf-16-le"] = known["utf-8"]
    assert text == known.get(encoding, "gr\u00fcn\\u65e5\\U0001f600") + " \\udce9"
