"""System figures."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speechssl.training import metrics as telemetry
from speechssl.training.metrics import MEASURED, measure_system, read_resident_bytes


def test_memory_grows_with_what_is_held() -> None:
    before = read_resident_bytes()
    # Straight from the system: torch may be given memory that the process has had before.
    with mmap.mmap(-1, 64 * 2**20) as held:
        held.write(b"x" * len(held))
        assert 40 * 2**20 < read_resident_bytes() - before < 200 * 2**20
    found = measure_system(torch.device("cpu"))
    assert found.keys() == {"memory_mib"}
    assert 50 < found["memory_mib"] < 100_000  # type: ignore[operator]


def test_without_proc_the_peak_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = read_resident_bytes()
    monkeypatch.setattr(telemetry, "_STATM", Path("/nowhere"))
    assert read_resident_bytes() >= 0.9 * resident


class NVMLError(Exception):
    """As the driver's package has it."""


@pytest.mark.parametrize(("package", "can_say"), [(True, True), (True, False), (False, False)])
def test_a_gpu_says_its_memory_and_its_use_where_it_can(
    monkeypatch: pytest.MonkeyPatch, package: bool, can_say: bool
) -> None:
    def use(device: torch.device) -> int:
        if not can_say:
            raise NVMLError("not supported")
        return 73

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError) if package else None)  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(max_memory_allocated=lambda d: 3 * 2**20, utilization=use))
    found = measure_system(torch.device("cuda"))
    assert found["gpu_memory_mib"] == 3.0
    assert found.get("gpu_use") == (0.73 if can_say else None)
    assert found.keys() <= MEASURED
