"""fairseq's files: every layout is read without fairseq, and what is written comes back bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.config.data import TextConfig
from speechssl.config.model import MaskConfig, ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.fairseq.checkpoint import read_fairseq, write_fairseq
from speechssl.interop.fairseq.labels import DICTIONARY
from speechssl.interop.foreign import build_model
from speechssl.interop.huggingface.folder import write_huggingface
from speechssl.interop.load import load_model
from speechssl.interop.names import list_weights
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, build_vocabulary
from tests.cases import each_case
from tests.unit.interop.fairseq_files import LAYOUTS, LIBRISPEECH, assert_same_weights, export, stand_ins, write

NORMS = (
    {"conv_norm": "group", "norm_first": False, "conv_bias": False},
    {"conv_norm": "layer", "norm_first": True, "conv_bias": True, "normalize_waveform": True},
    {"conv_norm": "layer", "norm_first": False, "conv_bias": False},
    {"conv_norm": "group", "norm_first": True, "model_dim": 48, "num_heads": 4},
)


@pytest.fixture
def pretrained(tiny_model_config: ModelConfig) -> SpeechModel:
    return make("pretraining", tiny_model_config)


@pytest.fixture
def recogniser(tiny_model_config: ModelConfig) -> SpeechModel:
    mask = MaskConfig(prob=0.5, channel_prob=0.25)
    config = replace(tiny_model_config, mask=mask, head_dropout=0.05, layer_drop_prob=0.1, dropout=0.0)
    return make("ctc", config)


def make(kind: str, config: ModelConfig) -> SpeechModel:
    torch.manual_seed(4)
    if kind == "pretraining":
        return SpeechModel(config, pretraining=True).eval()
    return SpeechModel(config, build_vocabulary(TextConfig(), [])).eval()


@each_case("is_zip", [True, False])
@each_case("layout", LAYOUTS)
@each_case("kind", ["pretraining", "ctc"])
def test_every_layout_is_read(
    kind: str, layout: str, is_zip: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: SpeechModel = request.getfixturevalue("pretrained" if kind == "pretraining" else "recogniser")
    write(export(model, tmp_path), layout, tmp_path / "theirs.pt", is_zip)
    foreign = read_fairseq(tmp_path / "theirs.pt")
    assert (foreign.family, foreign.card.kind, foreign.card.update) == ("fairseq", kind, 7)
    assert_same_weights(foreign.weights, list_weights(model))
    config = model.config
    assert replace(foreign.card.model, name=config.name, quantizer=config.quantizer, target_dim=16) == replace(
        config, feature_dropout=foreign.card.model.feature_dropout
    )
    if kind == "pretraining":
        assert foreign.card.model.quantizer == config.quantizer
        assert foreign.card.model.feature_dropout == config.feature_dropout
    else:
        assert foreign.card.vocabulary == Vocabulary(FAIRSEQ_SYMBOLS)
    loaded = build_model(foreign).eval()
    waveforms = torch.linspace(-1, 1, 6_400)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(waveforms).last, model(waveforms).last, atol=0, rtol=0)


def test_neither_fairseq_nor_omegaconf_is_imported(pretrained: SpeechModel, tmp_path: Path) -> None:
    write(export(pretrained, tmp_path), "structured DictConfig", tmp_path / "theirs.pt")
    code = (
        "import sys, pathlib; from speechssl.interop.torch_file import look_into\n"
        "from speechssl.interop.inert_pickle import simplify\n"
        f"print(simplify(look_into(pathlib.Path({str(tmp_path / 'theirs.pt')!r})).content['cfg'])['model']['_name'])\n"
        "print([name for name in sys.modules if name.startswith(('omegaconf', 'fairseq'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["wav2vec2", "[]"]


def test_float16_becomes_float32(pretrained: SpeechModel, tmp_path: Path) -> None:
    for is_zip in (True, False):
        write(export(pretrained, tmp_path), "namespace", tmp_path / "half.pt", is_zip, half=True)
        weights = read_fairseq(tmp_path / "half.pt").weights
        assert {value.dtype for value in weights.values()} == {torch.float32}
        assert_same_weights(weights, {name: value.half().float() for name, value in list_weights(pretrained).items()})


@each_case("changes", NORMS)
@each_case("kind", ["pretraining", "ctc"])
def test_what_is_written_comes_back_bitwise(
    kind: str, changes: dict[str, Any], tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    model = make(kind, replace(tiny_model_config, waveform_epsilon=1e-7, **changes))
    write_fairseq(model, tmp_path / "a.pt", update=12)
    foreign = read_fairseq(tmp_path / "a.pt")
    assert_same_weights(foreign.weights, list_weights(model))
    assert (foreign.card.model, foreign.card.vocabulary) == (model.config, model.vocabulary)
    assert (foreign.card.update, foreign.dropped, foreign.says_padding) == (12, (), True)


def test_the_names_and_shapes_are_fairseqs(
    pretrained: SpeechModel, recogniser: SpeechModel, tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    """The names of reference/interop.md §1, written out."""
    stored = export(make("pretraining", replace(tiny_model_config, model_dim=48, num_heads=4)), tmp_path)["model"]
    shapes = {name: tuple(value.shape) for name, value in stored.items()}
    block = {f"encoder.layers.1.self_attn.{x}_proj.{y}" for x in ("q", "k", "v", "out") for y in ("weight", "bias")}
    block |= {f"encoder.layers.1.{x}.{y}" for x in ("fc1", "fc2", "self_attn_layer_norm") for y in ("weight", "bias")}
    block |= {"encoder.layers.1.final_layer_norm.weight", "encoder.layers.1.final_layer_norm.bias"}
    assert {name for name in shapes if name.startswith("encoder.layers.1.")} == block
    others = {name: shape for name, shape in shapes.items() if not name.startswith("encoder.layers.")}
    assert others == {
        **{
            f"feature_extractor.conv_layers.{i}.0.weight": shapes[f"feature_extractor.conv_layers.{i}.0.weight"]
            for i in range(7)
        },
        **{f"feature_extractor.conv_layers.0.2.{part}": (16,) for part in ("weight", "bias")},
        **{f"layer_norm.{part}": (32,) for part in ("weight", "bias")},
        "post_extract_proj.weight": (48, 32),
        "post_extract_proj.bias": (48,),
        "mask_emb": (48,),
        "encoder.pos_conv.0.bias": (48,),
        "encoder.pos_conv.0.weight_g": (1, 1, 16),
        "encoder.pos_conv.0.weight_v": (48, 12, 16),
        **{f"encoder.layer_norm.{part}": (48,) for part in ("weight", "bias")},
        "quantizer.vars": (1, 32, 8),
        "quantizer.weight_proj.weight": (32, 32),
        "quantizer.weight_proj.bias": (32,),
        "project_q.weight": (16, 16),
        "project_q.bias": (16,),
        "final_proj.weight": (16, 48),
        "final_proj.bias": (16,),
    }
    assert not [name for name in export(pretrained, tmp_path)["model"] if name.startswith("post_extract_proj")]
    fine_tuned = export(recogniser, tmp_path)["model"]
    assert {name for name in fine_tuned if not name.startswith("w2v_encoder.w2v_model.")} == {
        "w2v_encoder.proj.weight",
        "w2v_encoder.proj.bias",
    }
    assert "w2v_encoder.w2v_model.mask_emb" in fine_tuned


def test_layer_norm_lies_in_a_sequence_of_its_own(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    names = export(make("pretraining", replace(tiny_model_config, **NORMS[1])), tmp_path)["model"].keys()
    assert {f"feature_extractor.conv_layers.{i}.2.1.weight" for i in range(7)} <= names
    assert {f"feature_extractor.conv_layers.{i}.0.bias" for i in range(7)} <= names


def test_the_dictionary_beside_a_file(recogniser: SpeechModel, tmp_path: Path) -> None:
    stored = export(recogniser, tmp_path)
    head = stored["model"]["w2v_encoder.proj.weight"]
    stored["model"] |= {"w2v_encoder.proj.weight": head[:8].clone(), "w2v_encoder.proj.bias": torch.zeros(8)}
    write(stored, "plain", tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"must have dict\.ltr\.txt beside it, with the labels of its 8 outputs"):
        read_fairseq(tmp_path / "a.pt")
    (tmp_path / DICTIONARY).write_text("| 94802\ne 51860\nt 38431\nö 3\n", encoding="utf-8")
    vocabulary = read_fairseq(tmp_path / "a.pt").card.vocabulary
    assert vocabulary == Vocabulary(("<s>", "<pad>", "</s>", "<unk>", "|", "e", "t", "ö"), "lower")
    for text, sentence in (
        ("| 1\ne 1\n", "a label for each of the 8 outputs of its head, but .* makes 6"),
        ("|\ne\n", "a dictionary of `symbol count` lines"),
    ):
        (tmp_path / DICTIONARY).write_text(text)
        with pytest.raises(CheckpointError, match=sentence):
            read_fairseq(tmp_path / "a.pt", "init")


ITALIAN = ("<s>", "<pad>", "</s>", "<unk>", "|", *"eaionltrscdupmgvhzbfq'èùòéì")


def name_data(stored: dict[str, Any], data: object, labels: object = "ltr") -> dict[str, Any]:
    return {**stored, "cfg": {**stored["cfg"], "task": {**stored["cfg"]["task"], "data": data, "labels": labels}}}


@each_case(
    "data, labels",
    [
        (".", "ltr"),
        (None, "ltr"),
        (["libri"], 3),
        ("/data/voxpopuli/it", "ltr"),
        ("/data/equilibrium", "ltr"),
        (LIBRISPEECH, "phn"),
    ],
)
def test_labels_are_not_guessed(data: object, labels: object, recogniser: SpeechModel, tmp_path: Path) -> None:
    """32 outputs may be the letters of any language."""
    write(name_data(export(recogniser, tmp_path), data, labels), "plain", tmp_path / "it.pt")
    sentence = (
        r"must have dict\.ltr\.txt beside it, with the labels of its 32 outputs, but .*it\.pt has none, and .*https"
    )
    with pytest.raises(CheckpointError, match=sentence):
        read_fairseq(tmp_path / "it.pt")


@each_case("data", [LIBRISPEECH, "/data/LibriSpeech/raw", "s3://x/libri-light", "libri960"])
def test_letters_of_librispeech_are_taken_with_a_warning(
    data: str, recogniser: SpeechModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(name_data(export(recogniser, tmp_path), data), "plain", tmp_path / "en.pt")
    assert read_fairseq(tmp_path / "en.pt").card.vocabulary == Vocabulary(FAIRSEQ_SYMBOLS)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    for part in (str(tmp_path / "en.pt"), DICTIONARY, "the letters of LibriSpeech", data):
        assert part in record.getMessage()


def test_the_dictionary_in_a_file_comes_first(
    recogniser: SpeechModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """fairseq keeps it in what its task remembers, and reads it from there too."""
    stored = export(recogniser, tmp_path)
    with stand_ins(ITALIAN) as classes:
        torch.save({**stored, "task_state": {"target_dictionary": classes.Dictionary()}}, tmp_path / "it.pt")
    (tmp_path / DICTIONARY).write_text("| 1\ne 1\n")
    assert read_fairseq(tmp_path / "it.pt").card.vocabulary == Vocabulary(ITALIAN, "lower")
    assert "WARNING" not in [record.levelname for record in caplog.records]


@each_case("name", ["data2vec_multi", "wav2vec_seq2seq", "sew"])
def test_another_family_is_named(name: str, pretrained: SpeechModel, tmp_path: Path) -> None:
    save = change(export(pretrained, tmp_path), "_name", name)
    write(save, "plain", tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"must be of a family that loads .*, but .*a\.pt describes .*does not load yet"
    ):
        read_fairseq(tmp_path / "a.pt")


def test_a_dictionary_is_written_for_fairseq(recogniser: SpeechModel, tmp_path: Path) -> None:
    write_fairseq(recogniser, tmp_path / "new" / "a.pt")
    lines = (tmp_path / "new" / DICTIONARY).read_text().splitlines()
    assert [line.split(" ") for line in lines[:2]] == [["|", "1"], ["E", "1"]]
    assert len(lines) == 28


def change(stored: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    model = {**stored["cfg"]["model"], name: value}
    return {**stored, "cfg": {**stored["cfg"], "model": model}}


@each_case(
    "name, value",
    [
        ("quantize_targets", False),
        ("quantize_input", True),
        ("target_glu", True),
        ("quantizer_depth", 2),
        ("pos_conv_depth", 0),
        ("relative_position_embedding", "yes"),
        ("layer_type", "conformer"),
        ("activation_fn", "relu"),
        ("crop_seq_to_multiple", 4),
        ("extractor_mode", "instance"),
        ("mask_selection", "uniform"),
        ("conv_feature_layers", "__import__('os').abort()"),
        ("latent_temp", "(1, 2)"),
        ("encoder_layers", "2"),
        ("dropout", 1.5),
        ("encoder_attention_heads", 7),
        ("conv_bias", 0),
        ("final_dim", "${model.encoder_embed_dim}"),
    ],
)
def test_what_changes_results_is_refused_by_name(
    name: str, value: Any, pretrained: SpeechModel, tmp_path: Path
) -> None:
    write(change(export(pretrained, tmp_path), name, value), "plain", tmp_path / "a.pt")
    ours = {"dropout": "model.dropout", "encoder_attention_heads": "model.num_heads"}
    with pytest.raises(CheckpointError, match=ours.get(name, name)) as caught:
        read_fairseq(tmp_path / "a.pt", "init")
    assert str(caught.value).startswith("`init` must ")
    assert "\n" not in str(caught.value)


def test_what_belongs_to_the_task_is_left_behind_and_named(pretrained: SpeechModel, tmp_path: Path) -> None:
    stored = change(export(pretrained, tmp_path), "logit_temp", 0.2)
    stored["model"]["_ema"] = {"x": torch.zeros(1)}
    stored["cfg"]["criterion"] = {"loss_weights": [0.1, 0.0]}
    write(stored, "plain", tmp_path / "a.pt")
    assert read_fairseq(tmp_path / "a.pt").dropped == ("model['_ema']", "logit_temp=0.2", "loss_weights=[0.1, 0.0]")


def test_old_files_mean_fairseqs_defaults_where_they_say_nothing(pretrained: SpeechModel, tmp_path: Path) -> None:
    stored = export(pretrained, tmp_path)
    model = stored["cfg"]["model"]
    for name in ("encoder_layerdrop", "dropout_input", "mask_prob", "latent_temp", "logit_temp", "require_same_masks"):
        del model[name]
    write(stored, "namespace", tmp_path / "a.pt")
    config = read_fairseq(tmp_path / "a.pt").card.model
    assert (config.layer_drop_prob, config.input_dropout, config.mask.prob) == (0.0, 0.0, 0.65)
    assert (config.quantizer.temperature_start, config.quantizer.temperature_end) == (2.0, 0.5)


def test_a_width_of_zero_is_that_of_what_comes_before(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    quantizer = replace(tiny_model_config.quantizer, codevector_dim=32)
    stored = export(make("pretraining", replace(tiny_model_config, target_dim=32, quantizer=quantizer)), tmp_path)
    write(change(change(stored, "final_dim", 0), "latent_dim", 0), "plain", tmp_path / "a.pt")
    config = read_fairseq(tmp_path / "a.pt").card.model
    assert (config.target_dim, config.quantizer.codevector_dim) == (32, 32)


def test_a_fine_tuned_model_needs_the_configuration_of_its_network(recogniser: SpeechModel, tmp_path: Path) -> None:
    stored = change(change(export(recogniser, tmp_path), "w2v_args", None), "w2v_path", "/far/away.pt")
    write(stored, "plain", tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="its network as w2v_args, but .* pretrained model '/far/away.pt'"):
        read_fairseq(tmp_path / "a.pt")


def test_dropouts_and_masks_of_a_fine_tuned_model_are_its_own(recogniser: SpeechModel, tmp_path: Path) -> None:
    stored = change(export(recogniser, tmp_path), "apply_mask", False)
    stored["cfg"]["model"]["w2v_args"]["model"] |= {"dropout": 0.3, "mask_prob": 0.65}
    stored["model"]["w2v_encoder.w2v_model.quantizer.vars"] = torch.zeros(1)
    write(stored, "plain", tmp_path / "a.pt")
    foreign = read_fairseq(tmp_path / "a.pt")
    config = foreign.card.model
    assert (config.dropout, config.mask.prob, config.mask.channel_prob, config.head_dropout) == (0.0, 0.0, 0.0, 0.05)
    assert foreign.dropped == ("heads of pretraining",)


@each_case("prefix", ["module.", "_orig_mod.module."])
def test_wrappers_prefixes_are_taken_away(prefix: str, recogniser: SpeechModel, tmp_path: Path) -> None:
    stored = export(recogniser, tmp_path)
    stored["model"] = {prefix + name: value for name, value in stored["model"].items()}
    write(stored, "plain", tmp_path / "a.pt")
    assert_same_weights(read_fairseq(tmp_path / "a.pt").weights, list_weights(recogniser))


def test_weights_are_missing_or_too_many(pretrained: SpeechModel, tmp_path: Path) -> None:
    stored = export(pretrained, tmp_path)
    value = stored["model"].pop("project_q.bias")
    stored["model"]["project_q.more"] = value
    write(stored, "plain", tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="lacks project_q.bias and has the unknown project_q.more"):
        read_fairseq(tmp_path / "a.pt")


def test_the_new_spelling_of_weight_norm_and_a_fused_weight(pretrained: SpeechModel, tmp_path: Path) -> None:
    stored = export(pretrained, tmp_path)
    magnitude, direction = (stored["model"].pop(f"encoder.pos_conv.0.weight_{x}") for x in "gv")
    new = {f"encoder.pos_conv.0.parametrizations.weight.original{n}": v for n, v in enumerate((magnitude, direction))}
    write({**stored, "model": stored["model"] | new}, "plain", tmp_path / "a.pt")
    assert_same_weights(read_fairseq(tmp_path / "a.pt").weights, list_weights(pretrained))
    fused = {"encoder.pos_conv.0.weight": direction}
    write({**stored, "model": stored["model"] | fused}, "plain", tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="has it fused as encoder.pos_conv.0.weight"):
        read_fairseq(tmp_path / "a.pt")


def test_what_fairseq_has_no_model_for_is_not_written(tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must have a CTC head or the heads of pretraining"):
        write_fairseq(SpeechModel(tiny_model_config), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="labels that begin with <s> <pad> </s> <unk> or <pad> <s>"):
        write_fairseq(SpeechModel(tiny_model_config, Vocabulary(("-", "|", "a", "b"))), tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()


@each_case("is_resaved", [False, True])
def test_a_recogniser_of_hugging_face_goes_there_and_back(
    is_resaved: bool, recogniser: SpeechModel, tmp_path: Path
) -> None:
    """Its blank is `<pad>` and fairseq's is `<s>`: the names change, row 0 stays the blank."""
    write_huggingface(recogniser, tmp_path / "hub")
    stored = json.loads((tmp_path / "hub" / "config.json").read_text())
    del stored["speechssl"]
    (tmp_path / "hub" / "config.json").write_text(json.dumps(stored))
    theirs = load_model(str(tmp_path / "hub"))
    assert theirs.vocabulary is not None and theirs.vocabulary.symbols[:4] == ("<pad>", "<s>", "</s>", "<unk>")
    write_fairseq(theirs, tmp_path / "a.pt")
    if is_resaved:
        content = torch.load(tmp_path / "a.pt", weights_only=True)
        del content["speechssl"]
        torch.save(content, tmp_path / "a.pt")
    there = load_model(str(tmp_path / "a.pt"))
    write_huggingface(there, tmp_path / "back")
    back = load_model(str(tmp_path / "back"))
    waveforms = torch.linspace(-1, 1, 8_000)[None]
    with torch.inference_mode():
        logits = theirs.logits(waveforms)[0]
        assert torch.equal(there.logits(waveforms)[0], logits)
        assert torch.equal(back.logits(waveforms)[0], logits)
    labels = range(len(theirs.vocabulary))
    assert there.vocabulary is not None and there.vocabulary.decode(labels) == theirs.vocabulary.decode(labels)
    assert (tmp_path / "back" / "vocab.json").read_text() == (tmp_path / "hub" / "vocab.json").read_text()
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())["pad_token"] == "<pad>"


def test_nothing_needs_to_be_allowed_to_open_what_is_written(recogniser: SpeechModel, tmp_path: Path) -> None:
    write_fairseq(recogniser, tmp_path / "a.pt")
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "a.pt") == []
    assert torch.load(tmp_path / "a.pt", weights_only=True)["cfg"]["model"]["_name"] == "wav2vec_ctc"
