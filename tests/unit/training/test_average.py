"""The moving average of weights: what it is, where it comes and goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechssl.checkpoints.model_folder import collect_weights
from speechssl.config.model import ModelConfig
from speechssl.model.speech_model import SpeechModel
from speechssl.training.average import WeightAverage
from tests.cases import each_case


def test_it_follows_its_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = WeightAverage(module, decay=0.3)
    expected = module.weight.item()
    for update in range(1, 12):
        with torch.no_grad():
            module.weight.fill_(float(update))
        average.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
        assert float(average.averaged["weight"]) == pytest.approx(expected, rel=1e-6)


def test_first_weights_are_soon_forgotten() -> None:
    """With a plain decay of 0.9999, 99 % of the random start would still be there after 100 updates."""
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    average = WeightAverage(module, decay=0.9999)
    with torch.no_grad():
        module.weight.fill_(0.0)
    for _ in range(100):
        average.update()
    assert float(average.averaged["weight"]) < 1e-8


def test_it_is_in_the_place_of_the_weights_only_while_applied() -> None:
    module = nn.Linear(2, 2)
    average = WeightAverage(module, decay=0.9)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    moved = module.weight.detach().clone()
    with average.applied():
        assert torch.equal(module.weight, start)
    assert torch.equal(module.weight, moved)
    assert torch.equal(average.averaged["weight"], start)


@each_case("pretraining", [True, False])
def test_it_is_laid_out_like_the_weights(tiny_model_config: ModelConfig, pretraining: bool) -> None:
    model = SpeechModel(tiny_model_config, pretraining=pretraining)
    weights = collect_weights(model)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    collected = average.collect()
    assert collected.keys() == weights.keys()
    for name in dict(model.named_parameters()):
        stored = name.removeprefix("pretraining.") if name.startswith("pretraining.backbone.") else name
        assert torch.allclose(collected[stored] + 1.0, weights[stored]), name


def test_another_shape_and_a_missing_weight_are_refused(tiny_model_config: ModelConfig) -> None:
    model = SpeechModel(tiny_model_config)
    average = WeightAverage(model, decay=0.5)
    weights, state = average.collect(), average.state()
    name = next(iter(weights))
    with pytest.raises(ValueError, match="is of shape"):
        average.load_state(state, {**weights, name: torch.zeros(1)})
    with pytest.raises(KeyError):
        average.load_state(state, {key: value for key, value in weights.items() if key != name})
    with pytest.raises(KeyError):
        average.load_state({}, weights)
