"""Small weights beside frozen ones: what learns, how much that is, and that merging changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speechssl.checkpoints.model_folder import collect_weights, load_backbone_into, save_model
from speechssl.config.adaptation import Adaptation, LoRAConfig
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.config.training import TrainingConfig
from speechssl.errors import ConfigError
from speechssl.interop.adapted import start_adapting
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from speechssl.training.average import WeightAverage
from speechssl.training.optim import build_optimizer
from tests.cases import each_case

CONFORMER = {"block": "conformer", "norm_first": True, "front_end": "log_mel", "positions": "rotary"}


def adapt(config: ModelConfig, init: str = "there", way: str = "lora", **lora: object) -> SpeechModel:
    """A recogniser whose small weights have learned something."""
    torch.manual_seed(1)
    model = SpeechModel(config, build_vocabulary(TextConfig(), []))
    if init != "there":
        load_backbone_into(model, load_model(init))
    start_adapting(model, Adaptation(adapt=way, init=init, lora=LoRAConfig(**lora)))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


@each_case("changes", [{}, {"norm_first": True}, CONFORMER, CONFORMER | {"macaron": True}])
def test_merged_weights_give_what_the_unmerged_gave(tiny_model_config: ModelConfig, changes: dict[str, object]) -> None:
    sound = torch.randn(2, 8_000)
    lengths = torch.tensor([8_000, 6_000])
    model = adapt(replace(tiny_model_config, **changes), projections=["query", "key", "value", "out"]).eval()
    before = model(sound, lengths)
    model.merge()
    after = model(sound, lengths)
    assert not [name for name in model.state_dict() if "lora" in name] and model.adaptation is None
    for old, new in zip([before.last, *before.layers], [after.last, *after.layers], strict=True):
        assert torch.allclose(old, new, atol=1e-6, rtol=0)


def test_merging_a_deep_network_costs_no_more_than_float32_does() -> None:
    """12 blocks of 768, as `base`. Weights are W + α / r · B · A to 1e-6. Outputs are as near to those of float64 as
    unmerged ones are (6.7e-7 and 5.6e-7 of the largest on 2026-11-30): what tells the two apart is rounding alone.
    """
    projections = ["query", "key", "value", "out"]
    model = adapt(replace(ModelConfig(), conv_channels=[16] * 7), projections=projections).eval()
    sound = torch.randn(1, 4_000)
    blocks = [block.attention for block in model.backbone.transformer.blocks]
    parts = [getattr(attention, name) for attention in blocks for name in projections]
    wanted = [part.weight.double() + 16 / 8 * part.lora_up.double() @ part.lora_down.double() for part in parts]
    with torch.no_grad():
        exact = copy.deepcopy(model).double()
        exact_merged = copy.deepcopy(exact)
        exact_merged.merge()
        truth = exact.backbone.contextualise(exact.backbone.encode(sound.double(), None))[0]
        again = exact_merged.backbone.contextualise(exact_merged.backbone.encode(sound.double(), None))[0]
        before = model(sound).last
        model.merge()
        after = model(sound).last
    merged = [getattr(attention, name).weight for attention in blocks for name in projections]
    for found, weight in zip(merged, wanted, strict=True):
        assert (found - weight).abs().max() <= 1e-6 * weight.abs().max()
    scale = truth.abs().max()
    assert (again - truth).abs().max() <= 1e-12 * scale, "in float64 nothing but the order of sums differs"
    errors = [float((frames - truth).abs().max() / scale) for frames in (before, after)]
    assert max(errors) < 2e-6, errors


@each_case("changes", [{}, {"norm_first": True}, CONFORMER, CONFORMER | {"macaron": True}])
def test_new_weights_change_nothing(tiny_model_config: ModelConfig, changes: dict[str, object]) -> None:
    config, sound = replace(tiny_model_config, **changes), torch.randn(1, 8_000)
    plain = SpeechModel(config).eval()
    wider = SpeechModel(replace(config, adapter_dim=4)).eval()
    load_backbone_into(wider, plain)
    assert torch.equal(wider(sound).last, plain(sound).last)
    plain.adapt(Adaptation(adapt="lora", init="there", lora=LoRAConfig()))
    assert torch.equal(wider(sound).last, plain(sound).last)


@each_case("way", ["lora", "adapters"])
def test_only_small_weights_learn_and_are_saved(tiny_model_config: ModelConfig, way: str) -> None:
    model = adapt(replace(tiny_model_config, norm_first=True, adapter_dim=4 * (way == "adapters")), way=way).train()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    part = {"lora": ".lora_", "adapters": ".adapter."}[way]
    assert all(part in name or name.startswith("head.") for name in learning)
    assert len(learning) == 2 + (8 if way == "lora" else 12)
    assert collect_weights(model).keys() == learning.keys() == WeightAverage(model, 0.9).averaged.keys()
    held = [p for group in build_optimizer(model, TrainingConfig()).param_groups for p in group["params"]]
    assert {*map(id, held)} == {*map(id, learning.values())}
    model.logits(torch.randn(1, 8_000))[0].sum().backward()  # type: ignore[no-untyped-call]
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learning.keys()


def test_the_share_that_learns_is_small() -> None:
    with torch.device("meta"):
        model = SpeechModel(ModelConfig(), build_vocabulary(TextConfig(), []))
        model.adapt(Adaptation(adapt="lora", init="there", lora=LoRAConfig()))
    whole = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) < 0.02 * whole
    # Weights and both moments of AdamW, against the weights alone.
    assert 3 * sum(value.numel() for value in collect_weights(model).values()) < 0.05 * whole


def test_a_skipped_block_passes_its_input_on(tiny_model_config: ModelConfig) -> None:
    model = adapt(tiny_model_config).train()
    features = model.backbone.encode(torch.randn(1, 8_000), None)
    out, states = model.backbone.contextualise(features, keep=torch.tensor([False, True]))
    assert torch.equal(states[0], states[1])
    out.sum().backward()  # type: ignore[no-untyped-call]
    skipped = model.backbone.transformer.blocks[0].attention.query
    assert torch.equal(skipped.lora_up.grad, torch.zeros_like(skipped.lora_up)) and skipped.weight.grad is None


def test_a_chain_of_adaptations_loads(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    save_model(SpeechModel(tiny_model_config), tmp_path / "pre")
    first = adapt(tiny_model_config, str(tmp_path / "pre")).eval()
    save_model(first, tmp_path / "first")
    second = adapt(tiny_model_config, str(tmp_path / "first"), rank=2).eval()
    save_model(second, tmp_path / "second")
    sound = torch.randn(1, 8_000)
    for name, model in (("first", first), ("second", second)):
        loaded = load_model(str(tmp_path / name))
        assert torch.allclose(loaded.logits(sound)[0], model.logits(sound)[0], atol=1e-6, rtol=0)
        assert loaded.adaptation is None and not any(p.requires_grad for p in loaded.parameters())


@each_case(
    "values, said",
    [
        ({"rank": 0}, "`lora.rank` must be between 1"),
        ({"alpha": float("inf")}, "`lora.alpha` must be positive"),
        ({"projections": []}, "`lora.projections` must be some of query, key"),
        ({"projections": ["query", "query"]}, "`lora.projections` must be some of query, key"),
        ({"projections": ["inner"]}, "`lora.projections` must be some of query, key"),
    ],
)
def test_wrong_keys_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoRAConfig(**values)  # type: ignore[arg-type]
