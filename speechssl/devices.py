"""Where computation runs and in which precision."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import torch

from speechssl.config.model import ModelConfig
from speechssl.errors import ConfigError

WEIGHT_BYTES = 4
"""Of a weight, of its gradient, and of each of AdamW's two moments."""


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

    On a GPU with bf16 units it is bf16. CPUs differ by more than their flags say: with AVX-512 bf16, products ran at
    half the rate of float32 on one and at four times it on another (2026-11-24 and 25). So a CPU is asked, by a tenth
    of a second of products.

    Returns:
        `float32` or `bf16`.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if _measure_cpu_gain() > GAIN_WANTED else "float32"


GAIN_WANTED = 1.5
"""How many times as fast bf16 must multiply to be chosen: casts take some of it back, and precision has its worth."""


@cache
def _measure_cpu_gain() -> float:
    """Measure how many times as fast the CPU multiplies bf16 as float32."""
    seconds = {dtype: _time_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


@torch.no_grad()
def _time_product(dtype: torch.dtype) -> float:
    """Return the shortest of a few products of 768 × 768 matrices, in seconds; the first one warms up."""
    a = torch.ones(768, 768, dtype=dtype)
    out, times = a @ a, []
    for _ in range(5):
        start = time.perf_counter()
        torch.matmul(a, a, out=out)
        times.append(time.perf_counter() - start)
    return min(times)


def autocast(device: torch.device, precision: str, caches_casts: bool = True) -> AbstractContextManager[None]:
    """Run what is inside in `precision` (`float32` or `bf16`); norms, softmax and losses stay in float32.

    Args:
        device: where.
        precision: of matrix products.
        caches_casts: keep the bf16 copies of weights while inside: time for memory, never the result.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=caches_casts)


@contextmanager
def use_deterministic_algorithms(is_on: bool) -> Iterator[None]:
    """Run what is inside with torch's deterministic algorithms where `is_on`; an operation without one is an error.

    cuBLAS reads its setting when it is first used, so that nothing may have been multiplied on the GPU before.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if is_on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check_room(config: ModelConfig, device: torch.device) -> None:
    """Check that memory holds a network before anything of it is made; on a CPU also its gradients and moments.

    Raises:
        ConfigError: this machine has less.
    """
    need = config.num_large_weights * (WEIGHT_BYTES if device.type != "cpu" else 4 * WEIGHT_BYTES)
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > room:
        raise ConfigError(
            f"`model` must be a network that memory holds, but {config.num_layers} blocks of model.model_dim="
            f"{config.model_dim} and model.ffn_dim={config.ffn_dim} with its front-end take {need / 2**30:.0f} GiB to "
            f"train, and this machine has {room / 2**30:.0f} GiB"
        )
