"""What only a GPU shows; skipped without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speechssl
from speechssl.cli.bench_jobs import TrainingJob, build_job
from speechssl.cli.bench_meter import Stopwatch
from speechssl.cli.compose import compose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WORDS = ["pretrain", "tiny", "batch=4", "seconds=3"]


def compute_losses(device: str, precision: str, updates: int = 5) -> list[float]:
    """Train without stochastic layers, whose draws differ between devices."""
    config = compose("bench", WORDS)
    network = replace(config.model, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, input_dropout=0.0)
    config = replace(config, model=replace(network, feature_dropout=0.0, layer_drop_prob=0.0))
    job = build_job(config, (torch.device(device), precision))
    assert isinstance(job, TrainingJob)
    # Gumbel noise is drawn on the device; evaluation draws none, and gradients flow all the same.
    losses = []
    for _ in range(updates):
        job.module.eval()  # type: ignore[union-attr]
        job.run_step(Stopwatch(torch.device(device)))
        losses.append(float(job.metrics["loss"]))  # type: ignore[arg-type]
    return losses


def test_float32_losses_are_those_of_the_cpu() -> None:
    assert compute_losses("cuda", "float32") == pytest.approx(compute_losses("cpu", "float32"), rel=1e-3)


def test_bf16_losses_are_near() -> None:
    assert compute_losses("cuda", "bf16") == pytest.approx(compute_losses("cpu", "float32"), rel=0.05)


@pytest.mark.parametrize("job", ["pretrain", "ctc", "extract"])
def test_every_job_is_measured(job: str, tmp_path: Path) -> None:
    size = {"model": "tiny", "batch": 2, "seconds": 2.0, "steps": 2, "warmup_steps": 1}
    figures = speechssl.bench(job=job, device="cuda", precision="bf16", out=str(tmp_path / "bench"), **size)
    assert figures["audio_s_per_s"] > 0 and 0 < figures["share_of_peak"] < 1
