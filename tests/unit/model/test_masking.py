"""Masks and negatives: the reference's statistics, and what must never happen."""

from __future__ import annotations

import numpy as np
import pytest

from speechssl.config.model import MaskConfig
from speechssl.model.masking import (
    compute_min_frames,
    equalise_masks,
    sample_channel_masks,
    sample_masks,
    sample_negatives,
    sample_span_mask,
)


def share(prob: float, num_frames: int, rows: int = 1_000) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([sample_span_mask(num_frames, prob, 10, 2, rng).mean() for _ in range(rows)]))


def test_masked_share_is_the_references() -> None:
    for prob, num_frames, expected in ((0.65, 781, 0.49), (0.75, 781, 0.54), (0.5, 781, 0.40), (0.65, 99, 0.495)):
        tolerance = 0.015 if num_frames < 100 else 0.01
        assert share(prob, num_frames) == pytest.approx(expected, abs=tolerance), (prob, num_frames)


def test_spread_and_runs_are_the_references() -> None:
    """Standard deviation 2.3 % and mean run of 14.7 frames at the reference's settings (paper, appendix A)."""
    rng = np.random.default_rng(1)
    masks = [sample_span_mask(781, 0.65, 10, 2, rng) for _ in range(500)]
    assert np.std([mask.mean() for mask in masks]) == pytest.approx(0.023, abs=0.003)
    edges = [np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]]))) for mask in masks]
    runs = np.concatenate([edge[1::2] - edge[::2] for edge in edges])
    assert runs.mean() == pytest.approx(14.7, abs=0.5)
    assert runs.min() >= 10


def test_last_frame_is_never_masked_and_short_rows_keep_an_unmasked_frame() -> None:
    rng = np.random.default_rng(2)
    for num_frames in range(3, 60):
        for _ in range(20):
            mask = sample_span_mask(num_frames, 0.65, 10, 2, rng)
            assert not mask[-1]
            assert 1 <= mask.sum() < num_frames


def test_rounding_is_drawn_for_each_row() -> None:
    """3.25 spans on average: three and four both come up, three times as often the first."""
    rng = np.random.default_rng(3)
    starts = [int(np.ceil(sample_span_mask(5_000, 0.00065, 1, 0, rng).sum())) for _ in range(2_000)]
    assert set(starts) == {3, 4}
    assert np.mean(starts) == pytest.approx(3.25, abs=0.05)


def test_equalised_rows_have_the_fewest_count_and_stay_within_their_mask() -> None:
    rng = np.random.default_rng(4)
    masks = [sample_span_mask(size, 0.65, 10, 2, rng) for size in (100, 300, 200)]
    equal = equalise_masks(masks, rng)
    assert {int(mask.sum()) for mask in equal} == {min(int(mask.sum()) for mask in masks)}
    assert all(not (after & ~before).any() for after, before in zip(equal, masks, strict=True))


def test_masks_are_a_function_of_the_generator() -> None:
    config = MaskConfig(equalise=False)
    first, second, other = (sample_masks([50, 80], config, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_channel_coverage_is_the_references() -> None:
    for prob, expected in ((0.25, 0.23), (0.5, 0.40), (0.1, 0.10)):
        masks = sample_channel_masks(400, 768, MaskConfig(channel_prob=prob), np.random.default_rng(7))
        assert masks.shape == (400, 768)
        assert masks.mean() == pytest.approx(expected, abs=0.015)


def test_negatives_are_never_the_frame_itself_and_cover_all_others() -> None:
    negatives = sample_negatives(7, 2_000, np.random.default_rng(8))
    assert negatives.shape == (7, 2_000)
    for position, row in enumerate(negatives):
        assert set(row.tolist()) == set(range(7)) - {position}
        assert np.bincount(row, minlength=7).max() == pytest.approx(2_000 / 6, rel=0.2)


def test_least_frames_hold_the_least_spans() -> None:
    assert compute_min_frames(MaskConfig()) == 21
