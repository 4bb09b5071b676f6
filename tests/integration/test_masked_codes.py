"""Runs of `objective=masked_codes` end to end: resume to the bit, learning, and what the other verbs make of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import safetensors.torch
import soundfile
import torch

import speechssl
from speechssl.checkpoints.clusters import read_clusters, write_clusters
from speechssl.config.objective import MaskedCodesConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.data.loader import Batch
from speechssl.data.sampler import ForwardPlan
from speechssl.errors import ConfigError, SpeechSSLError, StoppedOnRequest
from speechssl.objectives import masked_codes
from speechssl.objectives.protocol import Beginning
from speechssl.report.page import build_report
from tests.integration.test_training import (  # noqa: F401
    manifests,
    pretrain,
    read_metrics,
    read_weights,
    stop_after,
    two_threads,
)

RANDOM = {"objective": "masked_codes", "objective.num_codes": 64}
MFCC = {"objective": "masked_codes", "objective.targets": "kmeans", "objective.num_codes": 20, "objective.fit_s": 30}
INNER = {"objective.intermediate_layer": 1}


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("keys", "workers"), [(RANDOM, 2), (MFCC | INNER, 0)])
def test_a_resumed_run_is_the_uninterrupted_one(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    workers: int,
) -> None:
    """Weights, codes, average, optimizer and log lines, to the bit; k-means is fitted once."""
    pretrain(manifests, tmp_path / "whole", **keys)
    stop_after(5)
    with pytest.raises(StoppedOnRequest):
        pretrain(manifests, tmp_path / "parts", **keys)
    monkeypatch.setattr(masked_codes, "fit_centroids", lambda *_: pytest.fail("k-means is fitted again"))
    pretrain(manifests, tmp_path / "parts", **keys, **{"data.num_workers": workers})
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert whole["objective.codes"].abs().sum() > 0 and whole["objective/codes.counts"].sum() > 500


@pytest.mark.slow
def test_a_teacher_of_ones_own_gives_the_targets_and_must_stay_as_it_was(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
) -> None:
    short = {"training.max_updates": 4, "training.checkpoint_every": 2}
    pretrain(manifests, tmp_path / "teacher", **RANDOM, **short)
    keys = MFCC | {"objective.teacher": str(tmp_path / "teacher"), "objective.teacher_layer": 1} | short
    pretrain(manifests, tmp_path / "whole", **keys)
    stop_after(3)
    with pytest.raises(StoppedOnRequest):
        pretrain(manifests, tmp_path / "parts", **keys)
    pretrain(manifests, tmp_path / "parts", **keys)
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not [name for name in whole if "teacher" in name and name != "objective/codes.teacher"]
    assert read_metrics(tmp_path / "whole")[-1]["code_perplexity"] > 5
    pretrain(manifests, tmp_path / "teacher", **RANDOM, **short, overwrite=True, seed=2)
    with pytest.raises(ConfigError, match="`objective.teacher` must have the weights that the run began with"):
        pretrain(manifests, tmp_path / "parts", **keys | {"training.max_updates": 5})


@pytest.mark.slow
def test_the_loss_falls_below_the_entropy_of_the_targets(manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    """It knows more than how often each code comes: what is masked is told from what stands around it."""
    pretrain(
        manifests,
        tmp_path / "run",
        **MFCC,
        **{
            "data.limit_s": 8.0,
            "data.valid": [],
            "model.layer_drop_prob": 0.0,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
            "model.input_dropout": 0.0,
            "training.update_s": 8,
            "training.max_updates": 300,
            "training.checkpoint_every": 1000,
            "training.lr": 2e-3,
        },
    )
    rows = read_metrics(tmp_path / "run")
    assert rows[0]["loss_codes"] == pytest.approx(math.log2(20), abs=0.5)
    loss, entropy, perplexity = (
        mean(row[name] for row in rows[-20:]) for name in ("loss_codes", "target_entropy", "prediction_perplexity")
    )
    assert loss < entropy - 0.3
    assert perplexity > 1.3
    assert not any(row["collapse_warning"] for row in rows)


def test_clusters_of_units_are_the_targets_and_must_stay_as_they_were(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
) -> None:
    """Nothing is fitted, and the targets of whole utterances are what `units` writes."""
    pretrain(manifests, tmp_path / "teacher", **{"training.max_updates": 1})
    given = {"checkpoint": str(tmp_path / "teacher"), "audio": str(manifests / "dev.tsv"), "layer": 1, "device": "cpu"}
    speechssl.units(**given, num_codes=10, out=str(tmp_path / "u.tsv"))
    file = tmp_path / "u.clusters.safetensors"
    keys = {
        "objective": "masked_codes", "objective.targets": "kmeans", "objective.teacher": str(tmp_path / "teacher"),
        "objective.teacher_layer": 1, "objective.codes": str(file), "training.max_updates": 2,
        "training.checkpoint_every": 1,
    }  # fmt: skip
    stop_after(1)
    with pytest.raises(StoppedOnRequest):
        pretrain(manifests, tmp_path / "run", **keys)
    pretrain(manifests, tmp_path / "run", **keys)
    stored, centroids = read_weights(tmp_path / "run"), safetensors.torch.load_file(file)["centroids"]
    assert torch.equal(stored["objective.codes"], centroids)
    assert stored["objective/codes.counts"].shape == (10,)

    config = PretrainConfig(model=speechssl.load(tmp_path / "teacher").config, out="x")
    task = MaskedCodesConfig(targets="kmeans", teacher=str(tmp_path / "teacher"), teacher_layer=1, codes=str(file))
    objective = masked_codes.build(config, task, Beginning(False, 0.0, lambda _: iter(()), lambda make: make()))
    rows = [line.split("\t") for line in (tmp_path / "u.tsv").read_text().splitlines()[1:]]
    assert len(rows) == 4
    for name, path, _, units in rows:
        x = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
        every = torch.arange(int(config.model.count_frames(x.shape[1])))[None]
        assert objective.teacher is not None
        batch = Batch(x, None, [name], ForwardPlan(1, (), True), torch.ones(1, 1), {}, [])
        told = objective._ask(objective.teacher, batch, every)
        assert told.flatten().tolist() == [int(unit) for unit in units.split()]

    last = str(tmp_path / "last.safetensors")
    write_clusters(Path(last), replace(read_clusters(str(file), "codes"), layer="last"))
    for change, sentence in (
        ({"objective.codes": last}, "`objective.codes` must be clusters of a layer with a number, but is .*, of last"),
        ({"objective.teacher_layer": 2}, "`objective.teacher_layer` must be 1, which .* has clusters of, but is 2"),
        ({"objective.num_codes": 9}, "`objective.num_codes` must be 0 or the 10 of the clusters, but is 9"),
        ({"objective.teacher": str(tmp_path / "run")}, "`objective.teacher` must be the model that the clusters"),
        ({"objective.teacher": "mfcc"}, "`objective.codes` must be left out unless objective.targets is kmeans and"),
        ({"objective.codes": "nowhere"}, "`objective.codes` must be a file of clusters .*, but nowhere cannot be read"),
    ):
        with pytest.raises(SpeechSSLError, match=sentence):
            pretrain(manifests, tmp_path / "other", **keys | change)
    speechssl.units(**given, num_codes=10, seed=2, out=str(tmp_path / "u.tsv"), overwrite=True)
    with pytest.raises(ConfigError, match="`objective.teacher` must have the weights and codes that the run began"):
        pretrain(manifests, tmp_path / "run", **keys | {"training.max_updates": 3})


@pytest.fixture(scope="module")
def run(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("codes") / "run"
    pretrain(manifests, folder, **RANDOM, **{"training.max_updates": 2})
    return folder


def test_other_verbs_take_its_backbone(
    run: Path,
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="speechssl"):
        model = speechssl.load(run)
    told = "left out is what only its pretraining needs: objective.codes, objective.heads.0.bias"
    assert told in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="speechssl"):
        build_report([run], tmp_path / "page.html")
    assert told not in caplog.text, "the pictures need the backbone alone"
    stored = safetensors.torch.load_file(run / "checkpoints" / "best" / "model.safetensors")
    assert {name for name in stored if name.startswith("objective.")} >= {"objective.codes", "objective.projection"}
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    speechssl.save(model, tmp_path / "hf", format="huggingface")
    x = torch.randn(1, 16_000)
    assert torch.equal(speechssl.load(tmp_path / "hf")(x).last, model(x).last)
    assert speechssl.convert(checkpoint=str(run), to="huggingface", out=str(tmp_path / "hf2"))["kind"] == "backbone"
    tuned = speechssl.finetune(
        init=str(run),
        out=str(tmp_path / "ctc"),
        device="cpu",
        **{"data.train": [str(manifests / "train.tsv")], "data.num_workers": 0, "training.max_updates": 1},
    )
    assert tuned["updates"] == 1
    table = speechssl.embed(model, str(manifests / "dev.tsv"), layer="all")
    assert table.num_rows == 3 * 4
    average = speechssl.load(run, weights="ema")
    assert not torch.equal(average.backbone.mask_embedding, model.backbone.mask_embedding)


def test_its_report_tells_of_codes(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for title in ("Code loss", "entropy of the targets", "Masked share", "knowing only how often each code comes"):
        assert title in page
    for title in ("Contrastive loss", "codebook 1", "candidates"):
        assert title not in page


def test_backbones_go_both_ways_between_objectives(run: Path, manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    """With a rate of nearly nothing, one update leaves the backbone that `init` gave."""
    short = {"training.max_updates": 1, "training.lr": 1e-9}
    pretrain(manifests, tmp_path / "contrastive", **short, init=str(run))
    pretrain(manifests, tmp_path / "codes", **short, **RANDOM, init=str(tmp_path / "contrastive"))
    pretrain(manifests, tmp_path / "again", **short, **RANDOM, init=str(run))
    expected = speechssl.load(run).backbone.state_dict()
    for name in ("contrastive", "codes", "again"):
        found = speechssl.load(tmp_path / name).backbone.state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=f"{name}: {key}")
