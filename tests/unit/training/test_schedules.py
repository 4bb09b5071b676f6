"""Schedules at the reference's check values."""

from __future__ import annotations

import pytest

from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.training import TrainingConfig
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.schedules import compute_frozen_updates, compute_lr, describe_schedule
from tests.cases import each_case

TAU = {1: 2.0, 32_001: 1.704, 100_001: 1.213, 200_001: 0.736, 250_001: 0.573, 277_260: 0.5, 400_000: 0.5}


@each_case("update, share", [(16_000, 0.5), (32_000, 1.0), (216_000, 0.5), (400_000, 0.0)])
def test_polynomial(update: int, share: float) -> None:
    assert compute_lr(TrainingConfig(), update) == pytest.approx(5e-4 * share, abs=1e-12)


@each_case("done, share", [(0, 0.01), (100, 1.0), (500, 1.0), (750, 0.2236), (1_000, 0.05)])
def test_tri_stage(done: int, share: float) -> None:
    config = TrainingConfig(schedule="tri_stage", max_updates=1_000, warmup_share=0.1, hold_share=0.4, lr=1.0)
    assert compute_lr(config, done + 1) == pytest.approx(share, abs=1e-4)


def test_frozen_updates_are_a_share_of_the_run() -> None:
    assert compute_frozen_updates(TrainingConfig(max_updates=13_000, freeze_share=0.7692)) == 10_000


@each_case("update, expected", TAU.items())
def test_gumbel_temperature(tiny_model_config: ModelConfig, update: int, expected: float) -> None:
    objective = ContrastiveObjective(tiny_model_config, ContrastiveConfig(), 1, 400_000)
    assert objective.temperature(update) == pytest.approx(expected, abs=1e-3)


def test_gumbel_temperature_scales_with_the_run(tiny_model_config: ModelConfig) -> None:
    tiny_model_config.quantizer.temperature_reference_updates = 400_000
    objective = ContrastiveObjective(tiny_model_config, ContrastiveConfig(), 1, 2_000)
    assert objective.temperature(1) == 2.0
    assert objective.temperature(501) == pytest.approx(1.213, abs=1e-3)
    assert objective.temperature(2_000) == 0.5


@each_case("schedule", ["polynomial", "tri_stage"])
def test_a_longer_run_keeps_the_shape_of_its_schedule(schedule: str) -> None:
    short = TrainingConfig(schedule=schedule, max_updates=100, freeze_share=0.5)
    longer = TrainingConfig(schedule=schedule, max_updates=200, schedule_updates=100, freeze_share=0.5)
    assert [compute_lr(longer, n) for n in range(1, 101)] == [compute_lr(short, n) for n in range(1, 101)]
    end = 0.0 if schedule == "polynomial" else longer.lr * longer.final_lr_scale
    assert [compute_lr(longer, n) for n in range(102, 201)] == pytest.approx([end] * 99)
    assert compute_frozen_updates(longer) == 50


def test_an_encoder_that_stays_frozen_stays_so_in_a_longer_run() -> None:
    assert compute_frozen_updates(TrainingConfig(max_updates=200, schedule_updates=100, freeze_share=1.0)) == 200


def test_a_jump_and_an_end_of_the_schedule_are_said() -> None:
    assert describe_schedule(TrainingConfig(max_updates=100), before=100, done=50) == []
    (jump,) = describe_schedule(TrainingConfig(max_updates=200, schedule_updates=200), before=100, done=100)
    assert "training.schedule_updates is 200 where the run had 100 so far" in jump
    assert "the learning rate of update 101 is 0.000269 instead of 0" in jump
    (end,) = describe_schedule(TrainingConfig(max_updates=200, schedule_updates=100), before=100, done=100)
    assert "the schedule ends at update 100" in end
    assert "is 0, so that nothing is learned" in end
    (end,) = describe_schedule(
        TrainingConfig(max_updates=200, schedule_updates=100, schedule="tri_stage", lr=1.0), before=100, done=100
    )
    assert "the learning rate stays 0.05" in end
