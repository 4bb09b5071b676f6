"""What a model card says of a run: figures of the checkpoint, data, hours; no places of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechssl.report.model_card import describe_run
from tests.unit.report.conftest import make_finetune, make_pretrain


def test_a_run_is_told_by_its_figures(tmp_path: Path) -> None:
    run = make_finetune(tmp_path / "asr", init=str(tmp_path / "runs" / "base"), valid=str(tmp_path / "dev|1.tsv"))
    (run / "checkpoints" / "update-80").mkdir(parents=True)
    table = {"key": ["data.train"] * 2 + ["data.valid"], "num_samples": [16_000 * 1800] * 2 + [16_000 * 900]}
    pq.write_table(pa.table(table), run / "data.parquet")
    (run / "evaluation").mkdir()
    test = {"wer": 31.6, "cer": 17.64, "data": [str(tmp_path / "test.tsv")]}
    (run / "evaluation" / "result.json").write_text(json.dumps(test))
    text = describe_run(str(run), 200)
    assert "| data.train | m/train.tsv (1.00 h) |" in text
    assert "| data.valid | dev\\|1.tsv (0.25 h) |" in text
    assert "| started from | base |" in text
    assert "| speech heard | 2.0 h in 200 updates, repeats counted |" in text
    assert "| held out | WER 30.47 %, CER 10.4 %, loss 61.95 |" in text
    assert "| test | WER 31.6 %, CER 17.64 % on test.tsv |" in text
    assert str(tmp_path) not in text
    # A checkpoint of the run, saved earlier.
    assert "WER 39.47 %" in describe_run(str(run / "checkpoints" / "update-80"), 80)


def test_a_pretraining_has_a_loss(tmp_path: Path) -> None:
    text = describe_run(str(make_pretrain(tmp_path / "base", num_updates=30)), 30)
    assert "| run | Pretraining |" in text
    assert "| held out | loss " in text


def test_what_is_no_run_or_does_not_read_has_nothing_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert describe_run("facebook/wav2vec2-base-960h") == describe_run(str(tmp_path)) == ""
    run = make_finetune(tmp_path / "asr")
    (run / "data.parquet").write_bytes(b"no table")
    assert describe_run(str(run)) == ""
    assert "the model card says nothing of the run" in caplog.text
