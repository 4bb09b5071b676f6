"""What a probe sees: the first seconds of utterances, pooled once, and log-mel statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from speechssl.audio.reading import load_audio
from speechssl.config.model import ModelConfig
from speechssl.data.files import expand_audio
from speechssl.evaluation.probe_features import limit_source, pool_log_mel, pool_states, standardise
from speechssl.inference.source import Source
from speechssl.model.speech_model import SpeechModel
from tests.cases import each_case

Speech = Callable[..., np.ndarray]


@each_case("sample_rate", [16_000, 22_050])
def test_only_the_first_seconds_are_read(tmp_path: Path, speech: Speech, sample_rate: int) -> None:
    for name, seconds in (("long", 3.0), ("short", 0.8)):
        soundfile.write(tmp_path / f"{name}.flac", speech(seconds, 1, sample_rate=sample_rate), sample_rate)
    manifest = expand_audio([str(tmp_path)])
    source = limit_source(manifest, 1.0)
    assert source.lengths.tolist() == [16_000, 12_800]
    for index, length in enumerate(source.lengths):
        assert len(source.read(index)) == length
    if sample_rate == 16_000:
        np.testing.assert_array_equal(source.read(0), load_audio(tmp_path / "long.flac")[:16_000])


def test_states_are_averaged_over_frames(tiny_model_config: ModelConfig, speech: Speech) -> None:
    torch.manual_seed(0)
    model = SpeechModel(tiny_model_config).eval().requires_grad_(False)
    waveforms = [speech(1.0, 1), speech(0.7, 2)]
    pooled = pool_states(model, Source.from_arrays(waveforms, 16_000), 60.0, "float32")
    assert pooled.shape == (2, model.num_layers + 1, model.dim)
    layers = model(torch.from_numpy(waveforms[1])[None]).layers
    np.testing.assert_allclose(pooled[1], torch.stack([layer[0].mean(0) for layer in layers]).numpy(), atol=1e-5)


def test_log_mel_statistics_are_those_of_another_spectrogram(speech: Speech) -> None:
    from librosa.filters import mel

    wave = speech(1.5, 4)
    window = torch.hann_window(400)
    spectrum = torch.stft(torch.from_numpy(wave), 400, 160, window=window, center=False, return_complex=True)
    expected = np.log(mel(sr=16_000, n_fft=400, n_mels=40) @ spectrum.abs().square().numpy() + 1e-10)
    (found,) = pool_log_mel(Source.from_arrays([wave], 16_000))[:, 0]
    np.testing.assert_allclose(found[:40], expected.mean(1), atol=1e-3)
    np.testing.assert_allclose(found[40:], expected.std(1), atol=1e-3)


def test_states_scaled_alike_mix_as_they_are() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(50, 3, 4)) * np.array([1.0, 5.0, 20.0])[:, None]).astype(np.float32)
    alone, _ = standardise(features, features)
    np.testing.assert_allclose(alone.std(0), 1.0, atol=1e-3)
    alike, _ = standardise(features, features, alike=True)
    weights = np.array([0.2, 0.5, 0.3], dtype=np.float32)
    raw, mixed = np.einsum("s,nsd->nd", weights, features), np.einsum("s,nsd->nd", weights, alike)
    ratio = (raw - raw.mean(0)) / mixed
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-3)
