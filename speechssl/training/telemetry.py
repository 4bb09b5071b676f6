"""Figures of the machine beside those of the run: memory, and how busy a GPU is."""

from __future__ import annotations

import importlib
import os
import resource
import sys
from pathlib import Path

import torch

from speechssl.objectives.protocol import Metrics

MIB = 2**20
_STATM = Path("/proc/self/statm")


def measure_system(device: torch.device) -> Metrics:
    """Measure what costs nothing to know: some microseconds, and no wait for the GPU.

    Args:
        device: that the run computes on.

    Returns:
        `memory_mib`: resident memory of this process, loader workers apart (where there is no /proc, its peak). On a
        GPU also `gpu_memory_mib`, the peak of its tensors, and `gpu_use`, the share of the last moments in which it
        worked, where the driver's Python package (nvidia-ml-py) is installed.
    """
    found: Metrics = {"memory_mib": read_resident_bytes() / MIB}
    if device.type == "cuda":
        found["gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) / MIB
        use = _read_gpu_use(device)
        found |= {} if use is None else {"gpu_use": use}
    return found


def _read_gpu_use(device: torch.device) -> float | None:
    """Read the share of the last moments in which a GPU worked; None where nobody says, as of a part of one (MIG)."""
    try:
        driver = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (driver.NVMLError, RuntimeError):
        return None


def read_resident_bytes() -> int:
    """Read how much memory this process holds."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
