"""Length arithmetic: the published values, and agreement with convolutions that really run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.cli.compose import compose
from speechssl.config.model import ModelConfig
from speechssl.errors import DataError
from speechssl.model.feature_encoder import FeatureEncoder
from speechssl.model.lengths import (
    HOP_SAMPLES,
    check_num_samples,
    compute_hop,
    compute_num_frames,
    compute_receptive_field,
    make_valid_mask,
)

PUBLISHED = ModelConfig()
VALUES = {400: 1, 719: 1, 720: 2, 16_000: 49, 32_000: 99, 160_000: 499, 250_000: 781, 320_000: 999}


@pytest.mark.parametrize(("num_samples", "num_frames"), VALUES.items())
def test_published_stack_gives_the_published_counts(num_samples: int, num_frames: int) -> None:
    assert compute_num_frames(num_samples, PUBLISHED.conv_kernels, PUBLISHED.conv_strides) == num_frames


def test_closed_form_and_every_kind_of_input() -> None:
    lengths = np.arange(0, 4_000)
    counts = compute_num_frames(lengths, PUBLISHED.conv_kernels, PUBLISHED.conv_strides)
    expected = np.where(lengths >= 400, (lengths - 400) // 320 + 1, 0)
    assert (counts == expected).all()
    tensors = compute_num_frames(torch.from_numpy(lengths), PUBLISHED.conv_kernels, PUBLISHED.conv_strides)
    assert (tensors.numpy() == expected).all()
    assert [compute_num_frames(int(n), PUBLISHED.conv_kernels, PUBLISHED.conv_strides) for n in (0, 399)] == [0, 0]


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large", "large_lv60k", "xls_r_1b", "xls_r_2b"])
def test_every_model_has_frames_of_20_ms_that_see_25_ms(name: str) -> None:
    model = compose("pretrain", [f"model={name}", "out=x"]).model
    assert compute_hop(model.conv_strides) == HOP_SAMPLES
    assert compute_receptive_field(model.conv_kernels, model.conv_strides) == 400


@pytest.mark.parametrize("num_samples", [400, 719, 720, 4_321])
def test_count_is_what_the_convolutions_make(tiny_model_config: ModelConfig, num_samples: int) -> None:
    encoder = FeatureEncoder(tiny_model_config)
    frames, _ = encoder(torch.randn(1, num_samples), None)
    assert frames.shape[1] == compute_num_frames(num_samples, encoder.kernels, encoder.strides)


def test_valid_mask() -> None:
    mask = make_valid_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize(
    ("num_samples", "sentence"),
    [
        (torch.tensor([800.0, 400.0]), "must be of int64, but is of float32"),
        (torch.tensor([80, 40], dtype=torch.uint8), "must be of int64, but is of uint8"),
        (torch.tensor([800]), r"must have a length for each of 2 rows, but has the shape \(1,\)"),
        (torch.tensor([[800, 400]]), r"must have a length for each of 2 rows, but has the shape \(1, 2\)"),
        (torch.tensor([800, 801]), "must be between 0 and the 800 samples of a row, but has 801"),
        (torch.tensor([-1, 800]), "must be between 0 and the 800 samples of a row, but has -1"),
    ],
)
def test_lengths_are_those_of_the_batch(num_samples: torch.Tensor, sentence: str) -> None:
    with pytest.raises(DataError, match=f"`num_samples` {sentence}"):
        check_num_samples(torch.zeros(2, 800), num_samples)


def test_right_lengths_pass_and_values_elsewhere_are_not_waited_for() -> None:
    waveforms = torch.zeros(2, 800)
    for num_samples in (None, torch.tensor([800, 0]), torch.tensor([800, 1], dtype=torch.int32)):
        check_num_samples(waveforms, num_samples)
    check_num_samples(waveforms, torch.tensor([900, 900], device="meta"))
