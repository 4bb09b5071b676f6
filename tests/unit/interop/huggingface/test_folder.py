"""Hugging Face folders without `transformers`: round trips, both spellings, and every mistake as one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechssl.config.data import TextConfig
from speechssl.config.model import MaskConfig, ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.foreign import UNREAD, build_model
from speechssl.interop.huggingface.folder import read_huggingface, write_huggingface
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from tests.cases import each_case

Change = Callable[[Path], object]


def make_model(config: ModelConfig, kind: str) -> SpeechModel:
    torch.manual_seed(4)
    vocabulary = build_vocabulary(TextConfig(), []) if kind == "ctc" else None
    return SpeechModel(config, vocabulary, pretraining=kind == "pretraining")


@pytest.fixture
def folder(tmp_path: Path, tiny_model_config: ModelConfig) -> Path:
    """A recogniser as `transformers` would have saved it: nothing of ours in config.json."""
    write_huggingface(make_model(tiny_model_config, "ctc"), tmp_path / "hf")
    edit(tmp_path / "hf", "config.json", speechssl=None)
    return tmp_path / "hf"


def copy(folder: Path, tmp_path: Path) -> Path:
    """Copy a folder for one case, which changes it."""
    return Path(shutil.copytree(folder, tmp_path / "hf"))


def edit(folder: Path, name: str, **values: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    stored = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@each_case("norm", ["group", "layer"])
@each_case("frames", ["valid", "all"])
@each_case("kind", ["backbone", "pretraining", "ctc"])
def test_round_trip_is_bitwise(
    kind: str, frames: str, norm: str, tmp_path: Path, tiny_model_config: ModelConfig
) -> None:
    config = replace(
        tiny_model_config, group_norm_frames=frames, conv_norm=norm, conv_bias=norm == "layer", normalize_waveform=True
    )
    model = make_model(config, kind)
    write_huggingface(model, tmp_path, update=9)
    foreign = read_huggingface(tmp_path)
    back = build_model(foreign)
    assert (foreign.card.model, foreign.card.vocabulary, foreign.card.update) == (config, model.vocabulary, 9)
    assert foreign.dropped == foreign.notes == ()
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(back.state_dict()[name], value) for name, value in model.state_dict().items())
    if kind == "pretraining":
        assert back.pretraining is not None
        assert back.pretraining.backbone is back.backbone
        assert back.backbone.mask_embedding is back.pretraining.backbone.mask_embedding


def test_masks_that_are_off_stay_off(tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    config = replace(tiny_model_config, mask=MaskConfig(prob=0.0))
    write_huggingface(make_model(config, "ctc"), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    # With 0, transformers would build a model without the mask vector that the file has.
    assert stored["mask_time_prob"] > 0
    assert stored["apply_spec_augment"] is False
    assert read_huggingface(tmp_path).card.model == config
    edit(tmp_path, "config.json", speechssl=None)
    assert read_huggingface(tmp_path).card.model.mask.prob == 0.0


def test_a_field_that_was_changed_there_counts(tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    write_huggingface(make_model(tiny_model_config, "ctc"), tmp_path)
    edit(tmp_path, "config.json", hidden_dropout=0.3, mask_time_prob=0.2)
    config = read_huggingface(tmp_path).card.model
    assert (config.dropout, config.mask.prob) == (0.3, 0.2)
    assert config.feature_gradient_scale == tiny_model_config.feature_gradient_scale


def test_types_are_those_that_transformers_checks(tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    config = replace(tiny_model_config, dropout=0, layer_drop_prob=0)
    write_huggingface(make_model(config, "pretraining"), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert all(
        type(stored[name]) is float
        for name in ("hidden_dropout", "layerdrop", "diversity_loss_weight", "layer_norm_eps")
    )
    assert type(stored["conv_bias"]) is bool


def test_what_a_foreign_folder_means(folder: Path) -> None:
    foreign = read_huggingface(folder)
    config = foreign.card.model
    assert (config.waveform_epsilon, config.group_norm_frames, config.name) == (1e-7, "valid", "2x32")
    assert foreign.card.vocabulary is not None
    assert foreign.card.vocabulary.symbols[:5] == ("<pad>", "<s>", "</s>", "<unk>", "|")
    assert foreign.card.vocabulary.case == "upper"


def test_the_masks_of_a_pretrained_folder_are_not_taken(tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    """The published base model says 0.05, which is meant for fine-tuning."""
    write_huggingface(make_model(tiny_model_config, "pretraining"), tmp_path)
    edit(tmp_path, "config.json", speechssl=None, mask_time_prob=0.05, num_negatives=50)
    foreign = read_huggingface(tmp_path)
    assert foreign.card.model.mask.prob == MaskConfig().prob
    assert foreign.dropped == ("num_negatives=50", "mask_time_prob=0.05 (meant for fine-tuning)")


def test_a_missing_mask_vector_is_drawn_and_said(folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("wav2vec2.masked_spec_embed"))
    first, second = read_huggingface(folder), read_huggingface(folder)
    assert first.notes == ("no mask vector in it: one was drawn",)
    assert torch.equal(build_model(first).backbone.mask_embedding, build_model(second).backbone.mask_embedding)


def test_shards_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    before = build_model(read_huggingface(folder)).state_dict()
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{1 + index % 2}.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    after = build_model(read_huggingface(folder)).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match="must list the files of its weights"):
        read_huggingface(folder)


def test_a_word_boundary_of_another_name_is_ours(folder: Path) -> None:
    stored = json.loads((folder / "vocab.json").read_text())
    stored[" "] = stored.pop("|")
    (folder / "vocab.json").write_text(json.dumps(stored))
    edit(folder, "tokenizer_config.json", word_delimiter_token=" ")
    vocabulary = read_huggingface(folder).card.vocabulary
    assert vocabulary is not None
    assert vocabulary.symbols[4] == "|"


def test_added_tokens_count_where_the_head_has_rows_for_them(folder: Path) -> None:
    stored = json.loads((folder / "vocab.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps({"Z": stored.pop("Z")}))
    (folder / "vocab.json").write_text(json.dumps(stored))
    vocabulary = read_huggingface(folder).card.vocabulary
    assert vocabulary is not None
    assert vocabulary.symbols[-1] == "Z"


def truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def take_letters(folder: Path) -> None:
    stored = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({name: index for name, index in stored.items() if index < 20}))


def fuse(folder: Path) -> None:
    prefix = "wav2vec2.encoder.pos_conv_embed.conv."

    def change(weights: dict[str, torch.Tensor]) -> None:
        for part in ("original0", "original1"):
            weights[f"{prefix}weight"] = weights.pop(f"{prefix}parametrizations.weight.{part}")

    edit_weights(folder, change)


def drop_layer(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if ".layers.1." in name]:
        del weights[name]


def write_module(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")


MISTAKES: dict[str, tuple[Change, str]] = {
    "truncated weights": (truncate, r"must be a whole file of tensors, but .*model\.safetensors is not \("),
    "a pickle with more than tensors": (write_module, "holds more, which is never unpickled"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"must have model\.safetensors or pytorch_model\.bin"),
    "another architecture": (
        lambda f: edit(f, "config.json", model_type="whisper"),
        "must be of a family that loads .*, but .*config.json describes Whisper, which does not load yet",
    ),
    "an adapter": (
        lambda f: edit(f, "config.json", add_adapter=True),
        "has convolutions after the blocks .add_adapter=True",
    ),
    "an attention adapter": (
        lambda f: edit(f, "config.json", adapter_attn_dim=16, do_stable_layer_norm=True),
        "lacks encoder.layers.0.adapter_layer.linear_1.bias",
    ),
    "an adapter of no width": (
        lambda f: edit(f, "config.json", adapter_attn_dim="16", do_stable_layer_norm=True),
        "must have a whole number as adapter_attn_dim in .*config.json, but has '16'",
    ),
    "another activation": (lambda f: edit(f, "config.json", hidden_act="relu"), "hidden_act=gelu .* but has 'relu'"),
    "another epsilon": (lambda f: edit(f, "config.json", layer_norm_eps=1e-3), "layer_norm_eps=1e-05"),
    "a value of another type": (
        lambda f: edit(f, "config.json", hidden_size="big"),
        "must have a whole number as hidden_size in .*config.json, but has 'big'",
    ),
    "heads that do not divide": (
        lambda f: edit(f, "config.json", num_attention_heads=5),
        "must be a network that can be built, but in .*config.json `model.model_dim` must be a multiple",
    ),
    "a count that contradicts": (
        lambda f: edit(f, "config.json", num_feat_extract_layers=3),
        "num_feat_extract_layers",
    ),
    "a missing layer": (
        lambda f: edit_weights(f, drop_layer),
        "lacks encoder.layers.1.attention.k_proj.bias, .* and 12 more",
    ),
    "a missing head": (
        lambda f: edit_weights(f, lambda w: [w.pop("lm_head.weight"), w.pop("lm_head.bias")]),
        "lacks lm_head.bias, lm_head.weight",
    ),
    "a weight too many": (
        lambda f: edit_weights(f, lambda w: w.update({"classifier.weight": torch.zeros(2)})),
        "has the unknown classifier.weight",
    ),
    "a weight of another shape": (
        lambda f: edit(f, "config.json", intermediate_size=80),
        r"backbone.transformer.blocks.0.inner.weight \(64, 32\) for \(80, 32\)",
    ),
    "a fused positional convolution": (fuse, "fused as encoder.pos_conv_embed.conv.weight"),
    "no vocabulary": (
        lambda f: (f / "vocab.json").unlink(),
        "must have vocab.json or sentencepiece.model, but .* has neither",
    ),
    "a vocabulary that does not fit the head": (
        take_letters,
        "a token for each of the 32 outputs of its head, but .*vocab.json has 20 tokens from 0 to 19",
    ),
    "a blank elsewhere": (lambda f: edit(f, "config.json", pad_token_id=3), "pad_token_id=3, but .* has it at 0"),
    "a blank that is no token": (lambda f: edit(f, "tokenizer_config.json", pad_token="[PAD]"), r"blank '\[PAD\]'"),
    "no word boundary": (lambda f: edit(f, "tokenizer_config.json", word_delimiter_token="A"), "'|' twice"),
    "no word on the waveform": (
        lambda f: [(f / name).unlink() for name in ("preprocessor_config.json", "processor_config.json")],
        r"must say in preprocessor_config.json whether waveforms are normalised \(do_normalize\)",
    ),
    "two words on the waveform": (
        lambda f: edit(f, "preprocessor_config.json", do_normalize=True),
        "False in processor_config.json and True in preprocessor_config.json",
    ),
    "another sample rate": (
        lambda f: edit(f, "preprocessor_config.json", sampling_rate=8000),
        "must take audio at 16000 Hz, but .* says 8000",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not \(Expecting"),
    "neither theirs nor ours": (lambda f: edit(f, "config.json", model_type=None), "neither version nor model_type"),
}


@each_case("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, folder: Path, tmp_path: Path) -> None:
    folder = copy(folder, tmp_path)
    change, sentence = MISTAKES[mistake]
    load_model(str(folder))
    change(folder)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_model(str(folder))
    assert str(caught.value).startswith("`checkpoint` must ")
    assert "\n" not in str(caught.value)


def test_labels_without_specials_are_exported_without(tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    """A special token that is no label would be added there with an index beyond the head."""
    model = SpeechModel(tiny_model_config, Vocabulary(("-", "|", "A", "B")))
    write_huggingface(model, tmp_path)
    stored = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert [stored[name] for name in ("pad_token", "bos_token", "eos_token", "unk_token")] == ["-", None, None, None]
    assert read_huggingface(tmp_path).card.vocabulary == model.vocabulary


def split(folder: Path, name: str, num_shards: int = 2) -> dict[str, str]:
    """Write the weights of a folder in shards, safetensors or torch files; give where each weight is."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, _, suffix = name.rpartition(".")
    places = {}
    for number in range(num_shards):
        shard = f"{stem}-{number + 1:05}-of-{num_shards:05}.{suffix}"
        part = {weight: weights[weight] for weight in sorted(weights)[number::num_shards]}
        if suffix == "bin":
            torch.save(part, folder / shard)
        else:
            save_file(part, folder / shard)
        places |= dict.fromkeys(part, shard)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


@each_case("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_of_either_kind_load(name: str, folder: Path, tmp_path: Path) -> None:
    folder = copy(folder, tmp_path)
    whole = read_huggingface(folder).weights
    split(folder, name, 3)
    found = read_huggingface(folder).weights
    assert all(torch.equal(found[weight], value) for weight, value in whole.items())


@each_case("place", ["../evil.bin", "/etc/passwd", "..", "a/b.bin", "", 3, None, ["a"], "config.json"])
def test_shards_lie_beside_their_list(place: Any, folder: Path, tmp_path: Path) -> None:
    folder = copy(folder, tmp_path)
    places = split(folder, "pytorch_model.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {**places, "x": place}}))
    with pytest.raises(CheckpointError, match=r"^`checkpoint` must .*(index\.json does not|config\.json is not)"):
        read_huggingface(folder)


def test_a_weight_in_two_shards_is_refused(folder: Path) -> None:
    places = split(folder, "pytorch_model.bin")
    (folder / "again.bin").write_bytes((folder / min(places.values())).read_bytes())
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {**places, "x": "again.bin"}}))
    with pytest.raises(CheckpointError, match="each weight once, but .* repeats"):
        read_huggingface(folder)


HEADS = {
    "Wav2Vec2ForSequenceClassification": ("classifier.weight", "projector.weight"),
    "Wav2Vec2ForAudioFrameClassification": ("classifier.bias", "layer_weights"),
    "Wav2Vec2ForXVector": ("feature_extractor.weight", "objective.weight", "tdnn.0.kernel.weight"),
    "Wav2Vec2ForSpeechClassification": ("classifier.dense.weight", "classifier.out_proj.weight"),
}


@each_case("name", HEADS)
def test_a_head_that_there_is_none_of_here_is_left_behind_and_named(name: str, folder: Path, tmp_path: Path) -> None:
    folder = copy(folder, tmp_path)

    def put_on(weights: dict[str, torch.Tensor]) -> None:
        weights.update({weight: torch.ones(2) for weight in HEADS[name]})
        del weights["lm_head.weight"], weights["lm_head.bias"]

    backbone = {weight: value for weight, value in read_huggingface(folder).weights.items() if "head" not in weight}
    edit(folder, "config.json", architectures=[name])
    edit_weights(folder, put_on)
    foreign = read_huggingface(folder)
    assert foreign.card.kind == "backbone"
    assert foreign.weights.keys() == backbone.keys()
    parts = sorted({weight.partition(".")[0] for weight in HEADS[name]})
    assert foreign.dropped == (f"the head of {name} ({', '.join(parts)})",)
    edit(folder, "config.json", architectures=["Wav2Vec2Model"])
    with pytest.raises(CheckpointError, match="has the unknown"):
        read_huggingface(folder)


@each_case("name", UNREAD)
def test_a_family_that_does_not_load_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    folder = copy(folder, tmp_path)
    edit(folder, "config.json", model_type=name)
    with pytest.raises(CheckpointError, match=f"describes {re.escape(UNREAD[name])}, which does not load yet"):
        read_huggingface(folder)


PHONEMES = ["<pad>", "<s>", "</s>", "<unk>", "h", "ə", "l", "oʊ", "tʃ", "aɪ", "ɹ"]
CHINESE = ["[PAD]", "[UNK]", *"今天气很好我们去学校"]


@each_case("tokens, text", [(PHONEMES, "həloʊtʃaɪl"), (CHINESE, "今天天气很好")])
def test_labels_of_several_letters_and_without_words_come_and_go(
    tokens: list[str], text: str, folder: Path, tmp_path: Path
) -> None:
    folder, out, again = copy(folder, tmp_path), tmp_path / "out", tmp_path / "again"
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    edit(folder, "tokenizer_config.json", pad_token=tokens[0], unk_token="[UNK]" if "[UNK]" in tokens else "<unk>")
    head = {"lm_head.weight": torch.randn(len(tokens), 32), "lm_head.bias": torch.randn(len(tokens))}
    edit_weights(folder, lambda weights: weights.update(head))
    model = build_model(read_huggingface(folder))
    assert model.vocabulary is not None and model.vocabulary.symbols == tuple(tokens)
    assert model.vocabulary.decode(model.vocabulary.encode(text)) == text
    write_huggingface(model, out)
    assert json.loads((out / "vocab.json").read_text()) == json.loads((folder / "vocab.json").read_text())
    write_huggingface(build_model(read_huggingface(out)), again)
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert all((out / name).read_bytes() == (again / name).read_bytes() for name in names)
    tokenizer = pytest.importorskip("transformers").Wav2Vec2CTCTokenizer.from_pretrained(out)
    assert len(tokenizer) == len(tokens)
    ids = model.vocabulary.encode(text)
    assert tokenizer.decode([k for label in ids for k in (label, 0)]) == text


def test_a_long_name_stays_out_of_a_sentence(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"x" * 100_000: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="has the unknown x{100}…") as caught:
        read_huggingface(folder)
    assert len(str(caught.value)) < 400
