"""What fine-tuning decides before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechssl.cli.finetune import check_letters, count_frozen_updates, make_vocabulary
from speechssl.config import FinetuneConfig, TextConfig, TrainingConfig
from speechssl.data.manifest import Manifest, Utterance, build_manifest
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


def make_manifest(*texts: str | None) -> Manifest:
    rows = [Utterance(str(k), Path(f"{k}.wav"), 16_000, 48_000, 0, None, text) for k, text in enumerate(texts)]
    return build_manifest(rows, Path())


def test_rows_without_a_transcript_have_no_letters() -> None:
    config = FinetuneConfig(out="a", text=TextConfig(vocabulary="data"))
    vocabulary = make_vocabulary(config, make_manifest("BE", None, ""), make_manifest(None, "A"))
    assert vocabulary.symbols == ("<s>", "|", "B", "E")


def test_the_warning_about_validation_says_how_it_is_scored(caplog: pytest.LogCaptureFixture) -> None:
    train, note = make_manifest("TEA"), "the wer and cer of validation leave them out too"
    make_vocabulary(FinetuneConfig(out="a"), train, make_manifest("TEA, SO"))
    assert "left out of the labels: ',' 1 ×" in caplog.text
    assert note not in caplog.text, "evaluate does not count punctuation either"
    make_vocabulary(FinetuneConfig(out="a"), train, make_manifest("CAFÉ"))
    assert note in caplog.text
