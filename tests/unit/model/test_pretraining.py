"""The contrastive logits: a case by hand, removed negatives, rows with different numbers of masked frames."""

from __future__ import annotations

import torch

from speechssl.config.model import ModelConfig
from speechssl.model.pretraining import (
    PretrainingModel,
    compute_logits,
    find_masked,
    gather_frames,
    measure_features,
)
from speechssl.model.wav2vec2 import Features


def test_logits_by_hand() -> None:
    predictions = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    targets = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    codes = torch.tensor([[[0, 0], [1, 0], [2, 0]]])
    negatives = torch.tensor([[[1, 2], [0, 2], [0, 1]]])
    logits, removed = compute_logits(predictions, targets, codes, negatives, 0.1)
    root = 0.5**0.5
    expected = torch.tensor([[[10.0, 0.0, -10.0], [10.0, 0.0, 0.0], [-10 * root, 10 * root, 10 * root]]])
    torch.testing.assert_close(logits, expected)
    assert not removed.any()


def test_negatives_with_the_targets_codes_are_removed() -> None:
    codes = torch.tensor([[[4, 7], [4, 7], [4, 1]]])
    negatives = torch.tensor([[[1, 2], [0, 2], [0, 1]]])
    logits, removed = compute_logits(torch.randn(1, 3, 8), torch.randn(1, 3, 8), codes, negatives, 0.1)
    assert removed.tolist() == [[[True, False], [True, False], [False, False]]]
    assert torch.isinf(logits[0, 0, 1])
    assert torch.isfinite(logits[0, 2]).all()


def test_find_masked_gives_positions_in_order() -> None:
    mask = torch.tensor([[False, True, False, True, True], [True, False, False, False, False]])
    positions, valid = find_masked(mask, 3)
    assert positions[0].tolist() == [1, 3, 4]
    assert valid.tolist() == [[True, True, True], [True, False, False]]
    frames = torch.arange(10.0).view(1, 5, 2).expand(2, 5, 2)
    assert gather_frames(frames, positions)[0].tolist() == [[2.0, 3.0], [6.0, 7.0], [8.0, 9.0]]


def test_a_row_scores_the_same_beside_a_longer_one(tiny_model_config: ModelConfig) -> None:
    """Padding, and companions with more masked frames, leave a row's logits alone."""
    torch.manual_seed(0)
    model = PretrainingModel(tiny_model_config).eval()
    short, long = torch.randn(1, 8_000), torch.randn(1, 16_000)
    mask_short, mask_long = torch.zeros(1, 24, dtype=torch.bool), torch.zeros(1, 49, dtype=torch.bool)
    mask_short[0, 3:8], mask_long[0, 5:25] = True, True
    negatives = torch.randint(0, 5, (1, 5, 6))
    alone = model(short, None, mask_short, negatives, None, 1.0)
    for num_rows in (1, 3):
        waveforms, mask = torch.zeros(num_rows, 16_000), torch.zeros(num_rows, 49, dtype=torch.bool)
        waveforms[0, :8_000], mask[0, :24] = short[0], mask_short[0]
        waveforms[1:], mask[1:] = long, mask_long
        padded = torch.zeros(num_rows, 20, 6, dtype=torch.long)
        padded[0, :5] = negatives[0]
        samples = torch.tensor([8_000] + [16_000] * (num_rows - 1))
        batch = model(waveforms, samples, mask, padded, None, 1.0)
        torch.testing.assert_close(batch.logits[:1, :5], alone.logits, atol=1e-3, rtol=1e-4)
        assert batch.valid[0].sum() == 5
        assert batch.features.num_frames[0] == 24
        torch.testing.assert_close(batch.features.squares[:1], alone.features.squares)
        torch.testing.assert_close(batch.features.variance[:1], alone.features.variance)


def test_feature_variance_is_the_share_that_varies_over_time() -> None:
    raw = torch.randn(2, 30, 5)
    raw[1] = raw[1, :1]
    raw[1, 20:] = 7.0
    frames = torch.tensor([30, 20])
    found = measure_features(Features(raw, raw, frames))
    squares = torch.stack([raw[0].square().sum(), raw[1, :20].square().sum()])
    torch.testing.assert_close(found.squares, squares)
    assert found.num_frames.tolist() == [30, 20]
    assert found.num_channels == 5
    expected = raw[0].var(0, unbiased=False).sum() / raw[0].square().mean(0).sum()
    torch.testing.assert_close(found.variance, torch.stack([expected, torch.tensor(0.0)]), atol=1e-5, rtol=1e-4)
    whole = measure_features(Features(raw[:1], raw[:1], None))
    torch.testing.assert_close(whole.variance, found.variance[:1])
    torch.testing.assert_close(whole.squares, found.squares[:1])
    assert whole.num_frames.tolist() == [30]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(measure_features(Features(raw, raw, frames)).variance, found.variance)
