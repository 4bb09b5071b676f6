"""`speechssl bench`: one small run of each job, what it says, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speechssl
from speechssl.bench import meter as bench_meter
from speechssl.bench.batches import make_noise
from speechssl.bench.meter import Stopwatch, measure_ceiling, watch_parts
from speechssl.bench.table import format_table
from speechssl.cli.main import main
from speechssl.config.model import ModelConfig
from speechssl.model.transformer import Transformer
from speechssl.verbs.bench import compute_spread
from tests.cases import each_case

SMALL = {"model": "tiny", "batch": 2, "seconds": 1.0, "steps": 2, "warmup_steps": 1, "device": "cpu"}
KEYS = {
    "bench",
    "model",
    "batch",
    "seconds",
    "steps",
    "precision",
    "device",
    "device_name",
    "threads",
    "versions",
    "date",
}
FIGURES = {"audio_s_per_s", "spread_percent", "step_s", "peak_mib", "parts_s", "parts_method", "out"}
COMPUTED = {"gflop_per_audio_s", "gflop_per_s", "peak_gflop_per_s", "share_of_peak", "parameters"}


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time small products for a moment."""
    monkeypatch.setattr(bench_meter, "CEILING_SIZES", {"cpu": (128,)})
    monkeypatch.setattr(bench_meter, "CEILING_S", 0.02)


@pytest.fixture
def manifest(librispeech_tree: Path, tmp_path: Path) -> Path:
    speechssl.prepare(root=str(librispeech_tree), corpus="librispeech", out=str(tmp_path / "m"))
    return tmp_path / "m" / "train.tsv"


def run(tmp_path: Path, job: str, **keys: Any) -> dict[str, Any]:
    return speechssl.bench(job=job, out=str(tmp_path / job), **{**SMALL, **keys})


@each_case("precision", ["float32", "bf16"])
def test_pretraining_step(tmp_path: Path, precision: str) -> None:
    result = run(tmp_path, "pretrain", precision=precision)
    assert result.keys() >= KEYS | FIGURES | COMPUTED
    assert list(result["parts_s"]) == ["data", "front_end", "transformer", "loss", "optimizer", "metrics"]
    assert min(result["parts_s"].values()) >= 0
    assert list(result["transformer_s"]) == ["positions", "attention", "rest"]
    assert sum(result["transformer_s"].values()) == pytest.approx(result["parts_s"]["transformer"], rel=0.5)
    assert sum(result["parts_s"].values()) == pytest.approx(result["step_s"], rel=0.5)
    assert result["precision"] == precision
    assert result["audio_s_per_s"] > 0
    assert result["share_of_peak"] > 0
    assert result["parameters"] == 38_640
    assert json.loads((tmp_path / "pretrain" / "result.json").read_text()) == result


def test_ctc_step(tmp_path: Path) -> None:
    result = run(tmp_path, "ctc")
    assert result.keys() >= KEYS | FIGURES | COMPUTED
    assert result["parts_s"].keys() >= {"front_end", "transformer", "loss", "optimizer"}


def test_extraction(tmp_path: Path) -> None:
    result = run(tmp_path, "extract")
    assert result.keys() >= KEYS | FIGURES | COMPUTED
    assert list(result["parts_s"]) == ["data", "front_end", "transformer", "pooling"]


@each_case("num_workers", [0, 1])
def test_loading(tmp_path: Path, manifest: Path, num_workers: int) -> None:
    result = run(tmp_path, "load", data={"train": [str(manifest)], "num_workers": num_workers})
    assert result.keys() >= KEYS | FIGURES
    assert not result.keys() & COMPUTED
    assert list(result["parts_s"]) == ["data"]
    assert result["data"] == [str(manifest)]
    assert (result["worker_mib"] is not None) == (num_workers > 0)


def test_pretraining_from_a_manifest(tmp_path: Path, manifest: Path) -> None:
    result = run(tmp_path, "pretrain", data={"train": [str(manifest)], "num_workers": 0})
    assert result["parts_s"]["data"] > 0
    assert result["audio_s_per_s"] > 0


def test_the_command_ends_with_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract", "tiny", "batch=1", "seconds=0.5", "steps=1", "warmup_steps=0", "device=cpu"]
    assert main(["bench", *words, f"out={tmp_path / 'x'}"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["bench"] == "extract"
    assert "share of peak" in err


@each_case(
    "job, keys, message",
    [
        ("load", {}, "`data.train` must be given for job=load"),
        ("ctc", {"data.train": ["x.tsv"]}, "`data.train` must be left out for job=ctc"),
        ("pretrain", {"seconds": 0.2}, "`seconds` must give at least"),
        ("embed", {}, "`job` must be"),
        ("pretrain", {"steps": 0}, "`steps` must be at least 1"),
    ],
)
def test_a_mistake_leaves_nothing(tmp_path: Path, job: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(speechssl.ConfigError, match=message):
        run(tmp_path, job, **keys)
    assert not list(tmp_path.iterdir())


def test_marks_follow_the_order_of_forward_and_backward(tiny_model_config: ModelConfig) -> None:
    transformer = Transformer(tiny_model_config)
    stopwatch = Stopwatch(torch.device("cpu"))
    x = torch.randn(1, 20, 32, requires_grad=True)
    with watch_parts(transformer, stopwatch):
        stopwatch.begin()
        transformer(x * 1.0, None)[0].sum().backward()
    rest, block = "transformer", ["transformer", "transformer/attention"]
    forward = [rest, "transformer/positions", *2 * block, rest]
    backward = [*2 * block, rest, "transformer/positions", rest]
    assert [part for part, _ in stopwatch._marks[1:]] == ["front_end", *forward, "loss", *backward]
    assert not any(module._forward_hooks for module in transformer.modules())


MEASURE = """
import torch
from speechssl.bench.meter import MemoryMeter

size = 64 * 2**20
before = torch.ones(size, dtype=torch.float32)
del before
meter = MemoryMeter(torch.device("cpu"))
low = meter.read_mib()
after = torch.ones(size // 2, dtype=torch.float32)
print(meter.read_mib() - low)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the largest memory is set back in /proc")
def test_peak_memory_is_that_of_the_measured_time() -> None:
    """In a process of its own: a large one takes the memory from what it has freed."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert 100 < float(done.stdout) < 200


@each_case("precision", ["float32", "bf16"])
def test_the_ceiling_is_a_rate(precision: str) -> None:
    assert 1e7 < measure_ceiling(torch.device("cpu"), precision) < 1e15


def test_the_spread_is_that_of_the_middle_half() -> None:
    assert compute_spread([10.0, 10.0, 10.0]) == 0
    assert compute_spread([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(20.0)


def test_noise_is_a_function_of_its_generator() -> None:
    first, second = (make_noise(8000, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    assert np.abs(first).max() == pytest.approx(0.5)


def test_the_table_has_a_line_a_part(tmp_path: Path) -> None:
    table = format_table(run(tmp_path, "ctc"))
    assert "head and loss" in table
    assert "\n  attention" in table
    assert "GFLOP/s, measured" in table
