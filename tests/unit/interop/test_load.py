"""The one entrance: what a value names is told from its content, and what is wrong with it in one sentence."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speechssl
from speechssl.checkpoints.model_folder import save_model
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.foreign import Foreign, build_model, wrap
from speechssl.interop.load import find_update, load_model, open_checkpoint, read_stored_card, write_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from tests.cases import each_case

FORMATS = {"speechssl": "folder", "huggingface": "folder", "torchaudio": "model.bin", "fairseq": "weights.whatever"}


@pytest.fixture
def recogniser(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(8)
    return SpeechModel(tiny_model_config, build_vocabulary(TextConfig(), [])).eval()


@each_case("format", FORMATS)
def test_every_format_is_found_by_its_content(format: str, recogniser: SpeechModel, tmp_path: Path) -> None:
    place = tmp_path / FORMATS[format]
    speechssl.save(recogniser, place, format=format)
    foreign = open_checkpoint(str(place))
    assert (foreign.family, foreign.card.kind) == (format, "ctc")
    loaded = speechssl.load(place)
    assert loaded.vocabulary is not None
    waveforms = torch.linspace(-1, 1, 8_000)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.logits(waveforms)[0], recogniser.logits(waveforms)[0], atol=0, rtol=0)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    stored = read_stored_card(str(place))
    assert (stored.kind, stored.model.num_layers, stored.model.model_dim) == ("ctc", 2, 32)


def test_a_trainable_model_of_another_toolkit(recogniser: SpeechModel, tmp_path: Path) -> None:
    speechssl.save(recogniser, tmp_path / "hf", format="huggingface")
    model = load_model(str(tmp_path / "hf"), trainable=True)
    assert model.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    first, second = model.logits(torch.zeros(1, 4_000))[0].sum(), load_model(str(tmp_path / "hf"))
    first.backward()
    assert model.head is not None
    assert model.head.linear.weight.grad is not None
    assert second.head is not None
    assert second.head.linear.weight.data_ptr() != model.head.linear.weight.data_ptr()


def test_the_facts_are_logged_in_one_line(
    recogniser: SpeechModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    speechssl.save(recogniser, tmp_path / "hf", format="huggingface")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["speechssl"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.INFO, "speechssl"):
        load_model(str(tmp_path / "hf"), key="init")
    (line,) = caplog.messages
    for part in ("init=", "huggingface ctc", "2x32", "parameters", "32 symbols", "group_norm_frames=valid"):
        assert part in line


def test_a_file_inside_a_folder_is_answered_with_the_folder(recogniser: SpeechModel, tmp_path: Path) -> None:
    speechssl.save(recogniser, tmp_path / "hf", format="huggingface")
    with pytest.raises(CheckpointError, match=r"must be the folder of model\.safetensors, but is the file: init="):
        load_model(str(tmp_path / "hf" / "model.safetensors"), key="init")
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "lone.pt")
    with pytest.raises(CheckpointError, match=r"must be a checkpoint of fairseq or torchaudio .* some\.weight"):
        load_model(str(tmp_path / "lone.pt"))


@each_case("content", [b"", b"hello", b"\x00" * 8 + b"{", b"PK\x03\x04 no zip"])
def test_a_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="`checkpoint` must ") as caught:
        load_model(str(tmp_path / "x.pt"))
    assert "\n" not in str(caught.value)


@each_case("format, theirs", [("huggingface", 1e-7), ("fairseq", 1e-5), ("torchaudio", 1e-5)])
def test_an_epsilon_that_a_format_cannot_say_is_left_behind_by_name(
    format: str, theirs: float, tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    vocabulary = build_vocabulary(TextConfig(), [])
    for number, (epsilon, normalises) in enumerate(((1e-3, True), (theirs, True), (1e-3, False))):
        config = replace(tiny_model_config, normalize_waveform=normalises, waveform_epsilon=epsilon)
        left = write_model(SpeechModel(config, vocabulary), tmp_path / str(number), format)
        line = f"waveform_epsilon=0.001 (there it is {theirs:g})"
        assert [item for item in left if "epsilon" in item] == ([line] if number == 0 else [])
        assert ("mask vector" in left) == (format == "torchaudio")


def test_an_unknown_format_is_one_sentence(recogniser: SpeechModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`format` must be one of speechssl, huggingface, fairseq, torchaudio"):
        speechssl.save(recogniser, tmp_path / "x", format="tensorflow")


def test_weights_must_fit_their_card(recogniser: SpeechModel) -> None:
    whole = wrap(recogniser)
    for name, sentence in (("lacks", "lacks backbone.mask_embedding"), ("shape", r"backbone.mask_embedding \(3,\)")):
        weights = dict(whole.weights)
        weights["backbone.mask_embedding"] = torch.zeros(3)
        if name == "lacks":
            del weights["backbone.mask_embedding"]
        with pytest.raises(CheckpointError, match=sentence):
            build_model(Foreign("huggingface", whole.card, weights), "init")


def test_the_update_is_that_of_our_own_checkpoints(recogniser: SpeechModel, tmp_path: Path) -> None:
    for update in (20, 30):
        save_model(recogniser, tmp_path / "run" / "checkpoints" / f"update-{update:07d}", update=update)
    (tmp_path / "run" / "checkpoints" / "best").symlink_to("update-0000020")
    assert find_update(str(tmp_path / "run")) == 20
    assert find_update(str(tmp_path / "run" / "checkpoints" / "update-0000030")) == 30
    for format, name in FORMATS.items():
        place = tmp_path / format / name
        speechssl.save(recogniser, place, format=format)
        assert find_update(str(place)) == (0 if format == "speechssl" else None)
    assert find_update("torchaudio:WAV2VEC2_BASE") is None
    with pytest.raises(CheckpointError, match="does not exist"):
        find_update(str(tmp_path / "gone"))
