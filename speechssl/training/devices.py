"""Where computation runs and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from speechssl.errors import ConfigError


def resolve_device(device: str) -> torch.device:
    """Find the device that `device=` names.

    Args:
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: it is not one of these, or there is no such GPU.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, _, index = device.partition(":")
    if name not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(f"`device` must be auto, cpu, cuda or cuda:N, but is {device!r}")
    if name == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"`device` must be a GPU that is there, but is {device!r} of {torch.cuda.device_count()}")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Choose the precision of matrix products that `precision=auto` stands for.

    On a GPU with bf16 units, and on CPUs with AMX, bf16 multiplies several times faster than float32. CPUs with
    AVX-512 bf16 but without AMX were slower in it (140 against 250 GFLOP/s, 2 cores, 2026-11-23), so they get float32.

    Returns:
        `float32` or `bf16`.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "float32"


def autocast(device: torch.device, precision: str, caches_casts: bool = True) -> AbstractContextManager[None]:
    """Run what is inside in `precision` (`float32` or `bf16`); norms, softmax and losses stay in float32.

    Args:
        device: where.
        precision: of matrix products.
        caches_casts: keep the bf16 copies of weights while inside: time for memory, never the result.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=caches_casts)
