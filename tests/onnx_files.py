"""ONNX files made by hand: the exporter takes seconds, and refuses what a stranger's file may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def write_identity(path: Path, facts: dict[str, str], weight: Any = None) -> None:
    """Write a graph that gives what comes in, or adds a weight to it, with metadata."""
    onnx = pytest.importorskip("onnx", reason="the extra `onnx`")
    pytest.importorskip("onnxruntime", reason="the extra `onnx`")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Add" if weight else "Identity", ["waveforms", *["w"][: weight is not None]], ["logits"])
    ends = [helper.make_tensor_value_info(name, kind, ["batch", "samples"]) for name in ("waveforms", "logits")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], initializer=[weight] if weight else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
