"""What `pretrain` says before it begins."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

import speechssl
from speechssl.checkpoints.model_folder import save_model
from speechssl.cli.compose import build_config
from speechssl.cli.main import main
from speechssl.cli.words import read_words
from speechssl.config.data import TextConfig
from speechssl.config.model import MaskConfig, ModelConfig
from speechssl.data.manifest import Utterance, build_manifest, save_manifest
from speechssl.errors import StoppedOnRequest
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from speechssl.training import run, stop
from speechssl.training.distributed import ranks as distributed
from tests.cases import each_case

RESULT = {"out": "x", "updates": 0, "best_update": 0, "hours_seen": 0.0, "valid": None}


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    rows = []
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 48_000), 16_000)
        rows.append(Utterance(path.stem, path, 16_000, 48_000, 0, "a", None))
    save_manifest(build_manifest(rows, tmp_path), tmp_path / "all.tsv")
    return str(tmp_path / "all.tsv")


@each_case(
    "keys, times",
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
    monkeypatch.setattr(run, "train", lambda *_: RESULT)
    with caplog.at_level(logging.WARNING, "speechssl"):
        common = {"data.train": [manifest], "out": str(tmp_path / "run"), "device": "cpu", "precision": "float32"}
        speechssl.pretrain(**keys, **common)
    warnings = [record.getMessage() for record in caplog.records if "nobody has published" in record.getMessage()]
    assert len(warnings) == times


def test_k_means_is_said_to_hear_no_more_than_there_is(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: RESULT)
    keys = {"model": "tiny", "objective": "masked_codes", "objective.targets": "kmeans", "objective.num_codes": 4}
    common = {"data.train": [manifest], "data.num_workers": 0, "device": "cpu", "precision": "float32"}
    with caplog.at_level(logging.INFO, "speechssl"):
        speechssl.pretrain(**keys, **common, out=str(tmp_path / "a"))
        speechssl.pretrain(**keys, **common, **{"objective.fit_s": 5.5}, out=str(tmp_path / "b"))
    said = [record.getMessage() for record in caplog.records if "k-means" in record.getMessage()]
    assert said == ["k-means: fitting to 12 s of data.train", "k-means: fitting to 5.5 s of data.train"]


def test_setting_up_counts_for_the_time_limit(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a scheduler: reading `init`, manifests and the fit of k-means are part of the run."""
    passed_s, seed_weights = [0.0], run.seed_weights
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s[0])
    for module in (distributed, stop):
        monkeypatch.setattr(module, "time", clock, raising=False)

    def take_an_hour(seed: int) -> None:
        passed_s[0] += 3_600.0
        seed_weights(seed)

    monkeypatch.setattr(run, "seed_weights", take_an_hour)
    keys = {"model": "tiny", "data.train": [manifest], "data.num_workers": 0, "device": "cpu", "precision": "float32"}
    keys |= {"training.update_s": 12, "training.sub_batch_s": 12, "training.forward_s": 12, "training.max_updates": 3}
    # An update a call, so that the run comes to its end.
    for update in (1, 2):
        with pytest.raises(StoppedOnRequest, match=f"max_hours after update {update};"):
            speechssl.pretrain(**keys, **{"training.max_hours": 0.9}, out=str(tmp_path / "run"))
    assert speechssl.pretrain(**keys, **{"training.max_hours": 0.9}, out=str(tmp_path / "run"))["updates"] == 3


@pytest.fixture
def recogniser(tiny_model_config: ModelConfig) -> SpeechModel:
    """A recogniser that calls itself `small`, with what fine-tuning had it forget and freeze."""
    tuned = replace(
        tiny_model_config,
        name="small",
        feature_gradient_scale=0.0,
        dropout=0.25,
        head_dropout=0.1,
        mask=MaskConfig(prob=0.05, length=3, channel_prob=0.25),
    )
    return SpeechModel(tuned, build_vocabulary(TextConfig(), []))


@each_case("format", ["speechssl", "huggingface", "fairseq"])
def test_a_recogniser_gives_its_network_and_not_the_values_of_its_fine_tuning(
    format: str, recogniser: SpeechModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "tuned.pt"
    speechssl.save(recogniser, place, format=format)
    words = [f"init={place}", "out=x", "model.dropout=0.3"]
    with caplog.at_level(logging.INFO, "speechssl"):
        config = build_config(read_words("pretrain", words)[0]).model
    assert (config.name, config.model_dim, config.front_end) == ("small", 32, "convolutions")
    assert (config.mask.prob, config.mask.length, config.mask.channel_prob) == (0.65, 5, 0.0)
    # The preset of its name says these; dropout was given.
    assert (config.feature_gradient_scale, config.mask.equalise, config.dropout) == (1.0, False, 0.3)
    (line,) = (message for message in caplog.messages if "is a recogniser" in message)
    for part in (f"init={place}", "model.mask.prob=0.05", "model.feature_gradient_scale=0.0", "model.dropout=0.25"):
        assert part in line
    assert "layer_drop_prob" not in line
    tuned = build_config(read_words("finetune", words[:2])[0]).model
    assert tuned.head_dropout == 0.1


def test_a_pretrained_model_gives_all_of_its_values(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    stored = replace(tiny_model_config, name="tiny", dropout=0.25, mask=MaskConfig(prob=0.4, length=3))
    save_model(SpeechModel(stored, pretraining=True), tmp_path / "pre")
    assert build_config(read_words("pretrain", [f"init={tmp_path / 'pre'}", "out=x"])[0]).model == stored


def test_weights_that_do_not_fit_are_one_sentence(
    manifest: str,
    tiny_model_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: RESULT)
    save_model(SpeechModel(replace(tiny_model_config, name="tiny"), pretraining=True), tmp_path / "pre")
    words = [f"init={tmp_path / 'pre'}", f"data.train={manifest}", f"out={tmp_path / 'x'}", "device=cpu"]
    assert main(["pretrain", *words, "model.quantizer.num_codes=64", "precision=float32"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "speechssl: `init` must have the shape of `model`, but does not: size mismatch for pretraining."
    )
