"""The published learning rates of small batches, the preset that follows them, and the warning outside their range."""

from __future__ import annotations

import pytest

from speechssl.cli.compose import compose
from speechssl.config.model import ModelConfig
from speechssl.config.training import TrainingConfig
from speechssl.objectives.small_batch import compute_published_lr, describe_departure


def make_training(update_s: float, lr: float) -> TrainingConfig:
    return TrainingConfig(update_s=update_s, sub_batch_s=update_s / 2, forward_s=update_s, lr=lr)


@pytest.mark.parametrize(
    ("minutes", "best"), [(2.5, 7.9e-5), (5, 1.1e-4), (10, 1.6e-4), (20, 2.2e-4), (40, 5e-4), (80, 5e-4)]
)
def test_the_rule_gives_the_published_rates(minutes: float, best: float) -> None:
    assert compute_published_lr(60 * minutes) == pytest.approx(best, rel=0.03)


def test_the_preset_follows_the_rule_and_is_not_warned_of() -> None:
    config = compose("pretrain", ["base", "training=pretrain_base_small_batch", "data.train=m.tsv", "out=x"])
    assert config.training.lr == pytest.approx(compute_published_lr(config.training.update_s), rel=0.02)
    assert (config.training.update_s, config.training.sub_batches_per_update) == (600.0, 6)
    assert config.training.max_updates == 400_000
    assert describe_departure(config.model, config.training) == ""


def test_the_published_base_is_not_warned_of() -> None:
    config = compose("pretrain", ["base", "data.train=m.tsv", "out=x"])
    assert describe_departure(config.model, config.training) == ""


@pytest.mark.parametrize(
    ("update_s", "lr", "said"),
    [
        (87.5, 7.3e-6, "training.update_s=87.5 is under 150 s"),
        (149.0, 5e-4, "training.update_s=149 is under 150 s"),
        (150.0, 1.7e-4, "training.lr=0.00017 is 2.2 times"),
        (600.0, 5e-4, "is 3.2 times the best published rate for BASE at 600 s an update, 0.00016"),
        (150.0, 1.5e-4, ""),
        (600.0, 3e-4, ""),
        (1800.0, 5e-4, ""),
    ],
)
def test_what_leaves_the_range_is_told_in_one_sentence(update_s: float, lr: float, said: str) -> None:
    told = describe_departure(ModelConfig(), make_training(update_s, lr))
    assert said in told
    assert bool(told) == bool(said)
    assert "\n" not in told


@pytest.mark.parametrize("name", ["tiny", "small", "large"])
def test_of_other_sizes_nothing_is_said(name: str) -> None:
    config = compose("pretrain", [name, "data.train=m.tsv", "out=x"])
    assert describe_departure(config.model, make_training(20.0, 1e-2)) == ""
