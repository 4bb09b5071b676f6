"""Length arithmetic: the published values, and agreement with convolutions that really run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from speechssl.cli.compose import compose
from speechssl.config.model import ModelConfig
from speechssl.errors import DataError
from speechssl.model.feature_encoder import FeatureEncoder
from speechssl.model.lengths import HOP_SAMPLES, check_num_samples, make_valid_mask
from speechssl.model.log_mel import LogMelEncoder

VALUES = {400: 1, 719: 1, 720: 2, 16_000: 49, 32_000: 99, 160_000: 499, 250_000: 781, 320_000: 999}


def test_published_counts_the_closed_form_and_every_kind_of_input() -> None:
    lengths = np.arange(0, 60_000)
    expected = np.where(lengths >= 400, (lengths - 400) // 320 + 1, 0)
    for front_end in ("convolutions", "log_mel"):
        config = ModelConfig(front_end=front_end)
        assert {length: config.count_frames(length) for length in VALUES} == VALUES
        assert [config.count_frames(length) for length in (0, 399)] == [0, 0]
        assert (config.count_frames(lengths) == expected).all()
        tensors = config.count_frames(torch.from_numpy(lengths))
        assert tensors.dtype == torch.int64 and (tensors.numpy() == expected).all()


def test_every_model_has_frames_of_20_or_40_ms_that_see_25_ms() -> None:
    for name in ("tiny", "base", "large", "large_lv60k", "xls_r_1b", "xls_r_2b"):
        for front_end in ("convolutions", "log_mel"):
            config = compose("pretrain", [f"model={name}", f"model.front_end={front_end}", "out=x"]).model
            assert (config.hop_samples, config.receptive_field) == (HOP_SAMPLES, 400), (name, front_end)
    for name in ("small", "medium"):
        config = compose("pretrain", [f"model={name}", "out=x"]).model
        assert (config.hop_samples, config.receptive_field) == (2 * HOP_SAMPLES, 400), name


def test_both_rates_count_what_comes_out(tiny_model_config: ModelConfig) -> None:
    """Of 200 lengths, and with padding behind them; every second frame of 50 Hz is one of 25 Hz."""
    mel = replace(tiny_model_config, front_end="log_mel", mel_channels=[4, 4, 4], mel_kernels=[5, 5, 3])
    lengths = [*range(400, 2_400, 20), *np.random.default_rng(0).integers(400, 40_000, 100).tolist()]
    for rate in (50, 25):
        config = replace(mel, frame_rate=rate)
        assert config.hop_samples == 16_000 // rate
        encoder = LogMelEncoder(config)
        for num_samples in lengths:
            found = encoder(torch.randn(1, num_samples), None)[0].shape[1]
            counted = config.count_frames(num_samples)
            assert found == counted == (num_samples - 400) // config.hop_samples + 1, (rate, num_samples)
        counts = encoder(torch.randn(2, 20_000), torch.tensor([20_000, 7_777]))[1]
        assert counts is not None and counts.tolist() == [config.count_frames(n) for n in (20_000, 7_777)]


def test_count_is_what_the_front_ends_make(tiny_model_config: ModelConfig) -> None:
    odd = replace(tiny_model_config, front_end="log_mel", mel_channels=[24, 24, 32], mel_kernels=[5, 1, 3])
    encoders = (
        FeatureEncoder(tiny_model_config),
        LogMelEncoder(replace(odd, mel_channels=[], mel_kernels=[3, 3])),
        LogMelEncoder(odd),
    )
    for num_samples in (400, 719, 720, 880, 1_039, 1_040, 4_321, 16_000, 23_999, 48_123):
        found = {encoder(torch.randn(1, num_samples), None)[0].shape for encoder in encoders}
        assert found == {(1, tiny_model_config.count_frames(num_samples), 32)}


def test_valid_mask() -> None:
    mask = make_valid_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False, False, False], [True, True, False], [True, True, True]]


def test_lengths_are_those_of_the_batch() -> None:
    for num_samples, sentence in (
        (torch.tensor([800.0, 400.0]), "must be of int64, but is of float32"),
        (torch.tensor([80, 40], dtype=torch.uint8), "must be of int64, but is of uint8"),
        (torch.tensor([800]), r"must have a length for each of 2 rows, but has the shape \(1,\)"),
        (torch.tensor([[800, 400]]), r"must have a length for each of 2 rows, but has the shape \(1, 2\)"),
        (torch.tensor([800, 801]), "must be between 0 and the 800 samples of a row, but has 801"),
        (torch.tensor([-1, 800]), "must be between 0 and the 800 samples of a row, but has -1"),
    ):
        with pytest.raises(DataError, match=f"`num_samples` {sentence}"):
            check_num_samples(torch.zeros(2, 800), num_samples)


def test_right_lengths_pass_and_values_elsewhere_are_not_waited_for() -> None:
    waveforms = torch.zeros(2, 800)
    for num_samples in (None, torch.tensor([800, 0]), torch.tensor([800, 1], dtype=torch.int32)):
        check_num_samples(waveforms, num_samples)
    check_num_samples(waveforms, torch.tensor([900, 900], device="meta"))
