"""The ladder of HuBERT, UniSpeech, UniSpeech-SAT, data2vec and WavLM: every station, and folders there and back."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="transformers is one of the peers")
pytest.importorskip("torchaudio", reason="torchaudio is one of the peers")

import torchaudio
import transformers

from speechssl.config.model import FAMILIES, ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.foreign import build_model, find_kind
from speechssl.interop.huggingface import families
from speechssl.interop.huggingface.folder import read_huggingface, write_huggingface
from speechssl.interop.load import load_model, write_model
from speechssl.interop.torchaudio import make_arguments, write_torchaudio
from speechssl.model.attention import find_buckets
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case
from tests.parity.families import ROWS, build_pair, build_there, save_there
from tests.parity.hf_weights import make_config
from tests.parity.ladder import (
    LENGTHS,
    draw_inputs,
    find_first,
    measure,
    record_ours,
    record_torchaudio,
    record_transformers,
)
from tests.parity.test_huggingface_folders import Listener, listener, open_there  # noqa: F401  (a fixture)
from tests.parity.test_ladder import BAR, DEEP_BAR, draw_masks

# What their WavLM does with a padding mask, torch does not like.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")


@each_case("row", ROWS)
def test_every_rung_in_evaluation_mode(row: str) -> None:
    ours, theirs = build_pair(row)
    for lengths in LENGTHS.values():
        batch = draw_inputs(ours.config, lengths)
        mine = record_ours(ours.backbone, batch, head=ours.head)
        assert find_first(measure(mine, record_transformers(theirs, batch), batch.num_frames), BAR) == ""


@each_case("row", ROWS)
def test_every_rung_in_training_mode_with_the_same_masks(row: str) -> None:
    ours, theirs = build_pair(row)
    for lengths in LENGTHS.values():
        batch = draw_inputs(ours.config, lengths)
        mask = draw_masks(batch)
        mine = record_ours(ours.train().backbone, batch, mask, ours.head)
        expected = record_transformers(theirs.train(), batch, mask)
        assert find_first(measure(mine, expected, batch.num_frames), BAR) == ""


@each_case("row", ["hubert, large", "wavlm", "wavlm, large"])
def test_every_rung_at_published_depth(row: str) -> None:
    ours, theirs = build_pair(row, num_hidden_layers=24)
    batch = draw_inputs(ours.config, LENGTHS["padded"])
    mine = record_ours(ours.backbone, batch, head=ours.head)
    assert find_first(measure(mine, record_transformers(theirs, batch), batch.num_frames), DEEP_BAR) == ""


@each_case("row", ["hubert", "hubert, large", "wavlm", "wavlm, large"])
def test_every_rung_of_torchaudio(row: str, tmp_path: Path) -> None:
    ours, _ = build_pair(row)
    write_torchaudio(ours, tmp_path / "a.pt", update=3)
    arguments = make_arguments(ours.config, 32)
    build = torchaudio.models.wavlm_model if row.startswith("wavlm") else torchaudio.models.wav2vec2_model
    theirs = build(**arguments).eval()
    theirs.load_state_dict(torch.load(tmp_path / "a.pt"))
    # Its WavLM takes no padded batch.
    for lengths in [LENGTHS["single"]] if row.startswith("wavlm") else LENGTHS.values():
        batch = draw_inputs(ours.config, lengths)
        mine = record_ours(ours.backbone, batch, head=ours.head)
        assert find_first(measure(mine, record_torchaudio(theirs, batch), batch.num_frames), BAR) == ""
    back = load_model(str(tmp_path / "a.pt"))
    weights = ours.state_dict()
    assert back.config == ours.config
    assert all(torch.equal(value, weights[name]) for name, value in back.state_dict().items() if "mask" not in name)


def test_distances_are_in_the_groups_of_the_peers() -> None:
    """At the published sizes and at small ones, as far as an hour."""
    distance = torch.arange(-180_000, 180_001)
    for count, most in ((320, 800), (320, 1280), (32, 128), (16, 40)):
        config = transformers.WavLMConfig(num_buckets=count, max_bucket_distance=most)
        there = transformers.models.wavlm.modeling_wavlm.WavLMAttention(
            config.hidden_size, config.num_attention_heads, num_buckets=count, max_distance=most
        )
        here = torchaudio.models.wav2vec2.wavlm_attention.WavLMSelfAttention(
            8, 2, has_relative_attention_bias=True, num_buckets=count, max_distance=most
        )
        found = find_buckets(distance, count, most)
        assert torch.equal(found, here._relative_positions_bucket(distance))
        assert torch.equal(found, there._relative_positions_bucket(distance))


@pytest.mark.parametrize("kind", ["ForCTC", pytest.param("Model", marks=pytest.mark.slow)])
@each_case("row", ROWS)
def test_a_folder_of_theirs_comes_back_bitwise(
    row: str,
    kind: str,
    tmp_path: Path,
    listener: Listener,  # noqa: F811
) -> None:
    """Theirs → ours → our own format → a folder that opens in the same class, whole and with the same weights."""
    theirs = build_there(row, kind)
    ours = load_model(str(save_there(theirs, tmp_path / "there")))
    write_model(ours, tmp_path / "ours", "speechssl")
    write_model(load_model(str(tmp_path / "ours")), tmp_path / "again", "huggingface")
    back = open_there(type(theirs).__name__, tmp_path / "again", listener)
    wanted = theirs.state_dict()
    assert back.state_dict().keys() == wanted.keys()
    assert all(torch.equal(back.state_dict()[name], value) for name, value in wanted.items())
    foreign = read_huggingface(tmp_path / "again")
    assert foreign.card.model == ours.config
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in build_model(foreign).state_dict().items())
    if kind == "Model":
        opened = transformers.AutoModel.from_pretrained(tmp_path / "again")
        assert type(opened) is type(theirs)


HEADS = [
    ("hubert", "ForSequenceClassification"),
    ("unispeech", "ForPreTraining"),
    ("unispeech", "ForSequenceClassification"),
    *product(
        ["unispeech-sat"],
        ("ForPreTraining", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector"),
    ),
    *product(["data2vec-audio", "wavlm"], ("ForSequenceClassification", "ForAudioFrameClassification", "ForXVector")),
]


@each_case("row, head", HEADS)
def test_other_heads_are_left_behind_and_named(row: str, head: str, tmp_path: Path) -> None:
    theirs = build_there(row, head, tdnn_dim=(16,) * 5, xvector_output_dim=8, classifier_proj_size=8)
    foreign = read_huggingface(save_there(theirs, tmp_path))
    assert foreign.dropped[0].startswith(f"the head of {type(theirs).__name__} (")
    ours = build_model(foreign).eval()
    assert find_kind(ours) == "backbone"
    waveforms = draw_inputs(ours.config, [16_000]).waveforms
    with torch.no_grad():
        expected = theirs.base_model(waveforms).last_hidden_state
        torch.testing.assert_close(ours(waveforms).last, expected, atol=1e-5, rtol=0)


def test_shards_and_half_precision(tmp_path: Path) -> None:
    for row in ROWS:
        whole = read_huggingface(save_there(theirs := build_there(row), tmp_path / row / "whole")).weights
        theirs.half().save_pretrained(folder := tmp_path / row / "half")
        for name in ("preprocessor_config.json", "vocab.json"):
            (folder / name).write_text((tmp_path / row / "whole" / name).read_text())
        stored = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        places = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(stored)}
        for file in set(places.values()):
            torch.save({name: value for name, value in stored.items() if places[name] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(str({"weight_map": places}).replace("'", '"'))
        found = read_huggingface(folder).weights
        assert all(torch.equal(found[name], value.half().float()) for name, value in whole.items())


# transformers says so of a method that peft calls.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@each_case("row", ["hubert", "data2vec-audio", "wavlm"])
def test_what_peft_learned_is_in_merged_weights_alone(row: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft makes the weights")
    plain = load_model(str(save_there(build_there(row), tmp_path / "plain")))
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build_there(row), lora)
    model.save_pretrained(tmp_path / "beside")
    waveforms = draw_inputs(plain.config, [16_000]).waveforms
    save_there(model.base_model.model, tmp_path / "not merged")
    # Only merged: WavLM there takes the weights of its projections past what peft puts around them.
    save_there(merged := model.merge_and_unload().eval(), tmp_path / "merged")
    with torch.no_grad():
        expected = merged(waveforms).logits
        torch.testing.assert_close(
            load_model(str(tmp_path / "merged")).logits(waveforms)[0], expected, atol=1e-5, rtol=0
        )
        assert float((plain.logits(waveforms)[0] - expected).abs().max()) > 1e-3
    for folder in ("beside", "not merged"):
        with pytest.raises(CheckpointError, match=r"^`checkpoint` must have what LoRA learned .* merge_and_unload"):
            load_model(str(tmp_path / folder))


BLOCK = {"block": "conformer", "norm_first": True, "macaron": True, "block_bias": False}
BERT = {"front_end": "kaldi_fbank", "block_causal": True, "final_norm": False, "positions": "relative_key"}


def test_the_class_is_that_which_fits_the_network(tmp_path: Path) -> None:
    """A name that a network has grown out of is not what it is written as."""
    rows: list[tuple[dict[str, object], str]] = [
        ({}, "Wav2Vec2Model"),
        ({"family": "unispeech-sat"}, "UniSpeechSatModel"),
        ({"family": "wavlm"}, "Wav2Vec2Model"),
        ({"feature_norm": False}, "HubertModel"),
        ({"position_norm": "batch"}, "HubertModel"),
        ({"position_norm": "layer", "position_depth": 2, "conv_norm": "layer"}, "Data2VecAudioModel"),
        ({"position_buckets": 8}, "WavLMModel"),
        (BLOCK | {"block_norm": "batch", "positions": "relative"}, "Wav2Vec2ConformerModel"),
        (BLOCK | BERT, "Wav2Vec2BertModel"),
    ]
    assert tuple(family.model_type for family in families.FAMILIES) == FAMILIES
    for number, (changes, name) in enumerate(rows):
        config: ModelConfig = replace(make_config(), **changes)  # type: ignore[arg-type]
        write_huggingface(SpeechModel(config), folder := tmp_path / str(number))
        model = transformers.AutoModel.from_pretrained(folder)
        assert type(model).__name__ == name
        assert read_huggingface(folder).card.model == config
