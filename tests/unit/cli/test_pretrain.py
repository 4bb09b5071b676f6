"""What `pretrain` says before it begins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import speechssl
from speechssl.cli import pretrain
from speechssl.data.manifest import Utterance, build_manifest, save_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    rows = []
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 48_000), 16_000)
        rows.append(Utterance(path.stem, path, 16_000, 48_000, 0, "a", None))
    save_manifest(build_manifest(rows, tmp_path), tmp_path / "all.tsv")
    return str(tmp_path / "all.tsv")


@pytest.mark.parametrize(
    ("keys", "times"),
    [
        ({"model": "base", "training.update_s": 87.5}, 1),
        ({"model": "base", "training": "pretrain_base_small_batch", "training.lr": 5e-4}, 1),
        ({"model": "base", "training": "pretrain_base_small_batch"}, 0),
        ({"model": "tiny", "training.lr": 0.1}, 0),
    ],
)
def test_a_batch_or_rate_that_nobody_has_seen_converge_is_warned_of_once(
    keys: dict[str, Any],
    times: int,
    manifest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pretrain, "train", lambda *_: {"updates": 0})
    with caplog.at_level(logging.WARNING, "speechssl"):
        common = {"data.train": [manifest], "out": str(tmp_path / "run"), "device": "cpu", "precision": "float32"}
        speechssl.pretrain(**keys, **common)
    warnings = [record.getMessage() for record in caplog.records if "nobody has published" in record.getMessage()]
    assert len(warnings) == times


def test_k_means_is_said_to_hear_no_more_than_there_is(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pretrain, "train", lambda *_: {"updates": 0})
    keys = {"model": "tiny", "objective": "masked_codes", "objective.targets": "kmeans", "objective.num_codes": 4}
    common = {"data.train": [manifest], "data.num_workers": 0, "device": "cpu", "precision": "float32"}
    with caplog.at_level(logging.INFO, "speechssl"):
        speechssl.pretrain(**keys, **common, out=str(tmp_path / "a"))
        speechssl.pretrain(**keys, **common, **{"objective.fit_s": 5.5}, out=str(tmp_path / "b"))
    said = [record.getMessage() for record in caplog.records if "k-means" in record.getMessage()]
    assert said == ["k-means: fitting to 12 s of data.train", "k-means: fitting to 5.5 s of data.train"]
