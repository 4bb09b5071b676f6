"""Counts and sizes that no machine holds are one sentence, before anything is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechssl.cli.compose import compose
from speechssl.config.model import ModelConfig
from speechssl.devices import check_room
from speechssl.errors import ConfigError
from tests.cases import each_case

MISTAKES: dict[str, str] = {
    "data.num_workers=100000": r"`data.num_workers` must be between 0 and 256, or -1 to have it chosen, but is 100000",
    "data.num_workers=-2": r"`data.num_workers` must be between 0 and 256, or -1",
    "data.max_s=1e9": r"`data.max_s` must be positive and at most 86400 s, a day",
    "data.max_s=inf": r"`data.max_s` must be",
    "training.max_updates=10000000000": r"`training.max_updates` must be between 1 and",
    "training.schedule_updates=-1": r"`training.schedule_updates` must be",
    "training.sub_batch_s=1e12": r"`training.sub_batch_s` must be positive and at most 86400 s",
    "training.forward_s=1e12": r"`training.forward_s` must be positive and at most 86400 s",
    "training.update_s=87.5e9": r"`training.update_s` must be at most 100000 sub-batches",
    "training.update_s=inf": r"`training.update_s` must be a finite number",
    "training.timeout_s=1e30": r"`training.timeout_s` must be positive and at most",
    "training.lr=nan": r"`training.lr` must be a finite number",
    "objective.num_negatives=1000000000": r"`objective.num_negatives` must be between",
    "objective=masked_codes objective.num_codes=1000000000": r"`objective.num_codes` must be between",
    "objective=masked_codes objective.code_dim=1000000000": r"`objective.code_dim` must be between",
    "objective=masked_codes objective.stack_frames=1000000000": r"`objective.stack_frames` must be between",
}


@each_case("words", MISTAKES)
def test_a_size_that_nothing_holds_is_one_sentence(words: str) -> None:
    with pytest.raises(ConfigError, match=MISTAKES[words]) as caught:
        compose("pretrain", ["out=x", *words.split()])
    assert "\n" not in str(caught.value)


@each_case(
    "sizes",
    [
        {"model_dim": 65_536, "num_heads": 16, "num_layers": 256},
        {"ffn_dim": 65_536, "num_layers": 256, "model_dim": 32_768, "num_heads": 16},
        {"conv_channels": [65_536] * 7},
        {"model_dim": 65_536, "num_heads": 16, "position_kernel": 65_536},
    ],
)
def test_a_network_that_no_memory_holds_is_one_sentence(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`model` must be a network that memory holds, but .* GiB"):
        check_room(ModelConfig(**sizes), torch.device("cpu"))


def test_published_networks_fit_and_are_counted() -> None:
    check_room(ModelConfig(), torch.device("cpu"))
    assert ModelConfig().num_large_weights == pytest.approx(95_044_608, rel=0.01)
