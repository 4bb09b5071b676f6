"""The log-mel front-end: librosa's bands, the convolutions' frames, and rows that do not depend on their batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.inference.batches import needs_equal_lengths
from speechssl.interop.load import load_model, write_model
from speechssl.model.layers import normalize_valid
from speechssl.model.log_mel import (
    LOG_FLOOR,
    LogMelEncoder,
    compute_log_mel,
    compute_mel_power,
    make_mel_filters,
    make_window,
    transform_by_convolution,
)
from speechssl.model.masking import sample_masks, sample_negatives
from speechssl.model.pretraining import PretrainingModel
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import build_vocabulary


@pytest.fixture
def config(tiny_model_config: ModelConfig) -> ModelConfig:
    return replace(tiny_model_config, front_end="log_mel")


def test_bands_are_librosas(speech: Callable[..., np.ndarray]) -> None:
    sound = np.concatenate([speech(2.3, 3), np.zeros(4_000, np.float32)])
    for num_mels, hop, fft, min_hz in (
        (40, 160, 400, 0.0),
        (80, 160, 512, 0.0),
        (128, 160, 512, 0.0),
        (96, 80, 1024, 50.0),
    ):
        bands = compute_log_mel(sound, num_mels, hop, fft, min_hz)
        # librosa, too, centres a shorter window in the transform; without the margins its first band would start later.
        power = librosa.feature.melspectrogram(
            y=np.pad(sound, (fft - 400) // 2),
            sr=16_000,
            n_fft=fft,
            hop_length=hop,
            win_length=400,
            center=False,
            n_mels=num_mels,
            fmin=min_hz,
        )
        expected = np.log(np.maximum(power, LOG_FLOOR))
        assert bands.shape == expected.shape == (num_mels, (len(sound) - 400) // hop + 1)
        # float32 Fourier transforms differ by more than 1e-4 where a window holds next to nothing (one band of 32,384).
        np.testing.assert_allclose(bands, expected, atol=1e-4, rtol=1e-5)
        assert expected.max() - expected.min() > 15, "speech and silence are both in it"


def test_no_filter_is_empty() -> None:
    """At the largest number that the configuration takes; librosa warns of empty ones, which is an error here."""
    assert bool((make_mel_filters(128).amax(1) > 0).all())


def test_a_frame_is_centred_where_the_published_one_is(config: ModelConfig) -> None:
    """A click reaches the frames whose windows, and 20 ms beside them, hold it: frame 20 is centred on 0.4125 s."""
    encoder = LogMelEncoder(config)
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(1, 16_000)
    clicked = noise.clone()
    clicked[0, 6_600] += 1.0
    x, y = (torch.from_numpy(compute_log_mel(sound[0].numpy()))[None] for sound in (noise, clicked))
    seen = (y - x).abs().amax(1)[0].nonzero()[:, 0].tolist()
    assert seen == [39, 40, 41], "bands 160·s to 160·s + 400 around sample 6600"
    # Without the normalisation, which sees the whole utterance, by way of the convolutions.
    for conv in encoder.convs:
        x, y = torch.nn.functional.gelu(conv(x)), torch.nn.functional.gelu(conv(y))
    frames = (x - y).abs().amax(1)[0].nonzero()[:, 0].tolist()
    assert frames == [19, 20, 21]


def test_bands_are_normalised_over_their_valid_times() -> None:
    bands = 3 * torch.randn(2, 5, 40) - 7
    normed = normalize_valid(bands, torch.tensor([30, 40]), 1e-5)
    assert float(normed[0, :, 30:].abs().max()) == 0.0
    for row, count in ((0, 30), (1, 40)):
        valid = normed[row, :, :count]
        torch.testing.assert_close(valid.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(valid.var(1, correction=0), torch.ones(5), atol=1e-4, rtol=0)
    assert bool(normalize_valid(torch.full((1, 5, 1), -23.0), None, 1e-5).eq(0).all()), "one time alone has no variance"


def test_loudness_changes_nothing(config: ModelConfig, speech: Callable[..., np.ndarray]) -> None:
    encoder = LogMelEncoder(config)
    sound = torch.from_numpy(speech(1.5, 4))[None]
    torch.testing.assert_close(encoder(0.5 * sound, None)[0], encoder(sound, None)[0], atol=1e-3, rtol=1e-3)


def test_spectrum_and_logarithm_stay_in_float32_under_autocast(config: ModelConfig) -> None:
    encoder = LogMelEncoder(config)
    sound = torch.randn(1, 8_000)
    with torch.autocast("cpu", torch.bfloat16):
        power = compute_mel_power(sound, encoder.filters, encoder.window)
        features, _ = encoder(sound, None)
    assert power.dtype == torch.float32
    assert torch.equal(power, compute_mel_power(sound, encoder.filters, encoder.window))
    assert features.dtype == torch.bfloat16


def test_weights_are_those_of_the_convolutions_alone(config: ModelConfig) -> None:
    encoder = LogMelEncoder(config)
    assert set(encoder.state_dict()) == {f"convs.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")}
    assert [tuple(conv.weight.shape) for conv in encoder.convs] == [(32, 80, 3), (32, 32, 3)]


def test_the_contrastive_task_reaches_every_weight(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = PretrainingModel(config)
    rng = np.random.default_rng(0)
    num_samples = torch.tensor([16_000, 12_000])
    frames = config.count_frames(num_samples).tolist()
    masks = sample_masks(frames, config.mask, rng)
    mask = torch.zeros(2, max(frames), dtype=torch.bool)
    for row, drawn in zip(mask, masks, strict=True):
        row[: len(drawn)] = torch.from_numpy(drawn)
    count = int(masks[0].sum())
    negatives = torch.from_numpy(np.stack([sample_negatives(count, 10, rng) for _ in masks]))
    noise = torch.zeros(2, count, config.quantizer.num_groups, config.quantizer.num_codes)
    output = model(torch.randn(2, 16_000), num_samples, mask, negatives, noise, 1.0)
    assert output.features.num_channels == config.feature_dim == 32
    assert output.features.num_frames.tolist() == frames
    logits = output.logits.masked_fill(output.logits.isinf(), -1e4)
    (logits.log_softmax(-1)[..., 0].sum() + output.features.squares.sum() + output.soft_probs.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("format", ["fairseq", "torchaudio"])
def test_other_toolkits_have_no_place_for_it(config: ModelConfig, tmp_path: Path, format: str) -> None:
    model = SpeechModel(config, build_vocabulary(TextConfig(), []))
    with pytest.raises(CheckpointError, match=rf"`model\.front_end` must be convolutions for {format}.*is log_mel"):
        write_model(model, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_an_export_has_the_same_bands(speech: Callable[..., np.ndarray]) -> None:
    waveforms = torch.from_numpy(np.stack([speech(1.7, 3), speech(1.7, 4)]))
    filters, window = make_mel_filters(80), make_window()
    expected = compute_mel_power(waveforms, filters, window).clamp(min=LOG_FLOOR).log()
    found = filters @ transform_by_convolution(waveforms, window, 512, 160)
    torch.testing.assert_close(found.clamp(min=LOG_FLOOR).log(), expected, atol=1e-3, rtol=0)


def test_rows_of_any_lengths_may_share_a_batch(config: ModelConfig) -> None:
    """`group_norm_frames=all` means nothing without the norm that it speaks of."""
    for front_end, needs in (("log_mel", False), ("convolutions", True)):
        model = SpeechModel(replace(config, front_end=front_end, group_norm_frames="all"))
        assert needs_equal_lengths(model) is needs


def test_our_own_format_keeps_it(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = SpeechModel(config, build_vocabulary(TextConfig(), [])).eval()
    write_model(model, tmp_path / "out", "speechssl")
    again = load_model(str(tmp_path / "out"))
    sound = torch.randn(1, 9_000)
    assert again.config == config
    assert torch.equal(again.logits(sound)[0], model.logits(sound)[0])
    assert len(again(sound).layers) == config.num_layers + 1


def test_mistakes_are_named() -> None:
    for keys, message in (
        ({"front_end": "fbank"}, r"`model\.front_end` must be one of convolutions, log_mel"),
        ({"num_mels": 200}, r"`model\.num_mels` must be between 1 and 128"),
        ({"mel_kernels": [3, 4]}, r"`model\.mel_kernels` must be odd"),
        ({"mel_kernels": [3]}, r"`model\.mel_kernels` must be as long as model\.mel_channels \(2\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            ModelConfig(**keys)  # type: ignore[arg-type]
