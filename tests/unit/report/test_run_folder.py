from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from speechssl.config.verbs import PretrainConfig
from speechssl.errors import ConfigError, DataError
from speechssl.report.run_folder import load_run
from speechssl.training.run_folder import claim_run


def test_each_kind_is_told_from_its_files(make: SimpleNamespace, tmp_path: Path) -> None:
    kinds = [
        load_run(maker(tmp_path / str(k))).kind
        for k, maker in enumerate((make.pretrain, make.finetune, make.evaluate, make.tune, make.probe, make.analyse))
    ]
    assert kinds == ["pretrain", "finetune", "evaluate", "tune", "probe", "analyse"]


def test_config_and_metrics_can_be_looked_up(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.pretrain(tmp_path / "run", num_updates=60))
    assert run.get_config("model.quantizer.num_codes") == 12
    assert run.get_config("model.no.such", "none") == "none"
    assert [row["update"] for row in run.select("train")] == list(range(1, 61))
    assert run.last("valid", "loss_contrastive") == run.select("valid")[-1]["loss_contrastive"]
    assert run.last("valid", "lr") is None


def test_a_line_that_is_still_being_written_is_left_out(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "run", num_updates=60)
    before = len(load_run(folder).metrics)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"update": 61, "spl')
    assert len(load_run(folder).metrics) == before


def test_a_log_is_read_up_to_its_damage(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.pretrain(tmp_path / "run", num_updates=60)
    (folder / "metrics.jsonl").write_text(
        '{"update": 1, "split": "train"}\nnonsense\n{"update": 2, "split": "train"}\n'
    )
    run = load_run(folder)
    assert [row["update"] for row in run.select("train")] == [1]
    assert run.problems[0].startswith("metrics.jsonl is damaged, and left out from there on: line 2 is damaged")


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not there"):
        load_run(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a file"):
        load_run(tmp_path / "file")
    with pytest.raises(DataError, match="none of these"):
        load_run(tmp_path)


def test_every_utterance_is_there_whatever_its_id(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.evaluate(tmp_path / "run")
    lines = (folder / "utterances.tsv").read_text().splitlines()
    ids = ["# 1", "#", "# root=/x", '"quoted', "a\\tb", "  ", "\u2028", "\x85", "\x0c"]
    lines += [f"{name}\ts\t1\t1\t1\t1\tA\tB" for name in ids]
    (folder / "utterances.tsv").write_text("\n".join(lines) + "\n")
    assert [row["id"] for row in load_run(folder).utterances[4:]] == ids


def test_a_transcript_of_hours_is_read(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.evaluate(tmp_path / "run")
    words = "WORD " * 40_000
    with (folder / "utterances.tsv").open("a") as file:
        file.write(f"long\ts\t0\t40000\t0\t199999\t{words}\t{words}\n")
    assert load_run(folder).utterances[-1]["hypothesis"] == words


def test_a_damaged_table_is_named(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.evaluate(tmp_path / "run")
    with (folder / "utterances.tsv").open("a") as file:
        file.write("a\tb\n")
    with pytest.raises(DataError, match="must have 8 fields a line, but line 6 has 2"):
        load_run(folder)


def test_a_configuration_that_was_changed_is_named(make: SimpleNamespace, tmp_path: Path) -> None:
    claim_run(tmp_path, PretrainConfig(out="x"))
    assert load_run(tmp_path).kind == "pretrain"
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("seed: 1", "seed: 3"))
    with pytest.raises(DataError, match="is not what was written, its SHA-256 differs"):
        load_run(tmp_path)
