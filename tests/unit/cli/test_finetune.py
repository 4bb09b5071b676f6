"""What fine-tuning decides before it trains."""

from __future__ import annotations

import pytest

from speechssl.cli.finetune import count_frozen_updates
from speechssl.config import FinetuneConfig, TrainingConfig


@pytest.mark.parametrize(
    ("init", "share", "frozen"), [("runs/a", 0.25, 25), ("runs/a", 1.0, 100), ("", 0.25, 0), ("", 1.0, 100)]
)
def test_without_init_only_a_whole_share_freezes(init: str, share: float, frozen: int) -> None:
    training = TrainingConfig(max_updates=100, freeze_share=share)
    assert count_frozen_updates(FinetuneConfig(out="a", init=init, training=training)) == frozen
