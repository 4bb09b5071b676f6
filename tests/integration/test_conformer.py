"""Conformer blocks at 25 Hz, trained: both objectives and CTC, runs that go on to the bit, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import speechssl
from speechssl.errors import ConfigError, StoppedOnRequest
from tests.integration.test_training import (
    finetune,
    manifests,  # noqa: F401  (a fixture)
    pretrain,
    stop_after,  # noqa: F401  (a fixture)
)

CONFORMER = {
    "model.front_end": "log_mel", "model.frame_rate": 25, "model.block": "conformer", "model.norm_first": True,
    "model.positions": "rotary", "model.block_kernel": 7, "model.mask.length": 5, "model.layer_drop_prob": 0.2,
    "training.max_updates": 3,
}  # fmt: skip


def test_both_objectives_and_ctc_train_and_resume_to_the_bit(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
    librispeech_tree: Path,
) -> None:
    pretrain(manifests, tmp_path / "contrastive", **CONFORMER)
    codes = CONFORMER | {"objective": "masked_codes", "objective.targets": "kmeans", "objective.num_codes": 8}
    codes |= {"model.block_norm": "batch", "model.macaron": True, "training.ema_decay": 0.0}
    pretrain(manifests, tmp_path / "codes", **codes)
    stop_after(2)
    with pytest.raises(StoppedOnRequest):
        pretrain(manifests, tmp_path / "parts", **codes)
    pretrain(manifests, tmp_path / "parts", **codes)
    for name in ("model", "training"):
        files = (tmp_path / run / "checkpoints" / "last" / f"{name}.safetensors" for run in ("codes", "parts"))
        whole, parts = map(safetensors.torch.load_file, files)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole), name
    with pytest.raises(ConfigError, match=r"`model\.block_norm` must be layer with .*\.ema_decay, but is 'batch'"):
        pretrain(manifests, tmp_path / "averaged", **codes | {"training.ema_decay": 0.9})

    tuning = {"init": str(tmp_path / "codes"), "training.max_updates": 3, "training.ema_decay": 0.0}
    finetune(manifests, tmp_path / "ctc", **tuning)
    model = speechssl.load(tmp_path / "ctc")
    assert (model.config.frame_rate, model.config.block, model.config.block_norm) == (25, "conformer", "batch")
    table = speechssl.embed(model, librispeech_tree / "dev", pooling="frames")
    assert table.column("start_s").to_pylist()[:3] == pytest.approx([0.0, 0.04, 0.08])
    report = speechssl.report(run=str(tmp_path / "contrastive"), out=str(tmp_path / "page.html"))
    assert "40 ms frame" in Path(report["out"]).read_text()


BANDS = {
    "model.front_end": "kaldi_fbank", "model.block": "conformer", "model.norm_first": True, "model.macaron": True,
    "model.block_bias": False, "model.block_causal": True, "model.final_norm": False, "model.block_kernel": 7,
    "model.positions": "relative_key", "model.attention_dropout": 0.1, "training.max_updates": 3,
}  # fmt: skip


@pytest.mark.slow
def test_w2v_bert_is_pretrained_resumed_exported_and_fine_tuned(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
    librispeech_tree: Path,
) -> None:
    pretrain(manifests, tmp_path / "whole", **BANDS)
    stop_after(2)
    with pytest.raises(StoppedOnRequest):
        pretrain(manifests, tmp_path / "parts", **BANDS)
    pretrain(manifests, tmp_path / "parts", **BANDS)
    files = (tmp_path / run / "checkpoints" / "last" / "model.safetensors" for run in ("whole", "parts"))
    whole, parts = map(safetensors.torch.load_file, files)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    speechssl.convert(checkpoint=str(tmp_path / "whole"), to="huggingface", out=str(tmp_path / "hf"))
    read = speechssl.load(tmp_path / "hf").backbone.state_dict()
    trained = speechssl.load(tmp_path / "whole").backbone.state_dict()
    assert all(torch.equal(read[key], trained[key]) for key in trained)
    finetune(manifests, tmp_path / "ctc", **{"init": str(tmp_path / "hf"), "training.max_updates": 3})
    speechssl.convert(checkpoint=str(tmp_path / "ctc"), to="huggingface", out=str(tmp_path / "ctc-hf"))
    texts = [
        speechssl.transcribe(str(tmp_path / name), librispeech_tree / "dev", batch_s=10.0) for name in ("ctc", "ctc-hf")
    ]
    assert texts[0] == texts[1]
    table = speechssl.embed(str(tmp_path / "ctc-hf"), librispeech_tree / "dev", layer="all")
    assert set(table.column("layer").to_pylist()) == {"0", "1", "2"}
