"""Models go to disk and come back whole, whatever heads they have."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from speechssl.checkpoints.model_folder import (
    _count_products,
    build_config,
    collect_weights,
    load_backbone_into,
    read_card,
    save_model,
)
from speechssl.config.adaptation import Adaptation
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError, SpeechSSLError
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from tests.cases import each_case


@each_case("kind", ["backbone", "pretraining", "ctc"])
def test_round_trip(tiny_model_config: ModelConfig, tmp_path: Path, kind: str) -> None:
    vocabulary = build_vocabulary(TextConfig(), []) if kind == "ctc" else None
    model = SpeechModel(tiny_model_config, vocabulary, pretraining=kind == "pretraining").eval()
    save_model(model, tmp_path, update=7)
    loaded = load_model(str(tmp_path))
    card = read_card(tmp_path)
    assert (card.kind, card.update, card.model) == (kind, 7, tiny_model_config)
    assert loaded.vocabulary == vocabulary
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_trainable_keeps_gradients(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    save_model(SpeechModel(tiny_model_config, pretraining=True), tmp_path)
    model = load_model(str(tmp_path), trainable=True)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(CheckpointError, match="num_feet"):
        build_config(ModelConfig, {"num_feet": 2})


def test_checkpoints_that_are_there_are_named_where_best_is_gone(
    tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    save_model(SpeechModel(tiny_model_config), tmp_path / "checkpoints" / "update-0000025")
    with pytest.raises(CheckpointError, match="holds neither best nor last, only update-0000025: name one of these"):
        load_model(str(tmp_path))


def test_another_shape_than_inits_is_one_sentence(tiny_model_config: ModelConfig) -> None:
    deeper = SpeechModel(replace(tiny_model_config, num_layers=3))
    with pytest.raises(
        SpeechSSLError, match=r"`init` must have the shape of `model`, but does not: Missing key"
    ) as told:
        load_backbone_into(deeper, SpeechModel(tiny_model_config))
    assert "\n" not in str(told.value)


def test_weights_of_another_shape_are_refused(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    save_model(SpeechModel(tiny_model_config), tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"ffn_dim": 64', '"ffn_dim": 80')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="must be a whole checkpoint"):
        load_model(str(tmp_path))


@each_case("norm_first", [True, False])
def test_the_last_blocks_may_stay_as_initialised(tiny_model_config: ModelConfig, norm_first: bool) -> None:
    config = replace(tiny_model_config, num_layers=3, norm_first=norm_first)
    model, source = SpeechModel(config), SpeechModel(config)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    load_backbone_into(model, source, num_blocks=1)
    fresh = ["transformer.blocks.1.", "transformer.blocks.2.", *(["transformer.norm."] if norm_first else [])]
    for name, value in model.backbone.state_dict().items():
        expected = before if name.startswith(tuple(fresh)) else source.backbone.state_dict()
        assert torch.equal(value, expected[name]), name


@each_case("kind, front_end, dim", product(("backbone", "pretraining"), ("convolutions", "log_mel"), (32, 48)))
def test_the_least_number_of_weights_is_all_but_biases_and_norms(
    front_end: str, dim: int, kind: str, tiny_model_config: ModelConfig
) -> None:
    """What a file is measured against before its network is built; a good file must never be too small for it."""
    config = replace(tiny_model_config, front_end=front_end, model_dim=dim, num_heads=4)
    model = SpeechModel(config, pretraining=kind == "pretraining")
    weights = collect_weights(model)
    products = [value for value in weights.values() if value.dim() > 1 and value.numel() > value.shape[-1]]
    assert _count_products(config, kind) == sum(value.numel() for value in products)


@each_case("lost", ["adapt", "lora", "init"])
def test_a_card_without_what_it_needs_is_one_sentence(lost: str) -> None:
    card = {"adapt": "lora", "lora": {"rank": 4}, "init": "runs/a", "digest": ""}
    build_config(Adaptation, card, "checkpoint")
    with pytest.raises(CheckpointError, match=f"`checkpoint` must have {lost} in its configuration, but has"):
        build_config(Adaptation, {name: value for name, value in card.items() if name != lost}, "checkpoint")
