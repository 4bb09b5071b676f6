"""wav2vec 2.0 Conformer and w2v-BERT 2.0: every rung against `transformers`, and folders there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="transformers is the other side of this test")

import transformers

import speechssl
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.foreign import build_model
from speechssl.interop.huggingface.families import choose_family
from speechssl.interop.huggingface.folder import read_huggingface, write_huggingface
from speechssl.interop.load import load_model, write_model
from speechssl.model.kaldi_fbank import KaldiFbank
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case
from tests.conftest import make_speech
from tests.parity.conformers import (
    LENGTHS,
    NETWORKS,
    Pair,
    build_pair,
    draw_waveforms,
    measure,
    prepare_theirs,
    record_ours,
    record_theirs,
    save_theirs,
)
from tests.parity.ladder import find_first
from tests.parity.test_ladder import BAR, EXACT_BAR

BANDS_BAR = 2e-5
"""Their extractor takes means in float32: up to 1.4e-5 from its own formula in float64, which ours is close to."""

CONFORMER, BERT = "wav2vec 2.0, relative", "w2v-BERT, relative_key"
ADAPTER, DEEP = "w2v-BERT, length adapter", "w2v-BERT, length adapter of 2 after a feed-forward part"


def draw_mask(pair: Pair, lengths: list[int]) -> torch.Tensor:
    counts = [int(pair.ours.config.count_frames(length)) for length in lengths]
    mask = torch.rand(len(counts), max(counts), generator=torch.Generator().manual_seed(1)) < 0.3
    return mask & (torch.arange(max(counts)) < torch.tensor(counts)[:, None])


@each_case("name", NETWORKS)
def test_every_rung_in_evaluation_mode(name: str, tmp_path: Path) -> None:
    pair = build_pair(name, "ForCTC", tmp_path)
    for batch in ("single", "padded"):
        assert find_first(measure(pair, LENGTHS[batch]), BAR) == "", batch


@each_case("name", [CONFORMER, BERT, DEEP])
def test_every_rung_in_float64(name: str, tmp_path: Path) -> None:
    pair = build_pair(name, "ForCTC", tmp_path)
    pair.ours.double(), pair.theirs.double()
    assert find_first(measure(pair, LENGTHS["padded"]), EXACT_BAR) == ""


@each_case("name", NETWORKS)
def test_every_rung_and_gradient_in_training_mode_with_the_same_masks(name: str, tmp_path: Path) -> None:
    """Batch norm takes its statistics over valid frames, so that it agrees where there are no others."""
    pair = build_pair(name, "ForCTC", tmp_path)
    pair.ours.train(), pair.theirs.train()
    lengths = LENGTHS["alike" if pair.lets_padding_in else "padded"]
    mask, (waveforms, num_samples) = draw_mask(pair, lengths), draw_waveforms(lengths)
    found = measure(pair, lengths, mask)
    assert find_first(found, BAR) == ""
    theirs = dict(pair.theirs.named_buffers())
    for block, state in enumerate(pair.ours.backbone.transformer.blocks):
        for buffer, value in state.convolution.norm.named_buffers():
            there = theirs[f"wav2vec2_conformer.encoder.layers.{block}.conv_module.batch_norm.{buffer}"]
            torch.testing.assert_close(value, there, atol=1e-5, rtol=1e-5)
    compare_gradients(pair, waveforms, num_samples, mask)


def compare_gradients(
    pair: Pair, waveforms: torch.Tensor, num_samples: torch.Tensor | None, mask: torch.Tensor
) -> None:
    ours, theirs = pair.ours, getattr(pair.theirs, pair.theirs.base_model_prefix)
    features = ours.backbone.encode(prepare_ours(pair, waveforms, num_samples), num_samples)
    last = ours.backbone.finish(ours.backbone.contextualise(features, mask)[0], features)
    valid = torch.arange(last.shape[1]) < ours.count_outputs(waveforms, num_samples)[:, None]
    (last[valid] ** 3).sum().backward()
    inputs, attention_mask = prepare_theirs(pair, waveforms, num_samples)
    there = theirs(inputs, attention_mask=attention_mask, mask_time_indices=mask).last_hidden_state
    (there[valid] ** 3).sum().backward()
    first, far = ours.backbone.transformer.blocks[0], theirs.encoder.layers[0]
    pairs = [(ours.backbone.projection.weight, theirs.feature_projection.projection.weight)]
    pairs += [(ours.backbone.mask_embedding, theirs.masked_spec_embed)]
    pairs += [(first.attention.query.weight, far.self_attn.linear_q.weight)]
    pairs += [(first.convolution.depthwise.weight, far.conv_module.depthwise_conv.weight)]
    if ours.config.positions == "relative":
        pairs += [(first.attention.place.weight, far.self_attn.linear_pos.weight)]
        pairs += [(first.attention.content_bias, far.self_attn.pos_bias_u)]
        pairs += [(first.attention.place_bias, far.self_attn.pos_bias_v)]
    if ours.config.positions == "relative_key":
        pairs += [(first.attention.distances, far.self_attn.distance_embedding.weight)]
    if ours.backbone.length_adapter is not None:
        near, there = ours.backbone.length_adapter.layers[0], theirs.adapter.layers[0]
        pairs += [(near.residual_conv.weight, there.residual_conv.weight)]
        pairs += [(near.attention.value.weight, there.self_attn.linear_v.weight)]
        pairs += [(near.last.outer.weight, there.ffn.output_dense.weight)]
    for mine, other in pairs:
        assert mine.grad is not None and other.grad is not None and other.grad.any()
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5 * float(other.grad.abs().max()), rtol=1e-3)


def prepare_ours(pair: Pair, waveforms: torch.Tensor, num_samples: torch.Tensor | None) -> torch.Tensor:
    return waveforms if pair.has_bands else prepare_theirs(pair, waveforms, num_samples)[0]


def test_bands_are_those_of_the_extractor() -> None:
    extractor = transformers.SeamlessM4TFeatureExtractor()
    encoder = KaldiFbank(ModelConfig(front_end="kaldi_fbank"))
    rng = np.random.default_rng(0)
    sounds = [make_speech(1.5, 1), make_speech(1.513, 2), 1e-3 * make_speech(1.0, 3), rng.normal(0, 0.1, 16_500)]
    sounds = [sound.astype(np.float32) for sound in sounds]
    batch = nn.utils.rnn.pad_sequence([torch.from_numpy(sound) for sound in sounds], batch_first=True)
    theirs = extractor(sounds, sampling_rate=16_000, return_tensors="pt")
    ours, counts = encoder(batch, torch.tensor([len(sound) for sound in sounds]))
    assert counts.tolist() == theirs.attention_mask.sum(1).tolist() == [74, 74, 49, 50]
    for row, (count, sound) in enumerate(zip(counts.tolist(), sounds, strict=True)):
        torch.testing.assert_close(ours[row, :count], theirs.input_features[row, :count], atol=BANDS_BAR, rtol=0)
        bands = extractor._extract_fbank_features(sound).astype(np.float64)
        exact = (bands - bands.mean(0)) / np.sqrt(bands.var(0, ddof=1) + 1e-7)
        pairs = torch.from_numpy(exact[: 2 * count].reshape(count, -1))
        torch.testing.assert_close(ours[row, :count].double(), pairs, atol=BAR, rtol=0)


def test_from_the_waveform_on_as_far_as_the_bands_are_the_same(tmp_path: Path) -> None:
    for number, name in enumerate((CONFORMER, BERT)):
        theirs = save_theirs(name, "Model", folder := tmp_path / str(number)).eval()
        model = load_model(str(folder))
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        wave = make_speech(1.5, 1)
        with torch.inference_mode():
            there = theirs(**extractor(wave, sampling_rate=16_000, return_tensors="pt"), output_hidden_states=True)
            frames = model(torch.from_numpy(wave)[None])
        count, bar = int(frames.num_frames), 3e-5 if name == BERT else BAR
        torch.testing.assert_close(frames.last, there.last_hidden_state[:, :count], atol=bar, rtol=0)
        assert len(frames.layers) == len(there.hidden_states) == 3
        for state, reference in zip(frames.layers, there.hidden_states, strict=True):
            torch.testing.assert_close(state, reference[:, :count], atol=bar, rtol=0)


def test_padding_leaks_there_and_not_here(tmp_path: Path) -> None:
    """In wav2vec 2.0 Conformer: our padded rows are what its rows are alone (the ladder), its padded ones are not."""
    pair = build_pair(CONFORMER, "Model", tmp_path)
    waveforms, num_samples = draw_waveforms(LENGTHS["padded"])
    assert num_samples is not None
    valid = (torch.arange(waveforms.shape[1]) < num_samples[:, None]).long()
    there = record_theirs(pair, prepare_theirs(pair, waveforms, num_samples)[0], valid)["encoder"]
    ours = record_ours(pair, waveforms, num_samples)["encoder"]
    assert float((ours[1, :26] - there[1, :26]).abs().max()) > 1e-2


@each_case("name", [CONFORMER, "wav2vec 2.0, rotary, layer norm", BERT, ADAPTER, DEEP])
def test_there_and_back_is_bitwise_the_same(name: str, tmp_path: Path) -> None:
    """Theirs read, written, opened there, saved there and read again: the same weights and numbers everywhere."""
    for kind in ("Model", "ForCTC", *(["ForPreTraining"] if name.startswith("wav2vec") else [])):
        theirs = save_theirs(name, kind, folder := tmp_path / kind).eval()
        first = read_huggingface(folder)
        model = build_model(first).eval()
        write_huggingface(model, tmp_path / f"{kind}-out", update=7)
        there, info = type(theirs).from_pretrained(tmp_path / f"{kind}-out", output_loading_info=True)
        assert not any(info.values()), info
        weights = dict(theirs.state_dict())
        for weight, value in there.state_dict().items():
            assert "pos_conv_embed" in weight or torch.equal(value, weights[weight]) or "num_batches" in weight, weight
        there.save_pretrained(tmp_path / f"{kind}-again")
        for file in (tmp_path / f"{kind}-out").iterdir():
            if not (tmp_path / f"{kind}-again" / file.name).exists():
                (tmp_path / f"{kind}-again" / file.name).write_bytes(file.read_bytes())
        for again in (f"{kind}-out", f"{kind}-again"):
            foreign = read_huggingface(tmp_path / again)
            assert (foreign.card.model, foreign.card.update) == (model.config, 7)
            assert foreign.card.vocabulary == first.card.vocabulary
            assert all(torch.equal(value, first.weights[weight]) for weight, value in foreign.weights.items())


def test_what_a_folder_says_is_what_was_read(tmp_path: Path) -> None:
    save_theirs(CONFORMER, "ForXVector", tmp_path / "a", conformer_conv_dropout=0.2)
    foreign = read_huggingface(tmp_path / "a")
    assert foreign.card.kind == "backbone" and foreign.card.model.family == "wav2vec2-conformer"
    assert foreign.dropped[0] == "conformer_conv_dropout=0.2"
    assert foreign.dropped[1] == "encoder.pos_conv_embed.* (never used there)"
    assert foreign.dropped[2].startswith("the head of Wav2Vec2ConformerForXVector (")
    save_theirs(BERT, "ForSequenceClassification", tmp_path / "b")
    foreign = read_huggingface(tmp_path / "b")
    assert foreign.dropped == ("the head of Wav2Vec2BertForSequenceClassification (classifier, projector)",)
    config = foreign.card.model
    assert (config.num_mels, config.position_left, config.position_right, config.block_kernel) == (80, 9, 4, 7)
    assert (config.receptive_field, config.hop_samples, config.feature_dim) == (560, 320, 160)


HEADS = ("ForSequenceClassification", "ForAudioFrameClassification", "ForXVector")


@each_case("name, head", product((CONFORMER, BERT), HEADS))
def test_other_heads_are_left_behind_and_named(name: str, head: str, tmp_path: Path) -> None:
    sizes = {"tdnn_dim": (16,) * 5, "xvector_output_dim": 8, "classifier_proj_size": 8}
    theirs = save_theirs(name, head, tmp_path, **sizes).eval()
    foreign = read_huggingface(tmp_path)
    assert foreign.dropped[-1].startswith(f"the head of {type(theirs).__name__} (")
    pair = Pair(build_model(foreign).eval(), theirs, tmp_path)
    assert pair.ours.head is None and pair.ours.pretraining is None
    assert find_first(measure(pair, LENGTHS["single"]), BAR) == ""


def test_pipelines_write_what_we_write(tmp_path: Path) -> None:
    for number, name in enumerate((CONFORMER, BERT)):
        save_theirs(name, "ForCTC", tmp_path / str(number))
        model = load_model(str(tmp_path / str(number)))
        write_huggingface(model, folder := tmp_path / f"{number}-out")
        recognise = transformers.pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
        assert type(recognise.model).__name__ == choose_family(model.config).architectures["ctc"]
        wave = make_speech(1.5, 1)
        text = recognise({"raw": wave, "sampling_rate": 16_000})["text"]
        for word in ("<s>", "</s>", "<unk>"):
            text = text.replace(word, "")
        assert text.split() == speechssl.transcribe(model, wave, sample_rate=16_000)[0].split() != []


def test_a_pretraining_head_that_has_no_class_is_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_theirs(BERT, "Model", tmp_path / "a")
    config = load_model(str(tmp_path / "a")).config
    dropped = write_model(SpeechModel(config, pretraining=True), tmp_path / "b", "huggingface")
    assert dropped == ("quantizer, target and context projection",)
    assert read_huggingface(tmp_path / "b").card.kind == "backbone"


def edit(name: str, **values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(stored | values))

    return change


MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a length adapter of wav2vec 2.0": (
        CONFORMER,
        edit("config.json", add_adapter=True),
        r"without adapters, but .* has convolutions after the blocks \(add_adapter=True\), which do not load yet",
    ),
    "a length adapter that is said and not there": (BERT, edit("config.json", add_adapter=True), "adapter.layers.0.ff"),
    "a narrower length adapter": (
        ADAPTER,
        edit("config.json", output_hidden_size=16),
        "must have output_hidden_size=32 in .*, but has 16",
    ),
    "another activation of it": (ADAPTER, edit("config.json", adapter_act="gelu"), "must have adapter_act=relu in"),
    "a kernel smaller than its stride": (
        ADAPTER,
        edit("config.json", adapter_stride=4),
        "`model.length_adapter_kernel` must be a whole number between 5 and 65536, but is 3",
    ),
    "another positions": (
        CONFORMER,
        edit("config.json", position_embeddings_type="learnt"),
        "must have one of relative, rotary, None as position_embeddings_type in .*, but has 'learnt'",
    ),
    "positions as a list": (BERT, edit("config.json", position_embeddings_type=[]), "as position_embeddings_type in"),
    "another activation": (
        BERT,
        edit("config.json", hidden_act="relu"),
        "one of swish, silu, gelu as hidden_act",
    ),
    "another base": (CONFORMER, edit("config.json", rotary_embedding_base=500), "rotary_embedding_base=10000 in"),
    "an even kernel": (BERT, edit("config.json", conv_depthwise_kernel_size=6), "`model.block_kernel` must be odd"),
    "distances without end": (
        BERT,
        edit("config.json", left_max_position_embeddings=10**9),
        "`model.position_left` must be a whole number between 0 and 65536",
    ),
    "waveforms where bands go in": (
        BERT,
        edit("preprocessor_config.json", feature_extractor_type="Wav2Vec2FeatureExtractor"),
        "must have SeamlessM4TFeatureExtractor in .*, but has 'Wav2Vec2FeatureExtractor'",
    ),
    "bands one by one": (BERT, edit("preprocessor_config.json", stride=1), r"pairs of bands \(stride=2\) in .* has 1"),
    "other bands": (BERT, edit("preprocessor_config.json", num_mel_bins=40), r"feature_norm.bias \(160,\) for \(80,\)"),
    "no bands": (BERT, edit("preprocessor_config.json", num_mel_bins=0), "`model.num_mels` must be between 1 and 128"),
    "no word on the bands": (
        BERT,
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        r"must say in preprocessor_config.json how many bands there are \(num_mel_bins\), but .* has no such file",
    ),
    "another rate": (BERT, edit("preprocessor_config.json", sampling_rate=8000), "must take audio at 16000 Hz"),
    "other angles": ("wav2vec 2.0, rotary, layer norm", lambda folder: turn(folder), "must have powers of 10,000 as"),
}


def turn(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["encoder.embed_positions.inv_freq"] *= 2
    save_file(weights, folder / "model.safetensors")


@each_case("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, tmp_path: Path) -> None:
    name, change, sentence = MISTAKES[mistake]
    save_theirs(name, "Model", tmp_path)
    change(tmp_path)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_model(str(tmp_path))
    assert str(caught.value).startswith("`checkpoint` must ") and "\n" not in str(caught.value)
