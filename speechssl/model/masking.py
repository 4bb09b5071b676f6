"""Which frames are masked, and which other masked frames serve as negatives.

Everything here is drawn with NumPy from a generator that the caller keys by (seed, stream, sub-batch), so a mask
is a function of its place in the run. Follows fairseq's `compute_mask_indices` (its current version) and
`sample_negatives`; wav2vec 2.0 §3.1, §3.2 and appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from speechssl.config.model import MaskConfig

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def sample_span_mask(size: int, prob: float, length: int, min_spans: int, rng: np.random.Generator) -> BoolArray:
    """Mask spans of one row: distinct random starts, spans may overlap, the last frame stays unmasked.

    Args:
        size: valid frames of the row.
        prob: span length × the probability that a frame starts a span. The share that ends up masked is lower,
            since spans overlap: 0.65 with spans of 10 masks 49 % of 15.6 s.
        length: frames in a span; shortened where the row has no room for it.
        min_spans: least number of spans.
        rng: source of the draws.

    Returns:
        Shape (size,), True where masked.

    The number of spans is rounded up or down at random, so that its mean is exact for short rows too.
    """
    mask = np.zeros(size, dtype=np.bool_)
    num_spans = max(int(prob * size / length + rng.random()), min_spans)
    if num_spans == 0 or size < 2:
        return mask
    num_spans = min(num_spans, size - 2) or 1
    if size - length <= num_spans:
        length = max(size - num_spans - 1, 1)
    starts = rng.choice(size - length, num_spans, replace=False)
    covered = (starts[:, None] + np.arange(length)[None, :]).ravel()
    mask[covered] = True
    return mask


def equalise_masks(masks: Sequence[BoolArray], rng: np.random.Generator) -> list[BoolArray]:
    """Unmask random frames of each row until all rows have as many masked frames as the row with the fewest.

    This punches holes into spans, as the reference does (fairseq's `require_same_masks`).
    """
    target = min(int(mask.sum()) for mask in masks)
    equal = []
    for mask in masks:
        masked = np.flatnonzero(mask)
        kept = np.zeros_like(mask)
        kept[rng.choice(masked, target, replace=False)] = True
        equal.append(kept)
    return equal


def sample_masks(num_frames: Sequence[int], config: MaskConfig, rng: np.random.Generator) -> list[BoolArray]:
    """Draw the time mask of each row of one sub-batch.

    Args:
        num_frames: valid frames of each row.
        config: probability, span length, least spans, and whether rows are equalised.
        rng: source of the draws.

    Returns:
        For each row an array of its own length, True where masked.
    """
    masks = [sample_span_mask(size, config.prob, config.length, config.min_spans, rng) for size in num_frames]
    return equalise_masks(masks, rng) if config.equalise else masks


def sample_channel_masks(num_rows: int, dim: int, config: MaskConfig, rng: np.random.Generator) -> BoolArray:
    """Draw spans of channels that are set to zero at every frame of a row: shape (num_rows, dim), True where zero."""
    length = min(config.channel_length, max(dim // 2, 1))
    rows = [sample_span_mask(dim, config.channel_prob, length, 0, rng) for _ in range(num_rows)]
    return np.stack(rows)


def sample_negatives(num_masked: int, num_negatives: int, rng: np.random.Generator) -> IntArray:
    """Draw negatives for each masked frame of one row, uniformly from the row's other masked frames.

    Args:
        num_masked: masked frames M of the row, at least 2.
        num_negatives: negatives K for each, with replacement.
        rng: source of the draws.

    Returns:
        Shape (M, K): indices among the row's M masked frames, never the frame's own.
    """
    assert num_masked >= 2, f"a row with {num_masked} masked frames has no negatives"
    drawn = rng.integers(0, num_masked - 1, size=(num_masked, num_negatives), dtype=np.int64)
    return drawn + (drawn >= np.arange(num_masked)[:, None])


def compute_min_frames(config: MaskConfig) -> int:
    """Count the frames a row needs so that its least number of spans fits beside an unmasked frame."""
    return max(config.min_spans, 1) * config.length + 1
