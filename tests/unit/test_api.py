"""The Python face."""

from __future__ import annotations

from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch

import speechssl
from speechssl import devices
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.inference import recognise as recognition
from speechssl.model.lengths import check_waveforms
from speechssl.model.masking import sample_masks, sample_negatives
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case


@pytest.fixture
def model(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(0)
    return SpeechModel(tiny_model_config, pretraining=True).eval()


def test_save_and_load_give_the_same_frames(model: SpeechModel, tmp_path: Path) -> None:
    speechssl.save(model, tmp_path / "saved")
    loaded = speechssl.load(tmp_path / "saved")
    waveforms = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(waveforms).last, model(waveforms).last)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(parameter.requires_grad for parameter in speechssl.load(tmp_path / "saved", trainable=True).parameters())


@each_case("format", ["huggingface", "fairseq"])
def test_other_formats_keep_the_pretraining_heads(format: str, model: SpeechModel, tmp_path: Path) -> None:
    speechssl.save(model, tmp_path / "saved.pt", format=format)
    loaded = speechssl.load(tmp_path / "saved.pt").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_pretraining_forward_takes_everything_that_is_drawn(model: SpeechModel) -> None:
    rng = np.random.default_rng(3)
    waveforms = torch.from_numpy(rng.standard_normal((2, 32_000)).astype(np.float32)) * 0.1
    num_frames = int(model(waveforms).num_frames[0])
    masks = sample_masks([num_frames] * 2, model.config.mask, rng)
    mask = torch.from_numpy(np.stack(masks))
    negatives = torch.from_numpy(np.stack([sample_negatives(int(row.sum()), 20, rng) for row in masks]))
    num_masked = negatives.shape[1]
    noise = torch.zeros(2, num_masked, 2, model.config.quantizer.num_codes)
    out = speechssl.pretraining_forward(model, waveforms, None, mask, negatives, noise, temperature=2.0)
    assert out.logits.shape == (2, num_masked, 21)
    assert int(out.count) == int(mask.sum())
    parts = out.contrastive_sum + out.diversity_sum + out.features_sum
    torch.testing.assert_close(out.loss_sum.detach().double(), parts)
    # Zero noise leaves the choice as it is without noise.
    again = speechssl.pretraining_forward(model, waveforms, None, mask, negatives, None, temperature=2.0)
    torch.testing.assert_close(out.contrastive_sum, again.contrastive_sum)


def test_pretraining_forward_needs_the_heads(tiny_model_config: ModelConfig) -> None:
    bare = SpeechModel(tiny_model_config)
    with pytest.raises(speechssl.CheckpointError, match="pretraining heads"):
        speechssl.pretraining_forward(
            bare, torch.zeros(1, 400), None, torch.ones(1, 1).bool(), torch.zeros(1, 1, 1), None, 1.0
        )


def test_a_verb_is_a_function_of_its_name() -> None:
    assert "torch" in speechssl.doctor()["packages"]
    with pytest.raises(speechssl.ConfigError, match="`training.lr`"):
        speechssl.pretrain(model="tiny", out="x", training={"lrr": 1.0})


def test_lengths_beyond_the_waveforms_are_refused(model: SpeechModel) -> None:
    waveforms, too_long = torch.zeros(2, 800), torch.tensor([800, 900])
    with pytest.raises(speechssl.DataError, match="`num_samples` must be between 0 and the 800 samples"):
        model(waveforms, too_long)
    with pytest.raises(speechssl.DataError, match="`num_samples`"):
        model.codes(waveforms, too_long)
    mask, negatives = torch.ones(2, 2).bool(), torch.zeros(2, 2, 1, dtype=torch.int64)
    with pytest.raises(speechssl.DataError, match="`num_samples`"):
        speechssl.pretraining_forward(model, waveforms, too_long, mask, negatives, None, 1.0)


def test_load_takes_the_devices_of_the_key(model: SpeechModel, tmp_path: Path) -> None:
    speechssl.save(model, tmp_path / "saved")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert speechssl.load(tmp_path / "saved", device="auto").device.type == expected
    assert speechssl.load(tmp_path / "saved", device=torch.device("cpu")).device.type == "cpu"
    with pytest.raises(speechssl.ConfigError, match="`device` must be auto, cpu, cuda or cuda:N, but is 'gpu'"):
        speechssl.load(tmp_path / "saved", device="gpu")


@pytest.fixture
def recogniser(tiny_model_config: ModelConfig) -> SpeechModel:
    torch.manual_seed(0)
    return SpeechModel(tiny_model_config, speechssl.build_vocabulary(TextConfig(), [])).eval()


@each_case("function", ["embed", "transcribe"])
@each_case(
    "key, value",
    [
        ("precision", "fp16"),
        ("window_s", 1.0),
        ("window_s", float("inf")),
        ("batch_s", 0),
        ("batch_s", float("nan")),
    ],
)
def test_keys_that_a_verb_shares_are_checked_as_there(
    function: str, key: str, value: object, recogniser: SpeechModel
) -> None:
    call = getattr(speechssl, function)
    with pytest.raises(speechssl.ConfigError, match=f"`{key}` must be"):
        call(recogniser, np.zeros(16_000, np.float32), sample_rate=16_000, **{key: value})


def test_auto_is_resolved(recogniser: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_measure_cpu_gain", lambda: 2 * devices.GAIN_WANTED)
    wave = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)

    def embed(**keys: str) -> np.ndarray:
        table = speechssl.embed(recogniser, wave, sample_rate=16_000, **keys)
        return np.array(table.column("embedding").to_pylist())

    np.testing.assert_array_equal(embed(precision="auto"), embed(precision="bf16"))
    np.testing.assert_array_equal(embed(precision="float32"), embed())
    assert np.abs(embed(precision="auto") - embed()).max() > 0
    asked = []

    @wraps(recognition.transcribe)
    def transcribe(*_: object, **keys: str) -> None:
        asked.append(keys["precision"])

    monkeypatch.setattr(recognition, "transcribe", transcribe)
    speechssl.transcribe(recogniser, wave, sample_rate=16_000, precision="auto")
    assert asked == ["bf16"]


@each_case("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_every_float_are_audio(dtype: torch.dtype, recogniser: SpeechModel) -> None:
    wave = (0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))).to(dtype)
    table, expected = (speechssl.embed(recogniser, x, sample_rate=16_000) for x in (wave, wave.float().numpy()))
    assert table.column("embedding") == expected.column("embedding")
    assert len(speechssl.transcribe(recogniser, [wave, wave], sample_rate=16_000)) == 2


def test_what_loads_a_model_is_one(recogniser: SpeechModel, tmp_path: Path) -> None:
    speechssl.save(recogniser, tmp_path / "asr")
    wave = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    expected = speechssl.transcribe(recogniser, wave, sample_rate=16_000)
    assert speechssl.transcribe(tmp_path / "asr", wave, sample_rate=16_000) == expected
    table = speechssl.embed(str(tmp_path / "asr"), [wave, wave.numpy()], sample_rate=16_000.0)
    assert table.num_rows == 2
    with pytest.raises(speechssl.CheckpointError, match="nowhere does not exist"):
        speechssl.embed("nowhere", wave, sample_rate=16_000)
    with pytest.raises(speechssl.CheckpointError, match=r"`model` must be from speechssl\.load, .* but is a Linear"):
        speechssl.transcribe(torch.nn.Linear(1, 1), wave, sample_rate=16_000)  # type: ignore[call-overload]


def test_keys_and_waveforms_at_the_wrong_place_get_a_sentence(recogniser: SpeechModel) -> None:
    wave = np.zeros(8000, np.float32)
    with pytest.raises(speechssl.ConfigError, match="`layre` must be one of the keys layer, pooling, sample_rate"):
        speechssl.embed(recogniser, wave, sample_rate=16_000, layre=1)
    with pytest.raises(speechssl.ConfigError, match="`batch_s` must be a number, but is '60'"):
        speechssl.transcribe(recogniser, wave, sample_rate=16_000, batch_s="60")
    with pytest.raises(speechssl.DataError, match="`audio` must be paths where no model is given"):
        speechssl.embed(audio=[wave], checkpoint="runs/base")
    with pytest.raises(speechssl.DataError, match="`audio` must be .* but is not given"):
        speechssl.transcribe(recogniser)  # type: ignore[call-overload]


def test_a_recogniser_gives_its_logits(recogniser: SpeechModel, model: SpeechModel) -> None:
    waveforms, lengths = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)), torch.tensor([8000, 5000])
    frames = recogniser(waveforms, lengths)
    logits, num_frames = recogniser.logits(waveforms, lengths)
    assert recogniser.head is not None
    torch.testing.assert_close(frames.logits, recogniser.head(frames.last), rtol=0, atol=0)
    torch.testing.assert_close(frames.logits, logits, rtol=0, atol=0)
    assert torch.equal(frames.num_frames, num_frames)
    assert model(waveforms, lengths).logits is None


@each_case(
    "waveforms",
    [
        torch.zeros(8000),
        torch.zeros(1, 1, 8000),
        torch.zeros(1, 8000, dtype=torch.int16),
        torch.zeros(1, 8000, dtype=torch.float64),
        torch.zeros(1, 399),
        torch.zeros(0, 8000),
    ],
)
def test_a_model_says_what_it_takes(waveforms: torch.Tensor, recogniser: SpeechModel) -> None:
    with pytest.raises(speechssl.DataError, match=r"`waveforms` must be a tensor \(rows, samples\) of float32"):
        recogniser(waveforms)


@each_case("waveforms", [np.zeros((1, 8000), np.float32), [torch.zeros(8000)], None])
def test_what_is_no_tensor_gets_a_sentence(waveforms: object) -> None:
    # As a model calls it; the shape checks of the tests would be faster there.
    with pytest.raises(speechssl.DataError, match=r"such as torch\.from_numpy\(x\)\[None\], but is of type"):
        check_waveforms(waveforms, torch.zeros(1), 400)
