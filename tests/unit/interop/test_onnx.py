"""What an export for serving says of itself, and what it refuses; tests/integration/test_serving.py runs the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speechssl
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop import onnx
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from tests.cases import each_case


@pytest.fixture
def recogniser(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(8)
    return SpeechModel(tiny_model_config, build_vocabulary(TextConfig(), []))


@each_case("what", onnx.OUTPUTS)
def test_it_gives_what_the_model_gives_and_zero_beyond(what: str, recogniser: SpeechModel) -> None:
    model, waveforms = recogniser.eval(), 0.1 * torch.randn(3, 4_000)
    num_samples = torch.tensor([4_000, 2_000, 300])
    with torch.no_grad():
        values, num_frames = onnx.ServingModel(model, what)(waveforms, num_samples)
        expected = model.logits(waveforms, num_samples)[0] if what == "logits" else model(waveforms, num_samples).last
    assert num_frames.tolist() == [12, 6, 0]
    for row, count in enumerate(num_frames.tolist()):
        torch.testing.assert_close(values[row, :count], expected[row, :count], atol=0, rtol=0)
        assert not values[row, count:].any()


def test_a_file_says_what_decides_the_audio(recogniser: SpeechModel) -> None:
    facts = onnx.describe_model(recogniser, "logits", update=7)
    assert (facts["output"], facts["sample_rate"]) == ("logits", "16000")
    assert json.loads(facts["vocabulary"])[:5] == ["<s>", "<pad>", "</s>", "<unk>", "|"]
    audio = json.loads(facts["audio"])
    assert (audio["min_samples"], audio["receptive_field_samples"], audio["hop_samples"]) == (720, 400, 320)
    assert (audio["normalize_waveform"], audio["group_norm_frames"]) == (False, "valid")
    ours = json.loads(facts["speechssl"])
    assert (ours["update"], ours["model"]["name"]) == (7, "tiny")
    assert recogniser.vocabulary is not None
    assert Vocabulary.from_dict(ours["vocabulary"]) == recogniser.vocabulary
    assert "vocabulary" not in onnx.describe_model(recogniser, "features")


def test_layer_norm_has_no_frames_to_take_statistics_over(tiny_model_config: ModelConfig) -> None:
    config = replace(tiny_model_config, conv_norm="layer", normalize_waveform=True, waveform_epsilon=1e-7)
    audio = json.loads(onnx.describe_model(SpeechModel(config), "features")["audio"])
    assert (audio["group_norm_frames"], audio["normalize_waveform"], audio["waveform_epsilon"]) == (None, True, 1e-7)


def test_what_an_export_leaves_behind_is_named(recogniser: SpeechModel, tiny_model_config: ModelConfig) -> None:
    pretrained = SpeechModel(tiny_model_config, pretraining=True)
    assert (onnx.choose_output(recogniser), onnx.choose_output(pretrained)) == ("logits", "features")
    assert onnx.list_left_behind(recogniser, "logits") == ("mask vector",)
    assert onnx.list_left_behind(recogniser, "features") == ("mask vector", "CTC head")
    assert onnx.list_left_behind(pretrained, "features") == ("mask vector", "quantizer, target and context projection")


def test_an_output_that_is_not_there(recogniser: SpeechModel, tiny_model_config: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match="`checkpoint` must be a recogniser for an export of logits, but has no"):
        onnx.export_program(SpeechModel(tiny_model_config), "logits")
    with pytest.raises(ConfigError, match="`what` must be one of logits, features, but is 'text'"):
        onnx.export_program(recogniser, "text")


@each_case("format", ["onnx", "onnx_features"])
def test_a_missing_package_names_the_extra(
    format: str, recogniser: SpeechModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"but onnxscript cannot be found: pip install 'speechssl\[onnx\]'") as caught:
        speechssl.save(recogniser, tmp_path / "model.onnx", format=format)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
