"""All length arithmetic: from samples to frames and back, and masks of valid positions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from speechssl.model_config import MEL_GRID_KERNELS, MEL_GRID_STRIDES

HOP_SAMPLES = 320
"""Samples from one frame to the next: 20 ms at 16 kHz. Every model of the package has this hop."""

MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES = MEL_GRID_KERNELS[0], MEL_GRID_STRIDES[0]
"""Samples that a log-mel band sees (25 ms), and from one to the next (10 ms)."""

Count = TypeVar("Count", int, np.ndarray, Tensor)


def compute_num_frames(num_samples: Count, kernels: Sequence[int], strides: Sequence[int]) -> Count:
    """Count the frames that a stack of unpadded convolutions makes of so many samples.

    Args:
        num_samples: samples at 16 kHz, any shape.
        kernels: kernel of each convolution.
        strides: stride of each convolution.

    Returns:
        Frames, in the type and shape of `num_samples`; 0 where a signal is shorter than the receptive field.
        For the published stack that is `floor((N - 400) / 320) + 1`.

    Source: wav2vec 2.0 §4.2; `floor((n - k) / s + 1)` for each layer.
    """
    length = num_samples
    for kernel, stride in zip(kernels, strides, strict=True):
        length = (length - kernel) // stride + 1
    if isinstance(length, int):
        return max(length, 0)
    if isinstance(length, np.ndarray):
        frames: np.ndarray = np.maximum(length, 0)
        return frames
    return length.clamp(min=0)


def compute_receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Count the samples that one frame sees (400 for the published stack, 25 ms)."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def compute_hop(strides: Sequence[int]) -> int:
    """Count the samples between the starts of two frames: the product of the strides."""
    return prod(strides)


def make_valid_mask(num_valid: Int[Tensor, " B"], length: int) -> Bool[Tensor, "B length"]:
    """Mark the first `num_valid[b]` of `length` positions of each row with True."""
    return torch.arange(length, device=num_valid.device)[None, :] < num_valid[:, None]
