"""Exports against PyTorch; test_serving.py runs these in a process of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch

import speechssl
from speechssl.cli.compose import compose
from speechssl.cli.main import main
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.interop.onnx import export_program
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary
from tests.conftest import make_speech

LIMIT = 1e-4
LENGTHS_S = (0.1, 0.7, 1.0, 4.3, 30.0)
LAYER = {"conv_norm": "layer", "conv_bias": True, "norm_first": True, "normalize_waveform": True}
CONFORMER = {"block": "conformer", "norm_first": True, "macaron": True, "positions": "rotary", "block_norm": "batch"}
BERT = CONFORMER | {
    "front_end": "kaldi_fbank", "positions": "relative_key", "block_norm": "layer", "block_causal": True,
    "block_bias": False, "final_norm": False, "position_left": 9, "position_right": 4,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "group": {},
    "layer": LAYER,
    "conformer": CONFORMER,
    "relative": CONFORMER | {"positions": "relative"},
    "wavlm": {"position_buckets": 8, "position_max_distance": 20},
    "data2vec": LAYER | {"norm_first": False, "position_norm": "layer", "position_depth": 2},
    "adapters": LAYER | {"adapter_dim": 3},
    "w2v-bert": BERT,
    "length-adapter": BERT | {"length_adapter_layers": 2, "length_adapter_ffn": True},
}


def build(config: ModelConfig, has_head: bool = True) -> SpeechModel:
    torch.manual_seed(5)
    return SpeechModel(config, build_vocabulary(TextConfig(), []) if has_head else None).eval()


def compare(model: SpeechModel, what: str, call: Any, rows: tuple[int, ...] = (1, 3)) -> float:
    """Compare a runtime with PyTorch, each row alone in PyTorch's; the largest difference over valid frames."""
    worst = 0.0
    for batch in rows:
        for seconds in LENGTHS_S:
            generator = torch.Generator().manual_seed(round(10 * seconds) + batch)
            size = round(16_000 * seconds)
            lengths = torch.tensor([size, max(size // 2, 400), max(size - 777, 400)][:batch])
            waveforms = 0.1 * torch.randn(batch, size, generator=generator) + 0.05
            for row, length in enumerate(lengths.tolist()):
                waveforms[row, length:] = 0.0
            values, num_frames = call(waveforms, lengths)
            for row, length in enumerate(lengths.tolist()):
                with torch.inference_mode():
                    alone = waveforms[row : row + 1, :length]
                    expected = model.logits(alone)[0] if what == "logits" else model(alone).last
                assert num_frames[row] == expected.shape[1]
                worst = max(worst, float((values[row, : num_frames[row]] - expected[0]).abs().max()))
                assert not values[row, num_frames[row] :].any()
    return worst


def open_session(path: Path) -> tuple[onnxruntime.InferenceSession, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def call(waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, Any]:
        values, num_frames = session.run(None, {"waveforms": waveforms.numpy(), "num_samples": lengths.numpy()})
        return torch.from_numpy(values), num_frames

    return session, call


def test_convert(
    tmp_path: Path, tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    speechssl.save(build(tiny_model_config), "recogniser")
    assert main(["convert", "recogniser", "onnx", "out=serve/model.onnx"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert (result["to"], result["out"], result["left_behind"]) == ("onnx", "serve/model.onnx", ["mask vector"])
    assert "torchvision" not in captured.err
    assert [path.name for path in (tmp_path / "serve").iterdir()] == ["model.onnx"]
    # The exporter writes lines of source beside each operation.
    assert str(Path(speechssl.__file__).parent).encode() not in (tmp_path / "serve" / "model.onnx").read_bytes()
    session, call = open_session(tmp_path / "serve" / "model.onnx")
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("waveforms", ["batch", "samples"]),
        ("num_samples", ["batch"]),
    ]
    assert [value.name for value in session.get_outputs()] == ["logits", "num_frames"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["audio"])["sample_rate"] == 16_000
    assert compare(speechssl.load("recogniser"), "logits", call) < LIMIT
    # The shortest that the graph takes, and a row without a single frame.
    values, num_frames = call(torch.ones(2, 720), torch.tensor([720, 399]))
    assert num_frames.tolist() == [2, 0]
    assert values.isfinite().all()
    assert not values[1].any()


def test_an_export_is_a_checkpoint(
    tmp_path: Path, tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`transcribe`, `evaluate` and `embed` give what they give of the model; int8 gives nearly that, and is smaller."""

    def run(*words: str) -> dict[str, Any]:
        assert main([*words, "device=cpu", "precision=float32"] if words[0] != "convert" else list(words)) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return result

    monkeypatch.chdir(tmp_path)
    mel = {"front_end": "log_mel", "frame_rate": 25, "mel_channels": [32, 32], "model_dim": 64, "ffn_dim": 256}
    model = build(replace(tiny_model_config, **mel, **CONFORMER))
    assert model.head is not None
    torch.nn.init.normal_(model.head.linear.weight)
    speechssl.save(model, "asr")
    lines = ["id\tpath\tsample_rate\tnum_samples\ttext"]
    for number, seconds in enumerate((0.5, 1.7, 7.0)):
        soundfile.write(f"{number}.wav", make_speech(seconds, number), 16_000)
        lines.append(f"u{number}\t{number}.wav\t16000\t{round(16_000 * seconds)}\tONE TWO")
    Path("m.tsv").write_text("\n".join(lines) + "\n")
    whole = run("convert", "asr", "onnx", "out=asr.onnx")
    run("convert", "asr", "onnx_features", "out=features.onnx")
    small = run("convert", "asr", "onnx", "out=int8.onnx", "quantize=int8")
    assert whole["bytes"] == small["bytes_float32"] == Path("asr.onnx").stat().st_size
    assert small["bytes"] == Path("int8.onnx").stat().st_size < 0.8 * whole["bytes"]
    assert sorted(path.name for path in tmp_path.glob("*.onnx*")) == ["asr.onnx", "features.onnx", "int8.onnx"]
    facts = [open_session(tmp_path / name)[0].get_modelmeta().custom_metadata_map for name in ("asr.onnx", "int8.onnx")]
    assert facts[1].pop("weights") == "int8"
    assert facts[0].items() <= facts[1].items()
    for verb, out in (("evaluate", "e"), ("transcribe", "t")):
        results = [run(verb, name, "m.tsv", "window_s=5", f"out={out}-{name}") for name in ("asr", "asr.onnx")]
        different = {"checkpoint", "out", "texts", "audio_s_per_s", "calibration"}
        first, second = ({key: result[key] for key in result.keys() - different} for result in results)
        assert first == second
    for name in ("asr", "features.onnx"):
        run("embed", name, "m.tsv", "window_s=5", f"out={name}.npy")
    np.testing.assert_allclose(np.load("features.onnx.npy"), np.load("asr.npy"), atol=LIMIT)
    waves = torch.from_numpy(make_speech(4.0, 3))[None]
    logits, rough = (
        open_session(tmp_path / name)[1](waves, torch.tensor([64_000]))[0] for name in ("asr.onnx", "int8.onnx")
    )
    assert 0 < float((logits - rough).abs().mean()) < 0.1 * float(logits.std())


def test_the_program_and_the_model_afterwards(tiny_model_config: ModelConfig) -> None:
    model = build(replace(tiny_model_config, **LAYER))
    model.train().backbone.encoder.eval()
    model.backbone.mask_embedding.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    program = export_program(model, "features")
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    with torch.no_grad():
        assert compare(model.eval(), "features", program.module()) < LIMIT
        with pytest.raises(AssertionError, match="720"):
            program.module()(torch.zeros(1, 700), torch.tensor([700]))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["logits", "features"])
@pytest.mark.parametrize("network", [*NETWORKS, "small"])
def test_every_network_and_output(network: str, what: str, tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    small = compose("pretrain", ["model=small", "out=x"]).model
    model = build(replace(tiny_model_config, **NETWORKS[network]) if network in NETWORKS else small)
    speechssl.save(model, tmp_path / "model.onnx", format="onnx" if what == "logits" else "onnx_features")
    worst = compare(model, what, open_session(tmp_path / "model.onnx")[1])
    print(f"{network} {what}: {worst:.1e}")
    assert worst < LIMIT
