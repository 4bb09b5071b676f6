"""What `pretrain` says before it begins."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

import speechssl
from speechssl.cli import pretrain
from speechssl.data.manifest import Utterance, build_manifest, save_manifest
from speechssl.errors import StoppedOnRequest
from speechssl.training import distributed, stop


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


def test_setting_up_counts_for_the_time_limit(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a scheduler: reading `init`, manifests and the fit of k-means are part of the run."""
    passed_s, seed_weights = [0.0], pretrain.seed_weights
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s[0])
    for module in (distributed, stop):
        monkeypatch.setattr(module, "time", clock, raising=False)

    def take_an_hour(seed: int) -> None:
        passed_s[0] += 3_600.0
        seed_weights(seed)

    monkeypatch.setattr(pretrain, "seed_weights", take_an_hour)
    keys = {"model": "tiny", "data.train": [manifest], "data.num_workers": 0, "device": "cpu", "precision": "float32"}
    keys |= {"training.update_s": 12, "training.sub_batch_s": 12, "training.forward_s": 12, "training.max_updates": 1}
    with pytest.raises(StoppedOnRequest, match="max_hours before the first update"):
        speechssl.pretrain(**keys, **{"training.max_hours": 0.9}, out=str(tmp_path / "run"))
