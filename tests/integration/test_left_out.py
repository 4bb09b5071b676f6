"""Runs with files that cannot be read: left out, counted, named, and the run goes on to the bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.data.manifest import load_manifest
from speechssl.errors import DataError, StoppedOnRequest
from tests.conftest import write_librispeech
from tests.integration.test_training import (
    finetune,
    pretrain,
    read_metrics,
    read_split,
    read_weights,
    stop_after,  # noqa: F401  (a fixture)
)

SMALL = {"training.update_s": 8, "training.sub_batch_s": 4, "training.forward_s": 4, "data.max_s": 4, "data.min_s": 0.5}


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """A corpus of its own, since its files are damaged."""
    from speechssl.data.manifest import save_manifest

    write_librispeech(tmp_path / "corpus", "train", range(1, 5))
    write_librispeech(tmp_path / "corpus", "dev", range(20, 22), num_utterances=2)
    for split in ("train", "dev"):
        save_manifest(read_split(tmp_path / "corpus" / split), tmp_path / f"{split}.tsv")
    return tmp_path


def damage(manifests: Path, rows: list[int], split: str = "train") -> list[str]:
    """Put zeros in the place of files, and return their ids."""
    manifest = load_manifest(manifests / f"{split}.tsv")
    for row in rows:
        path = manifest[row].path
        path.write_bytes(bytes(path.stat().st_size))
    return [manifest[row].id for row in rows]


def read_table(run: Path) -> list[list[str]]:
    header, *lines = (run / "left_out.tsv").read_text().splitlines()
    assert header == "id\tpath\treason"
    return [line.split("\t") for line in lines]


def test_a_damaged_file_is_left_out_named_and_counted(
    manifests: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (name,) = damage(manifests, [3])
    caplog.set_level(logging.WARNING, "speechssl")
    result = pretrain(manifests, tmp_path / "run", **SMALL, **{"training.max_updates": 6})
    assert (result["updates"], result["num_left_out"]) == (6, 1)
    ((listed, path, reason),) = read_table(tmp_path / "run")
    assert (listed, Path(path).stem) == (name, name)
    assert name in reason
    assert sum(f"{name}: " in record.message for record in caplog.records) == 1


@pytest.mark.slow
def test_hours_count_what_was_read(manifests: Path, tmp_path: Path) -> None:
    whole = pretrain(manifests, tmp_path / "whole", **SMALL, **{"training.max_updates": 1})
    damage(manifests, list(range(3)))
    less = pretrain(manifests, tmp_path / "less", **SMALL, **{"training.max_updates": 1})
    manifest = load_manifest(manifests / "train.tsv")
    lost = {row[0] for row in read_table(tmp_path / "less")} if less["num_left_out"] else set()
    seconds = {manifest[row].id: min(manifest[row].duration_s, 4.0) for row in range(len(manifest))}
    assert less["hours_seen"] <= whole["hours_seen"]
    assert (whole["hours_seen"] - less["hours_seen"]) * 3600 == pytest.approx(sum(seconds[n] for n in lost), abs=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("train", [pretrain, finetune])
def test_a_run_with_damaged_files_goes_on_to_the_bit(
    manifests: Path,
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
    train: Callable[..., dict[str, Any]],
) -> None:
    """Also with other numbers of workers, and where a whole sub-batch or update cannot be read."""
    damage(manifests, [1, 2, 5])
    damage(manifests, [1], "dev")
    keys = {"model": "tiny", "training.max_updates": 10, "training.checkpoint_every": 3, "training.update_s": 4}
    keys |= {"training.sub_batch_s": 2, "training.forward_s": 4}
    keys |= {"data.min_s": 0.5} if train is pretrain else {}
    train(manifests, tmp_path / "whole", **keys)
    stop_after(5)
    with pytest.raises(StoppedOnRequest):
        train(manifests, tmp_path / "parts", **keys)
    result = train(manifests, tmp_path / "parts", **keys | {"data.num_workers": 2})
    assert result["num_left_out"] == 4
    assert read_table(tmp_path / "parts") == read_table(tmp_path / "whole")
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_an_update_of_which_nothing_can_be_read_changes_nothing(manifests: Path, tmp_path: Path) -> None:
    """An utterance an update: three of them are damaged."""
    ids = damage(manifests, [0, 1, 2])
    keys = {"training.max_updates": 1, "training.update_s": 1, "training.sub_batch_s": 1, "training.forward_s": 1}
    keys |= {"training.checkpoint_every": 1, "training.keep_checkpoints": 100}
    pretrain(manifests, tmp_path / "run", **keys)
    updates = len(load_manifest(manifests / "train.tsv"))
    pretrain(manifests, tmp_path / "run", **keys | {"training.max_updates": updates})
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(name for row in skipped for name in row["ids"]) == sorted(ids)
    lines = {row["update"]: row for row in read_metrics(tmp_path / "run") if row["split"] == "train"}
    for row in skipped:
        assert row["reason"] == "none of its utterances can be read"
        assert lines[row["update"]]["loss"] is None
        before = lines[row["update"] - 1]["hours_seen"] if row["update"] > 1 else 0.0
        assert lines[row["update"]]["hours_seen"] == before
    assert lines[updates]["skipped_updates"] == 0, "numbers were never wrong"


def test_a_folder_that_is_gone_is_one_sentence(manifests: Path, tmp_path: Path) -> None:
    (manifests / "corpus" / "train").rename(manifests / "corpus" / "elsewhere")
    with pytest.raises(DataError, match=r"`data.train` must hold audio that can be read, but .*No such file"):
        pretrain(manifests, tmp_path / "run", **SMALL, **{"data.valid": []})


def test_a_validation_of_which_nothing_can_be_read_is_one_sentence(manifests: Path, tmp_path: Path) -> None:
    damage(manifests, list(range(4)), "dev")
    with pytest.raises(DataError, match=r"`data.valid` must hold audio that can be read, but "):
        pretrain(manifests, tmp_path / "run", **SMALL)


def test_codes_are_fitted_to_what_can_be_read(manifests: Path, tmp_path: Path) -> None:
    damage(manifests, [0, 1])
    keys = {"objective": "masked_codes", "objective.targets": "kmeans", "objective.num_codes": 4}
    result = pretrain(manifests, tmp_path / "run", **SMALL, **keys, **{"training.max_updates": 6})
    assert result["num_left_out"] == 2
