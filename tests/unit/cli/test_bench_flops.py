"""The FLOP count against hand counts, the published sizes, and torch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from speechssl.cli.bench_flops import count_front_end, count_pretraining_heads, count_row, count_transformer
from speechssl.config import ModelConfig
from speechssl.model.lengths import compute_num_frames
from speechssl.model.speech_model import SpeechModel
from speechssl.model.wav2vec2 import build_front_end

CROP_S = 15.625
"""The longest crop of BASE's pretraining."""


def count_base_training() -> float:
    num_samples = round(CROP_S * 16_000)
    return count_row(ModelConfig(), num_samples, count_pretraining_heads(ModelConfig(), 380)) / CROP_S


def test_training_base_costs_46_gflop_a_second_of_audio() -> None:
    assert count_base_training() == pytest.approx(46e9, rel=0.03)


def test_a_third_of_it_is_convolutions_and_a_tenth_attention() -> None:
    num_samples = round(CROP_S * 16_000)
    front_end = count_front_end(ModelConfig(), num_samples)
    attention = count_transformer(ModelConfig(), 780)["attention"]
    whole = count_base_training() * CROP_S
    assert (3 * sum(front_end) - front_end[0]) / whole == pytest.approx(0.32, abs=0.01)
    assert 3 * attention / whole == pytest.approx(0.09, abs=0.01)


def test_forward_equals_the_counter_of_torch(tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products that torch's dispatcher sees, forward: the same sum from the configuration."""
    # Nor does it know products that write to a given tensor, as the CPU's own convolutions do.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    num_samples = 16_000
    model = SpeechModel(tiny_model_config).eval()
    # The counter does not know the CPU's fused attention.
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with math, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, num_samples))
    frames = compute_num_frames(num_samples, tiny_model_config.conv_kernels, tiny_model_config.conv_strides)
    # The even positional kernel makes one output more than is kept.
    positions = count_transformer(tiny_model_config, frames)["positions"]
    expected = count_row(tiny_model_config, num_samples, backward=False) + positions / frames
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)


def test_frozen_convolutions_run_forward_only() -> None:
    frozen = ModelConfig(feature_gradient_scale=0.0)
    front_end = count_front_end(frozen, 80_000)
    learned = count_row(ModelConfig(), 80_000) - count_row(frozen, 80_000)
    assert learned == pytest.approx(2 * sum(front_end) - front_end[0])


def test_a_projection_that_is_not_there_costs_nothing() -> None:
    assert count_transformer(ModelConfig(model_dim=512, num_heads=8), 100)["projection"] == 0


def test_log_mel_forward_equals_the_counter_of_torch(tiny_model_config: ModelConfig) -> None:
    config = replace(tiny_model_config, front_end="log_mel")
    encoder = build_front_end(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 16_000), None)
    front_end = count_front_end(config, 16_000)
    assert counter.get_total_flops() == pytest.approx(sum(front_end), rel=1e-6)
    frozen = replace(config, feature_gradient_scale=0.0)
    learned = count_row(config, 16_000) - count_row(frozen, 16_000)
    assert learned == pytest.approx(front_end[1] + 2 * front_end[2]), "filters have no backward"
