"""Inference neither depends on the mode of a model that others share, nor changes it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import speechssl
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.model.speech_model import SpeechModel, as_evaluating


@pytest.fixture
def recogniser(tiny_model_config: ModelConfig) -> SpeechModel:
    """Give a recogniser in training mode, with dropout, but for a part that is kept in evaluation mode."""
    torch.manual_seed(0)
    config = replace(tiny_model_config, dropout=0.5)
    model = SpeechModel(config, speechssl.build_vocabulary(TextConfig(), [])).train()
    model.backbone.encoder.eval()
    return model


def test_weights_are_shared_and_modes_are_not(recogniser: SpeechModel) -> None:
    modes = [module.training for module in recogniser.modules()]
    twin = as_evaluating(recogniser)
    assert not any(module.training for module in twin.modules())
    assert [module.training for module in recogniser.modules()] == modes
    assert len(list(twin.modules())) == len(modes)
    pairs = zip(twin.state_dict(keep_vars=True).values(), recogniser.state_dict(keep_vars=True).values(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    waveforms = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    first = twin(waveforms).last
    with torch.no_grad():
        recogniser.backbone.feature_norm.weight.mul_(2.0)
    assert not torch.equal(twin(waveforms).last, first), "a weight that changes, changes in both"
    assert torch.equal(as_evaluating(recogniser.eval())(waveforms).last, twin(waveforms).last)
    assert as_evaluating(recogniser) is recogniser


@pytest.mark.parametrize("function", ["embed", "transcribe"])
def test_threads_that_share_a_model_in_training_mode(function: str, recogniser: SpeechModel) -> None:
    """A switch of threads in the middle of one call must not let the other see a mode that is not its own."""
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(4000).astype(np.float32) for _ in range(6)]
    modes = [module.training for module in recogniser.modules()]
    call = getattr(speechssl, function)

    def run(wave: np.ndarray) -> object:
        result = call(recogniser, wave, sample_rate=16_000)
        return result if isinstance(result, list) else result.column("embedding").to_pylist()

    expected = [run(wave) for wave in waves]
    seen: list[bool] = []
    recogniser.backbone.register_forward_pre_hook(lambda module, _: seen.append(recogniser.training))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, waves * 4)) == expected * 4
    assert all(seen), "not even for a moment"
    assert [module.training for module in recogniser.modules()] == modes
