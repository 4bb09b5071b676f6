"""Runs with log-mel input: pretraining, fine-tuning with masks over time and channels, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import speechssl
from speechssl.errors import CheckpointError, StoppedOnRequest
from tests.integration.test_training import (
    finetune,
    manifests,  # noqa: F401  (a fixture)
    pretrain,
    read_metrics,
    read_weights,
    stop_after,  # noqa: F401  (a fixture)
)

LOG_MEL = {"model.front_end": "log_mel", "model.num_mels": 40}


def check_equal(one: Path, two: Path) -> None:
    assert read_metrics(one) == read_metrics(two)
    whole, parts = read_weights(one), read_weights(two)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_runs_resume_to_the_bit_and_go_on_to_embeddings(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
    librispeech_tree: Path,
) -> None:
    keys = LOG_MEL | {"training.max_updates": 5}
    pretrain(manifests, tmp_path / "pre", **keys)
    stop_after(4)
    with pytest.raises(StoppedOnRequest):
        pretrain(manifests, tmp_path / "parts", **keys)
    pretrain(manifests, tmp_path / "parts", **keys | {"data.num_workers": 1})
    check_equal(tmp_path / "pre", tmp_path / "parts")

    tuning = {"init": str(tmp_path / "pre"), "training.max_updates": 5, "training.freeze_share": 0.2}
    tuning |= {"model.mask.prob": 0.5, "model.mask.channel_prob": 0.3, "model.mask.channel_length": 4}
    finetune(manifests, tmp_path / "ctc", **tuning)
    stop_after(3)
    with pytest.raises(StoppedOnRequest):
        finetune(manifests, tmp_path / "ctc_parts", **tuning)
    finetune(manifests, tmp_path / "ctc_parts", **tuning)
    check_equal(tmp_path / "ctc", tmp_path / "ctc_parts")

    model = speechssl.load(tmp_path / "ctc")
    assert (model.config.front_end, model.config.num_mels) == ("log_mel", 40)
    table = speechssl.embed(model, librispeech_tree / "dev", layer="all")
    assert set(table.column("layer").to_pylist()) == {"0", "1", "2"}
    speechssl.convert(checkpoint=str(tmp_path / "ctc"), to="speechssl", out=str(tmp_path / "copy"))
    with pytest.raises(CheckpointError, match=r"`model\.front_end` must be convolutions for fairseq"):
        speechssl.convert(checkpoint=str(tmp_path / "ctc"), to="fairseq", out=str(tmp_path / "fs"))


def test_scratch_recogniser_learns_from_the_first_update(manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    """Without `init`, with masks over time and channels: the front-end's weights move, and the loss falls."""
    keys = LOG_MEL | {"model": "tiny", "model.feature_gradient_scale": 1.0, "training.lr": 3e-3}
    finetune(manifests, tmp_path / "run", **keys | {"training.max_updates": 12, "model.mask.channel_prob": 0.3})
    lines = [line for line in read_metrics(tmp_path / "run") if line["split"] == "train"]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    moments = read_weights(tmp_path / "run")
    assert any("encoder.convs.0.weight" in name for name in moments)


def test_a_run_that_is_older_than_the_key_goes_on(manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    pretrain(manifests, run, **{"training.max_updates": 2})
    stored = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("front_end", "num_mels", "mel_channels", "mel_kernels"):
        del stored["model"][name]
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    assert pretrain(manifests, run, **{"training.max_updates": 3})["updates"] == 3
