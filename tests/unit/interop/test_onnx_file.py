"""ONNX files as checkpoints: what inference makes of them, and what is refused; test_serving.py has whole exports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speechssl
from speechssl.cli.main import main
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.inference.embed import embed
from speechssl.inference.onnx_model import OnnxModel
from speechssl.inference.recognise import transcribe
from speechssl.interop.load import load_for_inference
from speechssl.interop.onnx import ServingModel, count_min_samples, describe_model
from speechssl.interop.onnx_file import is_onnx, read_onnx
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from tests.cases import each_case
from tests.onnx_files import write_identity

CPU = torch.device("cpu")


class Fake:
    """Computes what an export would, by the model."""

    def __init__(self, model: SpeechModel, what: str) -> None:
        self.serving, self.shapes = ServingModel(model, what), set[tuple[int, ...]]()

    def run(self, _: None, feed: dict[str, Any]) -> list[Any]:
        self.shapes.add(feed["waveforms"].shape)
        values, num_frames = self.serving(*(torch.from_numpy(feed[name]) for name in ("waveforms", "num_samples")))
        return [values.numpy(), num_frames.numpy()]


@pytest.fixture
def recogniser(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(8)
    model = SpeechModel(tiny_model_config, build_vocabulary(TextConfig(), [])).eval()
    assert model.head is not None
    torch.nn.init.normal_(model.head.linear.weight)
    return model


def serve(model: SpeechModel, what: str) -> OnnxModel:
    vocabulary = model.vocabulary if what == "logits" else None
    return OnnxModel(model.config, vocabulary, Fake(model, what), count_min_samples(model.config), "a.onnx")


def test_it_recognises_and_embeds_as_the_model_does(recogniser: SpeechModel, speech: Callable[..., np.ndarray]) -> None:
    # Less than two frames, of different lengths, and longer than a window.
    waves = [speech(6.0, 1)[:500], speech(1.3, 2), speech(0.7, 3), speech(12.0, 4)]
    keys: dict[str, Any] = {"sample_rate": 16_000, "window_s": 5.0}
    logits, features = serve(recogniser, "logits"), serve(recogniser, "features")
    assert transcribe(logits, waves, **keys) == transcribe(recogniser, waves, **keys)
    found, expected = embed(features, waves, **keys), embed(recogniser, waves, **keys)
    assert found.drop(["embedding"]) == expected.drop(["embedding"])
    for row, reference in zip(found["embedding"].to_pylist(), expected["embedding"].to_pylist(), strict=True):
        np.testing.assert_allclose(row, reference, atol=1e-5)


def test_what_an_export_does_not_give(recogniser: SpeechModel) -> None:
    wave = np.zeros(16_000, dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"must be a recogniser, but .* no CTC head: convert to=onnx writes one"):
        transcribe(serve(recogniser, "features"), wave, sample_rate=16_000)
    with pytest.raises(CheckpointError, match=r"an export of features \(convert to=onnx_features\), but a.onnx gives"):
        embed(serve(recogniser, "logits"), wave, sample_rate=16_000)
    with pytest.raises(ConfigError, match="`layer` must be last for an ONNX file, which has no layers, but is 1"):
        embed(serve(recogniser, "features"), wave, layer=1, sample_rate=16_000)


def test_a_graph_that_gives_something_else_is_refused(recogniser: SpeechModel, tiny_model_config: ModelConfig) -> None:
    model = serve(recogniser, "logits")
    for lie in (
        [np.zeros((1, 49, 7), np.float32), np.array([49])],
        [np.zeros((1, 49, 32), np.float32), np.array([48])],
        [np.zeros((1, 48, 32), np.float32), np.array([49])],
        [np.zeros(3, np.float32), np.array([49])],
    ):
        model.session = type("Liar", (), {"run": lambda *_, lie=lie: lie})()
        with pytest.raises(CheckpointError, match="an ONNX file that gives what its metadata say, but a.onnx gives"):
            model.logits(torch.zeros(1, 16_000))
    model.session = type("Broken", (), {"run": lambda *_: 1 / 0})()
    with pytest.raises(CheckpointError, match="must be an ONNX file that runs, but a.onnx is not"):
        model.logits(torch.zeros(1, 16_000))


def change(facts: dict[str, str], value: Any, *keys: str) -> dict[str, str]:
    """Change one value of what a file says of its network."""
    ours = json.loads(facts["speechssl"])
    inner = ours
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return facts | {"speechssl": json.dumps(ours)}


def test_a_file_says_what_it_is(recogniser: SpeechModel, tmp_path: Path) -> None:
    write_identity(tmp_path / "a", describe_model(recogniser, "logits"))
    assert is_onnx(tmp_path / "a")
    model = load_for_inference(str(tmp_path / "a"), CPU)
    assert isinstance(model, OnnxModel)
    assert (model.config, model.vocabulary) == (recogniser.config, recogniser.vocabulary)
    write_identity(tmp_path / "b", describe_model(recogniser, "features"))
    assert read_onnx(tmp_path / "b").vocabulary is None
    # Its graph is none of ours.
    with pytest.raises(CheckpointError, match="must be an ONNX file that runs"):
        speechssl.transcribe(str(tmp_path / "a"), np.zeros(16_000, np.float32), sample_rate=16_000)


def test_a_file_that_does_not_say_what_it_is_is_refused(recogniser: SpeechModel, tmp_path: Path) -> None:
    facts = describe_model(recogniser, "logits")
    told = "must be an ONNX file of `convert`, which says its network and vocabulary, but"
    for number, (wrong, message) in enumerate(
        (
            ({}, told),
            ({"output": "logits"}, told),
            (facts | {"output": "text"}, told),
            (facts | {"speechssl": "{"}, "must be an ONNX file with whole metadata, but"),
            (facts | {"speechssl": "[" * 100_000}, "must be an ONNX file with whole metadata, but"),
            (facts | {"speechssl": " " * (5 << 20)}, "more than 4194304 letters"),
            (change(facts, None, "model"), "must have a network under 'speechssl'"),
            (change(facts, 10**9, "model", "num_layers"), "must be a network that can be built"),
            (change(facts, "x", "model", "frame_rate"), "must have a whole number as frame_rate"),
            (change(facts, None, "vocabulary"), "must hold a vocabulary"),
            (change(facts, 7, "vocabulary", "symbols"), "must hold a vocabulary"),
        )
    ):
        write_identity(tmp_path / f"{number}.onnx", wrong)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_for_inference(str(tmp_path / f"{number}.onnx"), CPU)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_damaged_file_is_refused(recogniser: SpeechModel, tmp_path: Path) -> None:
    write_identity(tmp_path / "a.onnx", describe_model(recogniser, "logits"))
    whole = (tmp_path / "a.onnx").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:12], b"\x08" + bytes(100), b"\x08\x0a" + whole[20:]):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match="`checkpoint` must be a"):
            load_for_inference(str(tmp_path / "a.onnx"), CPU)


def test_weights_outside_of_its_folder_are_never_read(recogniser: SpeechModel, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `onnx`")
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "in").mkdir()
    for place in ("../secret", str(tmp_path / "secret")):
        tensor = onnx.TensorProto(name="w", data_type=1, dims=[16], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=place)
        write_identity(tmp_path / "in" / "a.onnx", describe_model(recogniser, "logits"), tensor)
        with pytest.raises(CheckpointError, match="must be a whole ONNX file"):
            load_for_inference(str(tmp_path / "in" / "a.onnx"), CPU)


def test_without_onnxruntime_the_extra_is_named(
    recogniser: SpeechModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_identity(tmp_path / "a.onnx", describe_model(recogniser, "logits"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match=r"onnxruntime is missing: pip install 'speechssl\[onnx\]'"):
        load_for_inference(str(tmp_path / "a.onnx"), CPU)


@each_case(
    "words, expected",
    [
        (
            ("convert", "a.onnx"),
            "`checkpoint` must have weights that can be trained or converted, but a.onnx is an",
        ),
        (("finetune", "init=a.onnx", "data.train=m.tsv", "out=x"), "`init` must have weights that can be trained"),
        (("embed", "a.onnx", "m.tsv", "weights=ema"), "`weights` must be model where training kept no average"),
        (("convert", "a", "huggingface", "quantize=int8"), "`quantize` must be empty unless `to` is onnx"),
        (("convert", "a", "onnx", "quantize=int4"), "`quantize` must be one of int8, but is 'int4'"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: tuple[str, ...],
    expected: str,
    recogniser: SpeechModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_identity(tmp_path / "a.onnx", describe_model(recogniser, "logits"))
    assert main(list(words)) == 2
    assert expected in capsys.readouterr().err
