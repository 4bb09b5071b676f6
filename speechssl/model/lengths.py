"""What a frame is in samples, which positions of a batch are valid, and whether what a caller gives is a batch.

How many frames so many samples make, `ModelConfig.count_frames` says.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from speechssl.errors import DataError

HOP_SAMPLES = 320
"""Samples from one frame to the next at `model.frame_rate=50`, as in every published model: 20 ms at 16 kHz. What a
model has, `ModelConfig.hop_samples` says."""


def check_waveforms(waveforms: object, weight: Tensor, shortest: int) -> None:
    """Make sure that a batch of waveforms is one, since torch would speak of the inside of a convolution.

    Args:
        waveforms: should be (B, N) floats.
        weight: one of the model, of whose type and on whose device they must be.
        shortest: samples that one frame sees; a graph that is traced or compiled does not look at it.

    Raises:
        DataError: they are not.
    """
    must = "`waveforms` must be a tensor (rows, samples) of float32 at 16 kHz"
    if not isinstance(waveforms, Tensor):
        raise DataError(f"{must}, such as torch.from_numpy(x)[None], but is of type {type(waveforms).__name__}")
    if waveforms.ndim != 2:
        remedy = ", such as x[None]" if waveforms.ndim == 1 else ""
        raise DataError(f"{must}{remedy}, but has the shape {tuple(waveforms.shape)}")
    # Half precision is the business of autocast; twice the precision of the weights fits nothing.
    if not waveforms.is_floating_point() or (waveforms.dtype == torch.float64 != weight.dtype):
        raise DataError(f"{must}, such as x.float(), but is of {str(waveforms.dtype).removeprefix('torch.')}")
    if not torch.compiler.is_compiling() and (len(waveforms) == 0 or waveforms.shape[1] < shortest):
        raise DataError(f"{must}, of {shortest} samples or more, but has the shape {tuple(waveforms.shape)}")
    if waveforms.device != weight.device:
        raise DataError(f"`waveforms` must be on the model's device, {weight.device}, but are on {waveforms.device}")


def check_num_samples(waveforms: Tensor, num_samples: Tensor | None) -> None:
    """Make sure that lengths are those of a batch, since wrong ones would give wrong frames without a word.

    Args:
        waveforms: (B, N).
        num_samples: (B,) int64 or int32, 0 to N; None where nothing is padded. Values are looked at on the CPU only: on
            a GPU that would wait for it. A graph that is traced or compiled does not look at them either.

    Raises:
        DataError: another type, another number of rows, or a value out of range.
    """
    if num_samples is None:
        return
    if not isinstance(num_samples, Tensor):
        raise DataError(f"`num_samples` must be a tensor, but is of type {type(num_samples).__name__}")
    if num_samples.dtype not in (torch.int64, torch.int32):
        raise DataError(f"`num_samples` must be of int64, but is of {str(num_samples.dtype).removeprefix('torch.')}")
    if num_samples.shape != waveforms.shape[:1]:
        shape = tuple(num_samples.shape)
        raise DataError(
            f"`num_samples` must have a length for each of {len(waveforms)} rows, but has the shape {shape}"
        )
    if num_samples.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = num_samples[(num_samples < 0) | (num_samples > waveforms.shape[1])]
    if len(wrong):
        limit = waveforms.shape[1]
        raise DataError(f"`num_samples` must be between 0 and the {limit} samples of a row, but has {int(wrong[0])}")


def make_valid_mask(num_valid: Int[Tensor, " B"], length: int) -> Bool[Tensor, "B length"]:
    """Mark the first `num_valid[b]` of `length` positions of each row with True."""
    return torch.arange(length, device=num_valid.device)[None, :] < num_valid[:, None]
