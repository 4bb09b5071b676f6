"""The Python face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import speechssl
from speechssl.config import ModelConfig
from speechssl.model.masking import sample_masks, sample_negatives
from speechssl.model.speech_model import SpeechModel


@pytest.fixture
def model(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(0)
    return SpeechModel(tiny_model_config, pretraining=True).eval()


def test_save_and_load_give_the_same_frames(model: SpeechModel, tmp_path: Path) -> None:
    speechssl.save(model, tmp_path / "saved")
    loaded = speechssl.load(tmp_path / "saved")
    waveforms = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(waveforms).last, model(waveforms).last)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(parameter.requires_grad for parameter in speechssl.load(tmp_path / "saved", trainable=True).parameters())


@pytest.mark.parametrize("format", ["huggingface", "fairseq"])
def test_other_formats_keep_the_pretraining_heads(format: str, model: SpeechModel, tmp_path: Path) -> None:
    speechssl.save(model, tmp_path / "saved.pt", format=format)
    loaded = speechssl.load(tmp_path / "saved.pt").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_pretraining_forward_takes_everything_that_is_drawn(model: SpeechModel) -> None:
    rng = np.random.default_rng(3)
    waveforms = torch.from_numpy(rng.standard_normal((2, 32_000)).astype(np.float32)) * 0.1
    num_frames = int(model(waveforms).num_frames[0])
    masks = sample_masks([num_frames] * 2, model.config.mask, rng)
    mask = torch.from_numpy(np.stack(masks))
    negatives = torch.from_numpy(np.stack([sample_negatives(int(row.sum()), 20, rng) for row in masks]))
    num_masked = negatives.shape[1]
    noise = torch.zeros(2, num_masked, 2, model.config.quantizer.num_codes)
    out = speechssl.pretraining_forward(model, waveforms, None, mask, negatives, noise, temperature=2.0)
    assert out.logits.shape == (2, num_masked, 21)
    assert int(out.count) == int(mask.sum())
    parts = out.contrastive_sum + out.diversity_sum + out.features_sum
    torch.testing.assert_close(out.loss_sum.detach().double(), parts)
    # Zero noise leaves the choice as it is without noise.
    again = speechssl.pretraining_forward(model, waveforms, None, mask, negatives, None, temperature=2.0)
    torch.testing.assert_close(out.contrastive_sum, again.contrastive_sum)


def test_pretraining_forward_needs_the_heads(tiny_model_config: ModelConfig) -> None:
    bare = SpeechModel(tiny_model_config)
    with pytest.raises(speechssl.CheckpointError, match="pretraining heads"):
        speechssl.pretraining_forward(
            bare, torch.zeros(1, 400), None, torch.ones(1, 1).bool(), torch.zeros(1, 1, 1), None, 1.0
        )


def test_a_verb_is_a_function_of_its_name() -> None:
    assert "torch" in speechssl.doctor()["packages"]
    with pytest.raises(speechssl.ConfigError, match="`training.lr`"):
        speechssl.pretrain(model="tiny", out="x", training={"lrr": 1.0})
