"""What fine-tuning decides before it trains."""

from __future__ import annotations

import pytest

from speechssl.cli.finetune import check_letters, count_frozen_updates
from speechssl.config import FinetuneConfig, TextConfig, TrainingConfig
from speechssl.errors import DataError
from speechssl.text import build_vocabulary


@pytest.mark.parametrize(
    ("init", "share", "frozen"), [("runs/a", 0.25, 25), ("runs/a", 1.0, 100), ("", 0.25, 0), ("", 1.0, 100)]
)
def test_without_init_only_a_whole_share_freezes(init: str, share: float, frozen: int) -> None:
    training = TrainingConfig(max_updates=100, freeze_share=share)
    assert count_frozen_updates(FinetuneConfig(out="a", init=init, training=training)) == frozen


def test_what_is_advised_helps(caplog: pytest.LogCaptureFixture) -> None:
    vocabulary = build_vocabulary(TextConfig(), [])
    with pytest.raises(DataError, match="'É' 1 .*text.vocabulary=data takes all letters"):
        check_letters(vocabulary, ["CAFÉ"], "refuse")
    with pytest.raises(DataError, match=r"'1' 1 .*outside it \(text.keep='1' adds them, text.unknown=drop"):
        check_letters(vocabulary, ["ROOM 1"], "refuse")
    check_letters(vocabulary, ["CAFÉ"], "drop", "data.valid")
    assert "data.valid has characters outside the vocabulary, left out of the labels: 'É' 1 ×" in caplog.text
