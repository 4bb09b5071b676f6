"""The study of collapse: a run of each kind at its smallest, told again from its file, and the table."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from recipes.collapse.study import PROVOCATIONS, format_table, main
from speechssl.data.manifest import save_manifest
from tests.conftest import write_librispeech
from tests.integration.test_training import read_split


def test_a_healthy_and_a_provoked_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, speakers in (("train", range(1, 5)), ("dev", range(5, 7))):
        write_librispeech(tmp_path / "LibriSpeech", split, speakers)
        save_manifest(read_split(tmp_path / "LibriSpeech" / split), tmp_path / f"{split}.tsv")
    names = itertools.cycle(("ONE", "TWO", "ONE"))
    digits = re.sub(r"[A-Z]+ [A-Z]+ [A-Z]+", lambda _: next(names), (tmp_path / "dev.tsv").read_text())
    (tmp_path / "digits.tsv").write_text(digits)
    words = [f"train={tmp_path}/train.tsv", f"valid={tmp_path}/dev.tsv", f"digits={tmp_path}/digits.tsv"]
    words += [f"out={tmp_path}/out", "healthy=1", "provoked=1", "updates=2"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "0 of 1 at 6.2 bits or below" in first
    assert "0 of 1 caught." in first
    assert f"`{next(iter(PROVOCATIONS[0]))}=-5`" in first
    changed = (tmp_path / "out" / "healthy-1" / "metrics.jsonl").stat().st_mtime_ns
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "out" / "healthy-1" / "metrics.jsonl").stat().st_mtime_ns == changed


def test_the_table_counts_what_learned_and_what_was_caught() -> None:
    run = {"valid_bits": 5.4, "valid_accuracy": 0.18, "valid_perplexity": [14.6, 15.0], "first_warning": 0}
    healthy = [
        run | {"seed": 1, "collapsed": False, "digits": {"trained": [29.0, 28.0], "untrained": [22.0, 23.0]}},
        run | {"seed": 2, "collapsed": False, "valid_bits": 6.5, "digits": {"trained": [20.0], "untrained": [21.0]}},
        run | {"seed": 3, "collapsed": True, "first_warning": 150},
    ]
    message = "pretraining has collapsed: for 250 updates up to 311, all frames got the same codes. What has helped"
    caught = {"seed": 100, "provocation": {"training.lr": 0.05}, "first_warning": 150, "updates": 311}
    rows = format_table(healthy, [caught | {"collapsed": True, "message": message}])
    assert "| 1 | 5.40 | 18.0 | 15+15 | never | no | 29.0 | 23.0 |" in rows
    assert "| 3 | 5.40 | 18.0 | 15+15 | 150 | yes |  |  |" in rows
    assert "2 of 3 at 6.2 bits or below, 1 better than untrained, 1 stopped." in rows
    assert "| 100 | `training.lr=0.05` | 150 | 311 | all frames got the same codes |" in rows
    assert rows[-1] == "1 of 1 caught."


def test_a_missing_key_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["out=x"]) == 2
    must = "the keys must be digits, healthy, model, out, provoked, train, updates, valid, but are"
    assert must in capsys.readouterr().err
