"""A training whose optimizer remembers something of every parameter."""

from __future__ import annotations

import pytest
import torch

from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.training import TrainingConfig
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.optim import build_optimizer
from speechssl.training.resume import TrainingState


def make_state(config: ModelConfig, seed: int = 1) -> TrainingState:
    objective = ContrastiveObjective(config, ContrastiveConfig(), seed, 10)
    optimizer = build_optimizer(objective.module, TrainingConfig())
    for parameter in objective.module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return TrainingState(objective, optimizer)


@pytest.fixture
def state(tiny_model_config: ModelConfig) -> TrainingState:
    return make_state(tiny_model_config)
