"""Fewer frames after the blocks: how many, whose they are, and where they stand in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import speechssl
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.errors import ConfigError
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.ctc import contextualise
from speechssl.text.vocabulary import build_vocabulary
from tests.cases import each_case
from tests.conftest import make_speech

SHAPES: dict[str, dict[str, Any]] = {
    "one": {"length_adapter_layers": 1},
    "two of stride 3": {"length_adapter_layers": 2, "length_adapter_stride": 3},
    "wide, after a feed-forward part": {
        "length_adapter_layers": 2,
        "length_adapter_kernel": 5,
        "length_adapter_ffn": True,
    },
    "stride 1": {"length_adapter_layers": 1, "length_adapter_stride": 1, "length_adapter_kernel": 1},
}


def build(config: ModelConfig, shape: str) -> SpeechModel:
    torch.manual_seed(1)
    return SpeechModel(replace(config, **SHAPES[shape]), build_vocabulary(TextConfig(), [])).eval()


@each_case("shape", SHAPES)
def test_frames_are_as_many_as_are_counted_and_a_row_is_what_it_is_alone(
    shape: str, tiny_model_config: ModelConfig
) -> None:
    model = build(tiny_model_config, shape)
    field, hop = model.config.output_field, model.config.output_hop
    lengths = [16_000, 15_679, field + hop, field]
    rows = [0.1 * torch.randn(1, length) for length in lengths]
    batch = torch.cat([F.pad(row, (0, 16_000 - row.shape[1])) for row in rows])
    with torch.inference_mode():
        frames = model(batch, torch.tensor(lengths))
        for number, row in enumerate(rows):
            alone, count = model(row), int(frames.num_outputs[number])
            assert alone.last.shape[1] == alone.num_outputs[0] == count == model.config.count_outputs(row.shape[1])
            assert alone.layers[-1].shape[1] == frames.num_frames[number] == model.config.count_frames(row.shape[1])
            torch.testing.assert_close(frames.last[number, :count], alone.last[0], atol=1e-5, rtol=0)
            assert not frames.last[number, count:].any()
    assert frames.num_outputs.tolist()[2:] == [2, 1]
    assert model.config.count_outputs(field - 1) == 0
    assert frames.logits is not None and frames.logits.shape[:2] == frames.last.shape[:2]


def test_every_weight_of_it_learns(tiny_model_config: ModelConfig) -> None:
    model = build(tiny_model_config, "wide, after a feed-forward part").train()
    last, states, num_outputs = contextualise(model, 0.1 * torch.randn(2, 16_000), torch.tensor([16_000, 9_000]))
    assert last.shape[1] == int(num_outputs[0]) < states[-1].shape[1]
    last.square().sum().backward()
    assert model.backbone.length_adapter is not None
    for name, parameter in model.backbone.length_adapter.named_parameters():
        # What is added to every key alike changes no weight of attention.
        assert parameter.grad is not None and (parameter.grad.any() or name.endswith("key.bias")), name


def test_the_output_has_its_own_times_in_windows_too(tiny_model_config: ModelConfig) -> None:
    model = build(tiny_model_config, "one")
    for seconds in (2.0, 11.3):
        wave = make_speech(seconds, 2)
        for layer, hop in (("last", 640), (1, 320)):
            table = speechssl.embed(model, wave, sample_rate=16_000, layer=layer, pooling="frames", window_s=5.0)
            starts = table.column("start_s").to_numpy()
            assert len(starts) == (len(wave) - 400) // hop + 1
            np.testing.assert_allclose(starts, hop / 16_000 * np.arange(len(starts)))
            np.testing.assert_allclose(table.column("end_s").to_numpy() - starts, 0.025)
        assert isinstance(speechssl.transcribe(model, wave, sample_rate=16_000, window_s=5.0)[0], str)


MISTAKES: dict[str, dict[str, Any]] = {
    "length_adapter_kernel` must be a whole number between 5": {"length_adapter_stride": 4},
    "length_adapter_layers` must be a whole number between 0 and 64, but is 65": {"length_adapter_layers": 65},
    "length_adapter_stride` must be a whole number between 1": {"length_adapter_stride": 0},
    "length_adapter_ffn` must be false where": {"length_adapter_ffn": True},
    "self_conditioning` must be 0 where": {"length_adapter_layers": 1, "self_conditioning": 1},
}


@each_case("sentence", MISTAKES)
def test_a_mistake_is_one_sentence(sentence: str, tiny_model_config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=f"^`model.{sentence}"):
        replace(tiny_model_config, **MISTAKES[sentence])


def test_it_is_for_ctc_on_the_output_alone(tiny_model_config: ModelConfig) -> None:
    config = replace(tiny_model_config, length_adapter_layers=1)
    with pytest.raises(ConfigError, match=r"^`model.length_adapter_layers` must be 0 in pretraining"):
        PretrainConfig(model=config, out="x")
    with pytest.raises(
        ConfigError, match=r"^`intermediate_weight` must be 0 where model.length_adapter_layers is more"
    ):
        FinetuneConfig(model=config, out="x", intermediate_weight=0.3)
