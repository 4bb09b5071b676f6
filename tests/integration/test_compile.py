"""`torch.compile(fullgraph=True)` of the three steps, on the CPU: no graph break, and the results of eager mode."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.unhooked import run_unhooked

CASES = Path(__file__).with_name("compile_cases.py")


@pytest.mark.slow
def test_the_three_steps_are_one_graph_each() -> None:
    run_unhooked(CASES)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
def test_the_three_steps_run_in_inductor() -> None:
    run_unhooked(CASES, "slow")
