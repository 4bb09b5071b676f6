"""Tensors that are spread over processes: whole for a checkpoint, and spread again when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def gather_whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put tensors together that are spread over processes; every rank must call it.

    One tensor at a time is whole on the device; rank 0 keeps it on the CPU, the others keep nothing of it.

    Returns:
        Contiguous tensors by name; those that are not spread as they were, those that are on rank 0 only.
    """
    whole = {}
    for name, value in tensors.items():
        if not is_spread(value):
            whole[name] = value.contiguous()
            continue
        full = value.full_tensor()
        if dist.get_rank() == 0:
            whole[name] = full.cpu().contiguous()
    return whole


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """Move a whole tensor, which every rank holds, to where `like` is; where that is spread, keep this rank's part."""
    if not is_spread(like):
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def find_local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Give the part of each tensor that this process holds, in place: for what is done number by number."""
    return [value.to_local() if is_spread(value) else value for value in tensors]


def is_spread(value: Tensor) -> TypeGuard[DTensor]:
    """Say whether a tensor is spread over processes."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
