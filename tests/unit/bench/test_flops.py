"""The FLOP count against hand counts, the published sizes, and torch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from speechssl.bench.flops import count_front_end, count_pretraining_heads, count_row, count_transformer, keep_share
from speechssl.bench.jobs import TrainingJob, build_job
from speechssl.bench.meter import Stopwatch
from speechssl.cli.compose import compose
from speechssl.config.model import ModelConfig
from speechssl.model import cpu
from speechssl.model.log_mel import LogMelEncoder
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case

CROP_S = 15.625
"""The longest crop of BASE's pretraining."""


def count_base_training() -> float:
    num_samples = round(CROP_S * 16_000)
    base = ModelConfig()
    return count_row(base, num_samples, count_pretraining_heads(base, 380), kept=keep_share(base)) / CROP_S


def test_training_base_costs_45_gflop_a_second_of_audio() -> None:
    assert count_base_training() == pytest.approx(44.6e9, rel=0.01)


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
    frames = tiny_model_config.count_frames(num_samples)
    # The even positional kernel makes one output more than is kept.
    positions = count_transformer(tiny_model_config, frames)["positions"]
    expected = count_row(tiny_model_config, num_samples, backward=False) + positions / frames
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)
    for macaron in (False, True):
        keys = {"block": "conformer", "norm_first": True, "positions": "rotary", "macaron": macaron}
        conformer = replace(tiny_model_config, **keys)
        model = SpeechModel(conformer).eval()
        math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with math, torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, num_samples))
        expected = count_row(conformer, num_samples, backward=False)
        assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)


def test_frozen_convolutions_run_forward_only() -> None:
    frozen = ModelConfig(feature_gradient_scale=0.0)
    front_end = count_front_end(frozen, 80_000)
    learned = count_row(ModelConfig(), 80_000) - count_row(frozen, 80_000)
    assert learned == pytest.approx(2 * sum(front_end) - front_end[0])


@each_case("job", ["pretrain", "ctc"])
def test_bench_does_not_count_blocks_that_layer_drop_skips(job: str) -> None:
    counts = []
    for prob in (0.0, 0.2):
        words = [job, "model=tiny", "batch=2", "seconds=2", "device=cpu", f"model.layer_drop_prob={prob}"]
        config = compose("bench", words)
        built = build_job(config, (torch.device("cpu"), "float32"))
        assert isinstance(built, TrainingJob)
        counts.append(built.run_step(Stopwatch(torch.device("cpu"))).flop)
    frames = config.model.count_frames(32_000)
    parts = count_transformer(config.model, frames)
    assert counts[0] - counts[1] == pytest.approx(2 * 3 * 0.2 * (parts["blocks"] + parts["attention"]))


def test_a_training_that_skips_every_second_block_runs_as_many_products_as_counted(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The products that torch's dispatcher sees, forward and backward, beside those of a training that skips all."""
    config = replace(
        tiny_model_config, layer_drop_prob=0.5, num_layers=4, dropout=0.0, attention_dropout=0.0, input_dropout=0.0
    )
    monkeypatch.setattr(cpu, "is_for", lambda *_: False)
    model = SpeechModel(config).train()
    counts = []
    for keep in ([True, False, True, False], [False] * 4):
        math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with math, FlopCounterMode(display=False) as counter:
            x = torch.randn(1, 49, config.model_dim)
            model.backbone.transformer(x, None, torch.tensor(keep))[0].sum().backward()
        counts.append(counter.get_total_flops())
    parts = count_transformer(config, 49)
    half = 3 * 0.5 * (parts["blocks"] + parts["attention"])
    assert counts[0] - counts[1] == pytest.approx(half, rel=0.01)
    assert count_row(config, 16_000) - count_row(config, 16_000, kept=keep_share(config)) == pytest.approx(half)


def test_a_projection_that_is_not_there_costs_nothing() -> None:
    assert count_transformer(ModelConfig(model_dim=512, num_heads=8), 100)["projection"] == 0


def test_log_mel_forward_equals_the_counter_of_torch(tiny_model_config: ModelConfig) -> None:
    config = replace(tiny_model_config, front_end="log_mel")
    encoder = LogMelEncoder(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 16_000), None)
    front_end = count_front_end(config, 16_000)
    assert counter.get_total_flops() == pytest.approx(sum(front_end), rel=1e-6)
    frozen = replace(config, feature_gradient_scale=0.0)
    learned = count_row(config, 16_000) - count_row(frozen, 16_000)
    assert learned == pytest.approx(front_end[1] + 2 * front_end[2]), "filters have no backward"
