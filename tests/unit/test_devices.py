"""`precision=auto` asks the machine."""

from __future__ import annotations

import pytest
import torch

from speechssl import devices
from speechssl.devices import resolve_precision, use_deterministic_algorithms
from tests.cases import each_case

CPU = torch.device("cpu")


@each_case("gain, expected", [(0.5, "float32"), (1.2, "float32"), (1.8, "bf16"), (4.0, "bf16")])
def test_auto_is_bf16_where_the_cpu_multiplies_it_much_faster(
    gain: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_measure_cpu_gain", lambda: gain)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("bf16", CPU) == "bf16"


def test_the_gain_is_measured_once() -> None:
    devices._measure_cpu_gain.cache_clear()
    assert devices._measure_cpu_gain() > 0
    assert devices._measure_cpu_gain.cache_info().misses == 1
    assert devices._measure_cpu_gain() == devices._measure_cpu_gain()


def test_deterministic_algorithms_are_on_inside_only() -> None:
    with use_deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
    with use_deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
