"""What the weights of Hugging Face's two Conformers have and ours have not, and the other way round."""

from __future__ import annotations

import torch
from torch import Tensor

from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError

UNUSED = "encoder.pos_conv_embed."
"""A positional convolution that wav2vec 2.0 Conformer has the weights of, and never runs."""

_ANGLES = "encoder.embed_positions.inv_freq"
_POINTWISE = ("conv_module.pointwise_conv1.weight", "conv_module.pointwise_conv2.weight")
"""Linear layers that are convolutions of kernel 1 there."""


def clean_weights(source: dict[str, Tensor], where: str, key: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Leave out what a Conformer's network does not compute with, and bring the others to the shapes of ours.

    Args:
        source: by the names in the file.

    Returns:
        The weights, and what a user should know of those left behind.

    Raises:
        CheckpointError: the angles of rotary positions are others than the published ones.
    """
    for name in source:
        # Half precision keeps two digits of them at least.
        if name.endswith(_ANGLES) and not _are_angles(source[name]):
            raise CheckpointError(f"`{key}` must have powers of 10,000 as {name}, but {where} has others")
    kept = {
        name: value.squeeze(-1) if name.endswith(_POINTWISE) else value
        for name, value in source.items()
        if UNUSED not in name and not name.endswith(_ANGLES)
    }
    is_there = any(UNUSED in name for name in source)
    return kept, (f"{UNUSED}* (never used there)",) if is_there else ()


def dress_weights(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Bring weights to the shapes that they have there, and add what `clean_weights` leaves out."""
    dressed = {name: value[..., None] if name.endswith(_POINTWISE) else value for name, value in weights.items()}
    if config.positions == "rotary_input" and config.front_end == "convolutions":
        dressed[_ANGLES] = _make_angles(config.head_dim)
    if config.block_norm == "batch":
        dim, kernel, groups = config.model_dim, config.position_kernel, config.position_groups
        parts = {"original0": torch.zeros(1, 1, kernel), "original1": torch.ones(dim, dim // groups, kernel)}
        dressed |= {f"{UNUSED}conv.parametrizations.weight.{name}": value for name, value in parts.items()}
        dressed[f"{UNUSED}conv.bias"] = torch.zeros(dim)
    return dressed


def _are_angles(value: Tensor) -> bool:
    return torch.allclose(value.flatten(), _make_angles(2 * value.numel()), rtol=1e-2, atol=0.0)


def _make_angles(dim: int) -> Tensor:
    return 1.0 / 10_000.0 ** (torch.arange(0, dim, 2) / dim)
