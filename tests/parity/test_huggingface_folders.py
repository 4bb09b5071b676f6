"""Folders that go to `transformers` and come from there: each opens in its own class, whole and without a warning."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

from speechssl import transcribe
from speechssl.cli.compose import compose
from speechssl.config.data import TextConfig
from speechssl.errors import CheckpointError
from speechssl.interop.foreign import build_model
from speechssl.interop.huggingface.folder import read_huggingface, write_huggingface
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from tests.parity.hf_weights import GROUP, LAYER, make_config

transformers = pytest.importorskip("transformers", reason="transformers is the other side of this test")

CLASSES = {"backbone": "Wav2Vec2Model", "pretraining": "Wav2Vec2ForPreTraining", "ctc": "Wav2Vec2ForCTC"}
NORMS = {
    "group": GROUP,
    "layer": LAYER | {"normalize_waveform": True},
    "group-pre": GROUP | {"norm_first": True},
    "layer-post": LAYER | {"norm_first": False, "conv_bias": False},
}


class Listener(logging.Handler):
    """Collects what `transformers` warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # Version 4 says on the level of warnings which device a pipeline uses.
        if not record.getMessage().startswith("Device set to use"):
            self.lines.append(record.getMessage())


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Hear the warnings of `transformers`, which go past Python's."""
    found = Listener()
    logger = logging.getLogger("transformers")
    logger.addHandler(found)
    yield found
    logger.removeHandler(found)


def make_model(kind: str, norms: str = "group", **changes: object) -> SpeechModel:
    torch.manual_seed(5)
    config = make_config(**(NORMS[norms] | {"group_norm_frames": "all", "waveform_epsilon": 1e-7} | changes))
    vocabulary = build_vocabulary(TextConfig(), []) if kind == "ctc" else None
    return SpeechModel(config, vocabulary, pretraining=kind == "pretraining").eval()


def open_there(name: str, folder: Path, listener: Listener) -> torch.nn.Module:
    """Open a folder in a class; nothing may be missing, left over, of another shape, or warned of."""
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert listener.lines == []
    return model.eval()


def draw_waveforms(rows: int = 1, num_samples: int = 16_000) -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.normal(0, 0.1, (rows, num_samples)).astype(np.float32))


def test_an_exported_folder_opens_in_its_class_with_the_same_numbers(tmp_path: Path, listener: Listener) -> None:
    for kind, norms in product(CLASSES, NORMS):
        ours = make_model(kind, norms)
        folder = tmp_path / kind / norms
        write_huggingface(ours, folder)
        theirs = open_there(CLASSES[kind], folder, listener)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        waveforms = draw_waveforms()
        inputs = extractor(waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        assert extractor.do_normalize == ours.config.normalize_waveform
        backbone = theirs if kind == "backbone" else theirs.wav2vec2
        with torch.inference_mode():
            expected = backbone(inputs, output_hidden_states=True)
            frames = ours(waveforms, None)
        torch.testing.assert_close(frames.last, expected.last_hidden_state, atol=1e-5, rtol=0)
        for state, reference in zip(frames.layers[:-1], expected.hidden_states[:-1], strict=True):
            torch.testing.assert_close(state, reference, atol=1e-5, rtol=0)
        if kind == "ctc":
            with torch.inference_mode():
                logits, _ = ours.logits(waveforms)
                torch.testing.assert_close(logits, theirs(inputs).logits, atol=1e-5, rtol=0)


def test_the_auto_classes_find_each_model(tmp_path: Path, listener: Listener) -> None:
    for kind, auto in (
        ("backbone", "AutoModel"),
        ("pretraining", "AutoModelForPreTraining"),
        ("ctc", "AutoModelForCTC"),
    ):
        write_huggingface(make_model(kind), tmp_path / kind)
        assert type(open_there(auto, tmp_path / kind, listener)).__name__ == CLASSES[kind]


def test_processor_and_pipeline_write_what_we_write(tmp_path: Path, listener: Listener) -> None:
    made = {
        "fairseq": build_vocabulary(TextConfig(), []),
        "data": build_vocabulary(TextConfig(vocabulary="data", case="lower"), ["the quick brown fox's café"]),
        "torchaudio": Vocabulary(("-", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")),
    }
    for name, vocabulary in made.items():
        torch.manual_seed(0)
        model = SpeechModel(make_config(**LAYER, normalize_waveform=True), vocabulary).eval()
        assert model.head is not None
        torch.nn.init.normal_(model.head.linear.weight)
        write_huggingface(model, tmp_path / name)
        processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / name)
        assert len(processor.tokenizer) == len(vocabulary)
        recognise = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / name), device="cpu")
        assert type(recognise.model).__name__ == "Wav2Vec2ForCTC"
        wave = draw_waveforms()[0]
        special = ("<s>", "</s>", "<unk>")
        there = recognise({"raw": wave.numpy(), "sampling_rate": 16_000})["text"]
        for word in special:
            there = there.replace(word, "")
        assert there.split() == transcribe(model, wave.numpy(), sample_rate=16_000)[0].split()
        assert there.strip()
        assert listener.lines == []


def test_a_folder_of_transformers_loads_with_the_same_numbers(tmp_path: Path) -> None:
    for kind, file, spelling in product(CLASSES, ("model.safetensors", "pytorch_model.bin"), ("parametrised", "old")):
        theirs = save_theirs(kind, folder := tmp_path / kind / file / spelling)
        weights = theirs.state_dict()
        if spelling == "old":
            renames = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
            weights = {_replace(name, renames): value for name, value in weights.items()}
            assert any(name.endswith("weight_g") for name in weights)
        (folder / "model.safetensors").unlink()
        if file == "pytorch_model.bin":
            torch.save(weights, folder / file)
        else:
            from safetensors.torch import save_file

            save_file({name: value.contiguous() for name, value in weights.items()}, folder / file)
        ours = load_model(str(folder))
        waveforms = draw_waveforms()
        with torch.inference_mode():
            inputs = theirs_inputs(waveforms)
            expected = (theirs if kind == "backbone" else theirs.wav2vec2)(inputs).last_hidden_state
            torch.testing.assert_close(ours(waveforms).last, expected, atol=1e-5, rtol=0)
        assert ours.config.waveform_epsilon == 1e-7
        assert (ours.pretraining is not None, ours.head is not None) == (kind == "pretraining", kind == "ctc")


def test_a_fused_positional_convolution_is_refused(tmp_path: Path) -> None:
    theirs = save_theirs("backbone", tmp_path)
    parametrize.remove_parametrizations(theirs.encoder.pos_conv_embed.conv, "weight")
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="fused as encoder.pos_conv_embed.conv.weight"):
        load_model(str(tmp_path))


def test_there_and_back_is_bitwise_the_same(tmp_path: Path, listener: Listener) -> None:
    """Through a save of `transformers` itself, which keeps what it does not know."""
    for kind, norms in product(CLASSES, NORMS):
        ours = make_model(kind, norms, feature_gradient_scale=0.3, waveform_epsilon=3e-6)
        first, again = tmp_path / kind / norms / "a", tmp_path / kind / norms / "b"
        write_huggingface(ours, first, update=11)
        open_there(CLASSES[kind], first, listener).save_pretrained(again)
        for name in ("preprocessor_config.json", "vocab.json", "tokenizer_config.json"):
            if (first / name).exists():
                (again / name).write_text((first / name).read_text())
        for folder in (first, again):
            foreign = read_huggingface(folder)
            back = build_model(foreign)
            assert foreign.card.model == ours.config
            assert foreign.card.vocabulary == ours.vocabulary
            assert foreign.card.update == 11
            assert all(torch.equal(back.state_dict()[name], value) for name, value in ours.state_dict().items())


def test_both_processor_spellings_are_read(tmp_path: Path) -> None:
    save_theirs("ctc", tmp_path)
    old, new = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    inner = json.loads(new.read_text())["feature_extractor"] if new.exists() else json.loads(old.read_text())
    for present in (old, new):
        old.unlink(missing_ok=True)
        new.unlink(missing_ok=True)
        present.write_text(json.dumps(inner if present is old else {"feature_extractor": inner}))
        assert load_model(str(tmp_path)).config.normalize_waveform


def test_a_layer_as_wide_as_the_model_gets_the_identity(tmp_path: Path, listener: Listener) -> None:
    ours = make_model("ctc", "layer", conv_channels=[16] * 6 + [32])
    write_huggingface(ours, tmp_path)
    theirs = open_there("Wav2Vec2ForCTC", tmp_path, listener)
    waveforms = draw_waveforms()
    with torch.inference_mode():
        logits, _ = ours.logits(waveforms)
        normed = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)(waveforms[0].numpy(), sampling_rate=16_000)
        expected = theirs(torch.from_numpy(np.stack(normed.input_values))).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert isinstance(load_model(str(tmp_path)).backbone.projection, torch.nn.Identity)


def test_a_blank_at_the_end_moves_to_the_front(tmp_path: Path) -> None:
    """The vocabulary of every fine-tuning notebook: letters, `|`, `[UNK]`, `[PAD]`."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", "|", "[UNK]", "[PAD]"]
    theirs = save_theirs("ctc", tmp_path, letters, pad="[PAD]", unk="[UNK]")
    ours = load_model(str(tmp_path))
    assert ours.vocabulary is not None
    assert ours.vocabulary.symbols == ("[PAD]", *letters[:-1])
    assert ours.vocabulary.case == "lower"
    with torch.inference_mode():
        logits, _ = ours.logits(draw_waveforms())
        expected = theirs(theirs_inputs(draw_waveforms())).logits
    torch.testing.assert_close(logits, expected.roll(1, -1), atol=1e-5, rtol=0)
    write_huggingface(ours, tmp_path / "again")
    assert read_huggingface(tmp_path / "again").card.vocabulary == ours.vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["base", "large", "large_lv60k"])
def test_published_sizes(preset: str, tmp_path: Path, listener: Listener) -> None:
    """At full size with random weights: every hidden state within 3e-5, the output within 1e-5."""
    torch.manual_seed(0)
    config = replace(compose("pretrain", [f"model={preset}", "out=x"]).model, waveform_epsilon=1e-7)
    ours = SpeechModel(config, pretraining=True).eval()
    write_huggingface(ours, tmp_path)
    theirs = open_there("Wav2Vec2ForPreTraining", tmp_path, listener)
    waveforms = draw_waveforms()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    inputs = extractor(waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        expected = theirs.wav2vec2(inputs, output_hidden_states=True)
        frames = ours(waveforms)
    for state, reference in zip(frames.layers[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(state, reference, atol=3e-5, rtol=0)
    torch.testing.assert_close(frames.last, expected.last_hidden_state, atol=1e-5, rtol=0)


def save_theirs(
    kind: str, folder: Path, letters: list[str] | None = None, pad: str = "<pad>", unk: str = "<unk>"
) -> torch.nn.Module:
    """Make a small model of `transformers` and save it as its users do, with a processor."""
    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    letters = letters or ["<pad>", "<s>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    hf_config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, codevector_dim=8, proj_codevector_dim=12,
        num_codevectors_per_group=10, vocab_size=len(letters), pad_token_id=letters.index(pad),
        feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True,
    )  # fmt: skip
    model = getattr(transformers, CLASSES[kind])(hf_config).eval()
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    specials = {"pad_token": pad, "unk_token": unk, "bos_token": None, "eos_token": None}
    if "<s>" in letters:
        specials |= {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **specials)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    if kind == "ctc":
        transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    else:
        extractor.save_pretrained(folder)
    return model


def theirs_inputs(waveforms: torch.Tensor) -> torch.Tensor:
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    return extractor(waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values


def _replace(text: str, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text
