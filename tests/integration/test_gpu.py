"""What only a GPU shows; skipped without one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import speechssl
from speechssl.bench.jobs import TrainingJob, build_job
from speechssl.bench.meter import Stopwatch
from speechssl.cli.compose import compose
from speechssl.errors import StoppedOnRequest
from speechssl.training.metrics import MEASURED
from speechssl.training.stop import StopFlag

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# cuBLAS reads it at its first product, which may be of another test than the one that is deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

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


def test_a_resumed_run_is_the_uninterrupted_one(
    librispeech_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In deterministic mode, in bf16, with everything that is drawn on: weights, optimizer and log lines to the bit."""
    made = speechssl.prepare(root=str(librispeech_tree), corpus="librispeech", out=str(tmp_path / "m"))
    keys = {"model": "tiny", "data.train": made["manifests"]["train"]["path"], "device": "cuda", "precision": "bf16"}
    keys |= {"training.deterministic": True, "model.layer_drop_prob": 0.3, "training.ema_decay": 0.9}
    keys |= {"training.max_updates": 8, "training.checkpoint_every": 3}
    speechssl.pretrain(**keys, out=str(tmp_path / "whole"))
    calls = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "check", lambda _: ("stopped by the test", 75) if next(calls) == 5 else None)
        with pytest.raises(StoppedOnRequest):
            speechssl.pretrain(**keys, out=str(tmp_path / "parts"))
    speechssl.pretrain(**keys, out=str(tmp_path / "parts"))
    assert read_state(tmp_path / "parts") == read_state(tmp_path / "whole")


def test_codes_of_a_teacher_are_learned_and_tuned_and_measured(librispeech_tree: Path, tmp_path: Path) -> None:
    """The verbs of a user one after the other: MFCC clusters, those of the first network, CTC, scores, embeddings."""
    made = speechssl.prepare(root=str(librispeech_tree), corpus="librispeech", out=str(tmp_path / "m"))
    manifest = made["manifests"]["train"]["path"]
    keys = {"data.train": manifest, "device": "cuda", "training.max_updates": 3}
    codes = {"objective": "masked_codes", "objective.targets": "kmeans", "objective.num_codes": 10}
    codes |= {"model": "tiny", "model.layer_drop_prob": 0.3, "objective.unmasked_weight": 1.0}
    speechssl.pretrain(**keys, **codes, out=str(tmp_path / "first"))
    codes |= {"objective.teacher": str(tmp_path / "first"), "objective.teacher_layer": 1}
    second = speechssl.pretrain(**keys, **codes, out=str(tmp_path / "second"))
    assert second["updates"] == 3
    speechssl.finetune(init=str(tmp_path / "second"), **keys, out=str(tmp_path / "tuned"))
    for decoding in ("greedy", "beam"):
        where = {"device": "cuda", "decoding": decoding, "out": str(tmp_path / decoding)}
        assert speechssl.evaluate(checkpoint=str(tmp_path / "tuned"), **{"data.test": manifest}, **where)["wer"] > 0
    made = speechssl.embed(checkpoint=str(tmp_path / "second"), audio=manifest, out=str(tmp_path / "e.npy"))
    assert made["num_utterances"] > 0


def read_state(folder: Path) -> dict[str, object]:
    """Read the files of the last checkpoint, and the log without what the machine decides."""
    last = folder / "checkpoints" / "last"
    files = {name: (last / name).read_bytes() for name in ("model.safetensors", "ema.safetensors")}
    tensors = {name: value.tolist() for name, value in load_file(last / "training.safetensors").items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]
    return {**files, **tensors, "log": log}
