"""Exports for serving give what PyTorch gives: onnxruntime and `torch.export`, any length and batch in one session."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.unhooked import run_unhooked

CASES = Path(__file__).with_name("serving_cases.py")

needs_onnx = pytest.mark.skipif(
    None in (find_spec("onnxscript"), find_spec("onnxruntime")), reason="needs onnx, onnxscript and onnxruntime"
)


@needs_onnx
@pytest.mark.slow
def test_a_converted_recogniser() -> None:
    run_unhooked(CASES)


@needs_onnx
@pytest.mark.slow
def test_every_network_and_output() -> None:
    run_unhooked(CASES, "slow")
