"""Language adapters of MMS: each language's adapters, head and labels as `transformers` loads them, and back."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import speechssl
from speechssl.config.data import TextConfig
from speechssl.config.verbs import FinetuneConfig
from speechssl.errors import CheckpointError
from speechssl.interop.huggingface.folder import read_huggingface, write_huggingface
from speechssl.interop.load import load_model, write_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from speechssl.training.finetuning import start_from
from tests.cases import each_case
from tests.parity.hf_weights import LAYER, make_config, make_hf_config
from tests.parity.ladder import LENGTHS, draw_inputs
from tests.parity.test_huggingface_folders import Listener, listener, open_there  # noqa: F401  (a fixture)

transformers = pytest.importorskip("transformers", reason="transformers is the other side of this test")

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "|"]
LANGUAGES = {"eng": [*SPECIALS, *"abc"], "swh": [*SPECIALS, *"zyxab"], "uig-script_arabic": [*SPECIALS, *"ئا"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `transformers` saves MMS: its own weights are English, and three languages have files."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("mms")
    config = make_hf_config(make_config(**LAYER), 10)
    config.update({"adapter_attn_dim": 6, "vocab_size": len(LANGUAGES["eng"]), "final_dropout": 0.0})
    model = transformers.Wav2Vec2ForCTC(config)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({k: {t: n for n, t in enumerate(v)} for k, v in LANGUAGES.items()}))
    transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json", target_lang="eng").save_pretrained(folder)
    for language, tokens in LANGUAGES.items():
        shapes = {name: value.shape for name, value in model._get_adapters().items()}
        shapes |= {"lm_head.weight": (len(tokens), config.hidden_size), "lm_head.bias": (len(tokens),)}
        weights = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
        save_file(weights, folder / f"adapter.{language}.safetensors", {"format": "pt"})
    return folder


def open_language(folder: Path, language: str) -> Any:
    model = transformers.Wav2Vec2ForCTC.from_pretrained(folder)
    model.config.apply_spec_augment = False  # masks would be drawn in training mode
    if language:
        model.load_adapter(language)
    return model


@each_case("language", ["", *LANGUAGES])
def test_every_language_gives_what_it_gives_there(language: str, folder: Path) -> None:
    theirs = open_language(folder, language).eval()
    ours = speechssl.load(folder, language=language, trainable=True)
    assert ours.vocabulary is not None
    assert list(ours.vocabulary.symbols) == LANGUAGES[language or "eng"]
    for lengths in LENGTHS.values():
        inputs = draw_inputs(ours.config, lengths)
        waves = [row[:n].numpy() for row, n in zip(inputs.waveforms, lengths, strict=True)]
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        given = extractor(waves, sampling_rate=16_000, return_tensors="pt", padding=True)
        for is_training in (False, True):
            expected = theirs.train(is_training)(**given, output_hidden_states=True)
            frames = ours.train(is_training)(inputs.waveforms, inputs.num_samples)
            assert frames.logits is not None
            for row, count in enumerate(inputs.num_frames):
                pairs = [(frames.logits, expected.logits)]
                pairs += list(zip(frames.layers[:-1], expected.hidden_states[:-1], strict=True))
                for mine, reference in pairs:
                    torch.testing.assert_close(mine[row, :count], reference[row, :count], atol=1e-5, rtol=0)


def test_gradients_of_adapters_are_theirs(folder: Path) -> None:
    theirs, ours = open_language(folder, "swh").train(), speechssl.load(folder, language="swh", trainable=True)
    inputs = draw_inputs(ours.config, LENGTHS["single"])
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    given = extractor(inputs.waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    theirs(given).logits.square().mean().backward()
    ours.logits(inputs.waveforms)[0].square().mean().backward()  # type: ignore[no-untyped-call]
    for block, layer in zip(ours.backbone.transformer.blocks, theirs.wav2vec2.encoder.layers, strict=True):
        there = layer.adapter_layer
        for mine, other in (("norm", there.norm), ("down", there.linear_1), ("up", there.linear_2)):
            found = block.get_submodule(f"adapter.{mine}").weight.grad
            torch.testing.assert_close(found, other.weight.grad, atol=1e-5, rtol=1e-4)


@each_case("language", ["", "swh"])
def test_a_round_trip_is_bitwise_and_opens_there(
    language: str, folder: Path, tmp_path: Path, listener: Listener  # noqa: F811
) -> None:  # fmt: skip
    ours = load_model(str(folder), language=language)
    write_huggingface(ours, tmp_path / "back")
    again = load_model(str(tmp_path / "back"))
    assert again.config == ours.config and again.vocabulary == ours.vocabulary
    state = ours.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    theirs = open_there("Wav2Vec2ForCTC", tmp_path / "back", listener)
    inputs = draw_inputs(ours.config, LENGTHS["single"])
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "back")
    given = extractor(inputs.waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        torch.testing.assert_close(theirs(given).logits, ours.logits(inputs.waveforms)[0], atol=1e-5, rtol=0)
    for format in ("fairseq", "torchaudio"):
        with pytest.raises(CheckpointError, match="`model.adapter_dim` must be 0 for"):
            write_model(ours, tmp_path / f"{format}.pt", format)


@each_case(
    "language, change, sentence",
    [
        ("deu", lambda f: None, r"`language` must be one of those in .* \(eng, swh, uig-script_arabic\), but is 'deu'"),
        ("../swh", lambda f: None, r"`language` must be one of those in .*, but is '\.\./swh'"),
        ("deu", lambda f: [path.unlink() for path in f.glob("adapter.*")], r"\(eng, swh, uig-script_arabic\)"),
        (
            "swh",
            lambda f: edit(f, "config.json", {"adapter_attn_dim": None}),
            "must be left out without language adapt",
        ),
        ("swh", lambda f: edit(f, "vocab.json", {"swh": 3}), "one index for each token"),
        (
            "",
            lambda f: edit(f, "tokenizer_config.json", {"target_lang": None}),
            r"`language` must be given .*\(eng, swh",
        ),
        ("eng", lambda f: edit(f, "vocab.json", {"eng": None}), "must have tokens of 'eng'|one index for each"),
        ("swh", lambda f: save_file({"x": torch.ones(1)}, f / "adapter.swh.safetensors"), "lacks .* has the unknown x"),
        (
            "swh",
            lambda f: (f / "adapter.swh.safetensors").write_bytes(b"no"),
            "must be a whole checkpoint, but .*adapter.swh",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(language: str, change: Any, sentence: str, folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "mms")
    if "left out" in sentence:
        write_huggingface(SpeechModel(make_config(), build_vocabulary(TextConfig(), [])), there)
    change(there)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(str(there), language=language)


def edit(folder: Path, name: str, values: dict[str, Any]) -> None:
    stored = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps(stored))


def test_the_folder_s_own_language_needs_no_file_and_bin_will_do(folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "mms")
    (there / "adapter.eng.safetensors").unlink()
    own, named = load_model(str(there)).state_dict(), load_model(str(there), language="eng").state_dict()
    assert all(torch.equal(own[name], value) for name, value in named.items())
    weights = read_huggingface(there, language="swh").weights
    adapters = transformers.Wav2Vec2ForCTC.from_pretrained(there, target_lang="swh")._get_adapters()
    torch.save({name: value.detach() for name, value in adapters.items()}, there / "a")
    (there / "adapter.swh.safetensors").unlink()
    (there / "a").rename(there / "adapter.swh.bin")
    again = read_huggingface(there, language="swh").weights
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_a_recogniser_of_a_language_is_fine_tuned(folder: Path) -> None:
    source = load_model(str(folder), language="swh")
    assert source.head is not None and source.vocabulary is not None
    vocabulary = build_vocabulary(TextConfig(vocabulary="init", keep="q"), [], source.vocabulary)
    model = SpeechModel(source.config, vocabulary)
    start_from(model, FinetuneConfig(out="a", init=str(folder), language="swh", model=source.config))
    assert model.head is not None
    assert torch.equal(model.head.linear.weight[:-1], source.head.linear.weight)
    assert torch.equal(
        model.backbone.transformer.blocks[0].adapter.up.weight, source.backbone.transformer.blocks[0].adapter.up.weight
    )
    assert re.fullmatch("q", vocabulary.symbols[-1])
