"""What fine-tuning decides before it trains."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from speechssl.checkpoints.model_folder import ModelCard, save_model
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import FinetuneConfig
from speechssl.data.manifest import Manifest, Utterance, build_manifest
from speechssl.errors import DataError
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, build_vocabulary
from speechssl.training.finetuning import check_letters, count_frozen_updates, make_vocabulary, start_from
from tests.cases import each_case


@each_case("init, share, frozen", [("runs/a", 0.25, 25), ("runs/a", 1.0, 100), ("", 0.25, 0), ("", 1.0, 100)])
def test_without_init_only_a_whole_share_freezes(init: str, share: float, frozen: int) -> None:
    training = TrainingConfig(max_updates=100, freeze_share=share)
    assert count_frozen_updates(FinetuneConfig(out="a", init=init, training=training)) == frozen


def test_what_is_advised_helps(caplog: pytest.LogCaptureFixture) -> None:
    vocabulary = build_vocabulary(TextConfig(), [])
    with pytest.raises(DataError, match="'É' 1 .*text.vocabulary=data takes all letters"):
        check_letters(vocabulary, ["CAFÉ"], "refuse")
    with pytest.raises(DataError, match=r"'1' 1 .*outside it \('text.keep=\"1\"' adds them, text.unknown=drop"):
        check_letters(vocabulary, ["ROOM 1"], "refuse")
    check_letters(vocabulary, ["CAFÉ"], "drop", "data.valid")
    assert "data.valid has characters outside the vocabulary, left out of the labels: 'É' 1 ×" in caplog.text


ODD = [*"é٣½%@&#€日$+=<>~10", "\u0301", "\u200c", "\U00020000"]
"""Characters that a shell, the grammar of overrides or the eye may take for something else."""


def read_advice(vocabulary: Vocabulary, text: str) -> str:
    """Read off the refusal what one is told to type."""
    with pytest.raises(DataError) as caught:
        check_letters(vocabulary, [text], "refuse")
    found = re.search(r"outside it \((.*) adds them", str(caught.value))
    assert found is not None
    return found[1]


@each_case("shell", ["bash", "sh"])
def test_what_is_advised_can_be_typed(shell: str) -> None:
    """Through a shell, the command line and its grammar, as a user would paste it."""
    advice = read_advice(build_vocabulary(TextConfig(), []), " ".join(f"X{letter}X" for letter in ODD))
    assert "\u200c" not in advice and "\u0301" not in advice, "nobody can see what to type there"
    command = f"{sys.executable} -m speechssl finetune out=a model=tiny data.train=a.tsv {advice} --cfg"
    done = subprocess.run(
        [shell, "-c", command], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"}
    )
    assert done.returncode == 0, done.stderr
    keep = yaml.safe_load(done.stdout)["text"]["keep"]
    vocabulary = build_vocabulary(TextConfig(keep=keep), [])
    assert set(vocabulary.symbols[32:]) == {letter.upper() for letter in ODD}
    check_letters(vocabulary, [f"X{letter}X" for letter in ODD], "refuse")


def test_advice_is_quoted_and_long_advice_names_no_letters() -> None:
    vocabulary = build_vocabulary(TextConfig(), [])
    assert read_advice(vocabulary, "ROOM 102") == "'text.keep=\"102\"'"
    chinese = "".join(map(chr, range(0x4E00, 0x4E00 + 3500)))
    with pytest.raises(DataError) as caught:
        check_letters(vocabulary, [chinese], "refuse")
    told = str(caught.value)
    assert "and 3,480 others" in told and "text.keep" not in told and len(told) < 600
    assert "text.vocabulary=data takes all letters" in told


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


OWN = build_vocabulary(TextConfig(), [])
FROM_HUGGING_FACE = Vocabulary(("<pad>", "<s>", *FAIRSEQ_SYMBOLS[2:]))
"""The labels of the published recognisers there: the blank and a special have other names."""


def find_row(there: Vocabulary, symbol: str) -> int | None:
    """Find the output of a recogniser that writes a letter, whatever its case and its apostrophe."""
    spellings = (symbol, symbol.lower(), "\u2019" if symbol == "'" else symbol)
    return next((k for k, other in enumerate(there.symbols) if other in spellings), None)


@each_case(
    "there, reset_layers, said",
    [
        (OWN, 0, ""),
        (FROM_HUGGING_FACE, 0, ""),
        (Vocabulary((*FAIRSEQ_SYMBOLS[:-2], "Z", "Q")), 0, ""),
        (build_vocabulary(TextConfig(keep="1"), []), 0, ""),
        (Vocabulary(("[PAD]", *"zyxwvutsrqponmlkjihgfedcba\u2019|", "[UNK]"), "lower"), 0, ""),
        (Vocabulary(FAIRSEQ_SYMBOLS[:-2]), 0, "goes on too, by the letters of its labels; it has none for 'Q', 'Z'"),
        (Vocabulary(("<s>", "A", "|", "É")), 0, "it has none for 'E', 'T', 'O'"),
        (Vocabulary(("<s>", "|", *map(chr, range(0x4E00, 0x5000)))), 0, "starts afresh: it has no label for 'E', 'T'"),
        (OWN, 1, "starts afresh: with reset_layers=1 the blocks before it do"),
    ],
)
def test_the_head_of_a_recogniser_goes_on_where_it_fits(
    there: Vocabulary, reset_layers: int, said: str, tiny_model_config: ModelConfig, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "speechssl")
    source, model = SpeechModel(tiny_model_config, there), SpeechModel(tiny_model_config, OWN)
    assert source.head is not None and model.head is not None
    save_model(source, tmp_path / "asr")
    fresh = model.head.linear.weight.clone()
    start_from(model, FinetuneConfig(out="a", init=str(tmp_path / "asr"), reset_layers=reset_layers))
    for k, symbol in enumerate(OWN.symbols):
        if k == 0 or len(symbol) == 1:
            row = None if "starts afresh" in said else find_row(there, symbol) if k else 0
            expected = fresh[k] if row is None else source.head.linear.weight[row]
            assert torch.equal(model.head.linear.weight[k], expected), symbol
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(said) and all(said in warning for warning in warnings)
    assert ("its CTC head goes on too" in caplog.text) is ("starts afresh" not in said)
    assert torch.equal(model.backbone.mask_embedding, source.backbone.mask_embedding)


def test_the_labels_may_be_those_of_init(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    there = Vocabulary(("<pad>", "b", "|", "ä", "a"), "lower")
    save_model(SpeechModel(tiny_model_config, there), tmp_path / "asr")
    keys = {"out": "a", "init": str(tmp_path / "asr")}
    train = make_manifest("Aba", "äb")
    made = make_vocabulary(FinetuneConfig(**keys, text=TextConfig(vocabulary="init")), train, None)
    assert made == there and made.encode("ÄB a") == [3, 1, 2, 4, 2]
    more = make_vocabulary(FinetuneConfig(**keys, text=TextConfig(vocabulary="init", keep="öA1")), train, None)
    assert more.symbols == (*there.symbols, "1", "ö") and more.case == "lower"
    # A run that goes on has them already, wherever `init` is by now.
    begun = ModelCard("ctc", tiny_model_config, more, 1)
    gone = FinetuneConfig(out="a", init="gone", text=TextConfig(vocabulary="init", keep="öA1"))
    assert make_vocabulary(gone, train, None, begun) == more


def test_of_the_head_of_a_pretrained_model_nothing_is_said(
    tiny_model_config: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(SpeechModel(tiny_model_config, pretraining=True), tmp_path / "pretrained")
    model = SpeechModel(tiny_model_config, OWN)
    start_from(model, FinetuneConfig(out="a", init=str(tmp_path / "pretrained")))
    assert "head" not in caplog.text
