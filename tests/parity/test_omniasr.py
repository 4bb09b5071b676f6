"""omniASR's files: fairseq2's names, against a transcription of its source and against `transformers`.

No real file was at hand. That names and shapes are all there is shown by the published counts of parameters.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from speechssl.checkpoints.model_folder import build_config
from speechssl.config.model import ModelConfig, QuantizerConfig
from speechssl.errors import CheckpointError
from speechssl.inference.decoding.greedy import merge_path
from speechssl.interop.fairseq2 import COMMON, UPDATES, read_config
from speechssl.interop.load import load_model, open_checkpoint, write_model
from speechssl.interop.names import export_weights
from speechssl.model.speech_model import SpeechModel
from speechssl.text.pieces import CONTROL, NORMAL, UNKNOWN, Piece, Pieces
from tests.cases import each_case
from tools.make_omniasr_golden import SAMPLES, VOCABULARY, draw, list_shapes

ROOT = Path(__file__).parents[2]
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests/parity/goldens/omniasr.json").read_text(encoding="utf-8"))

SPECIALS = (("<s>", CONTROL), ("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN))
LETTERS = "▁aeiounhstअबकनよあい"[: VOCABULARY - len(SPECIALS)]


def make_tokenizer(letters: str = LETTERS) -> Pieces:
    """Make a model of characters with omniASR's four specials, `<s>` first."""
    named = (*SPECIALS, *((letter, NORMAL) for letter in letters))
    return Pieces("char", tuple(Piece(text, -float(k), kind) for k, (text, kind) in enumerate(named)))


def write(folder: Path, form: str = "model", weights: dict[str, Tensor] | None = None) -> Path:
    """Write the golden's weights as fairseq2 does, with the tokenizer beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights or draw()[0]
    match form:
        case "model":
            stored: dict[str, Any] = {"model": weights, "fs2": True}
        case "wrapped":
            stored = {"model": {f"module.{name}": value for name, value in weights.items()}}
        case _:
            stored = weights
    torch.save(stored, folder / "omniASR.pt")
    (folder / "omniASR_tokenizer.model").write_bytes(make_tokenizer().to_bytes())
    return folder / "omniASR.pt"


def test_the_golden_is_what_its_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tools/make_omniasr_golden.py"), str(tmp_path)], check=True)
    made = json.loads((tmp_path / "omniasr.json").read_text(encoding="utf-8"))
    assert made["shapes"] == GOLDEN["shapes"] == {name: list(shape) for name, shape in list_shapes().items()}
    assert torch.allclose(torch.tensor(made["logits"]), torch.tensor(GOLDEN["logits"]), atol=1e-9)


@each_case("form", ["model", "wrapped", "flat"])
def test_a_recogniser_computes_what_fairseq2s_source_says(form: str, tmp_path: Path) -> None:
    model = load_model(str(write(tmp_path / form, form)))
    with torch.inference_mode():
        logits = model.logits(draw()[1], None)[0][0]
    assert (logits - torch.tensor(GOLDEN["logits"])).abs().max() < 1e-5
    assert model.vocabulary is not None and model.vocabulary.pieces == make_tokenizer()
    text = "aunt noah'sअकब"
    assert model.vocabulary.decode(model.vocabulary.encode(text)) == model.vocabulary.normalise(text) == "aunt noahsअकब"


def test_transformers_computes_the_same_of_its_export(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = load_model(str(write(tmp_path / "in")))
    write_model(model, tmp_path / "out", "huggingface")
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "out").eval()
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "out")
    # Its feature extractor adds 1e-7 to the variance, where fairseq2 adds 1e-5.
    normalised = torch.nn.functional.layer_norm(draw()[1], (SAMPLES,), eps=1e-5)
    with torch.inference_mode():
        logits = theirs(normalised).logits[0]
    assert (logits - torch.tensor(GOLDEN["logits"])).abs().max() < 1e-5
    assert model.vocabulary is not None
    path = logits.argmax(-1).tolist()
    # There `<unk>` is written, as its letters' tokenizer does too.
    assert processor.batch_decode([path])[0].replace("<unk>", "") == model.vocabulary.decode(merge_path(path))
    again = load_model(str(tmp_path / "out"))
    assert again.vocabulary == model.vocabulary


def test_a_pretrained_encoder_comes_with_its_heads(tmp_path: Path) -> None:
    config = build_config(
        ModelConfig,
        COMMON
        | {"num_layers": 2, "model_dim": 32, "ffn_dim": 48, "conv_channels": [16] * 7, "position_groups": 4}
        | {"target_dim": 12, "quantizer": {"num_codes": 6, "codevector_dim": 8, "temperature_end": 0.1}},
    )
    torch.manual_seed(1)
    model = SpeechModel(config, pretraining=True)
    weights = export_weights(model, "fairseq2") | {UPDATES: torch.zeros(())}
    foreign = open_checkpoint(str(write(tmp_path, weights=weights)))
    assert foreign.card.kind == "pretraining" and foreign.dropped == (UPDATES,)
    assert foreign.card.model.quantizer == QuantizerConfig(num_codes=6, codevector_dim=8, temperature_end=0.1)
    own = {name: x for name, x in model.state_dict().items() if not name.startswith("pretraining.backbone.")}
    assert own.keys() == foreign.weights.keys()
    assert all(torch.equal(own[name], value) for name, value in foreign.weights.items())


@each_case(
    "preset, pretrained, recogniser",
    [("large_lv60k", 317_390_592, 325_494_996), ("xls_r_1b", 965_514_752, 975_065_300)],
)
def test_names_and_shapes_add_up_to_the_published_counts(preset: str, pretrained: int, recogniser: int) -> None:
    """Those of W2V and CTC, 300M and 1B, in omnilingual-asr's table; the recognisers have 9,812 pieces and no mask."""
    config = build_config(ModelConfig, yaml.safe_load((ROOT / f"conf/model/{preset}.yaml").read_text()))
    with torch.device("meta"):
        weights = export_weights(SpeechModel(config, pretraining=True), "fairseq2")
    assert sum(value.numel() for value in weights.values()) == pretrained
    heads = ("quantizer.", "final_", "masker.")
    backbone = sum(value.numel() for name, value in weights.items() if not name.startswith(heads))
    assert backbone + 9812 * (config.model_dim + 1) == recogniser
    assert read_config(weights, "x", "checkpoint") == config


@each_case(
    "what, sentence",
    [
        ("no tokenizer", r"must have its tokenizer beside it, one sentencepiece model of 20 pieces .* has none"),
        ("another", r"one sentencepiece model of 20 pieces .* has omniASR_tokenizer.model with 18"),
        ("two", "has a.model with 20, omniASR_tokenizer.model with 20"),
        ("no model", "must be a model with sentencepieces for labels, but .* is not"),
        ("a decoder", "must be omniASR's W2V or CTC, but .* has a decoder"),
        ("lost", "lacks encoder.layers.1.ffn.inner_proj.bias"),
        ("no blocks", "must be wav2vec 2.0 of fairseq2, but .* has no encoder.layers.0.ffn.inner_proj.weight"),
    ],
)
def test_mistakes_are_sentences(what: str, sentence: str, tmp_path: Path) -> None:
    folder, weights = tmp_path / what, draw()[0]
    match what:
        case "a decoder":
            weights["llama_decoder.layer_norm.weight"] = torch.ones(2)
        case "lost":
            del weights["encoder.layers.1.ffn.inner_proj.bias"]
        case "no blocks":
            weights = {name: value for name, value in weights.items() if ".layers.0." not in name}
    path = write(folder, weights=weights)
    tokenizer = folder / "omniASR_tokenizer.model"
    match what:
        case "no tokenizer":
            tokenizer.unlink()
        case "another":
            tokenizer.write_bytes(make_tokenizer(LETTERS[:-2]).to_bytes())
        case "two":
            (folder / "a.model").write_bytes(make_tokenizer().to_bytes())
        case "no model":
            tokenizer.write_bytes(b"\x0a\xff")
    with pytest.raises(CheckpointError, match=sentence):
        load_model(str(path))
