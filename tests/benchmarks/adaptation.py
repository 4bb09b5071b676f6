"""The fine-tuning step of `adapt=all`, `lora` and `adapters`: processor time, peak memory, size of a checkpoint.

    python -m tests.benchmarks.adaptation model=base batch=2 seconds=3 steps=3

Each way has a process of its own; the frozen weights are random, which costs the same. The encoder's convolutions get
no gradient in either way.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from speechssl.bench.batches import make_batches
from speechssl.bench.jobs import TrainingJob
from speechssl.bench.meter import Stopwatch
from speechssl.checkpoints.model_folder import collect_weights
from speechssl.cli.compose import compose
from speechssl.config.adaptation import ADAPTER_DIM, Adaptation, LoRAConfig
from speechssl.config.data import TextConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import BenchConfig
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.ctc import CTCObjective
from speechssl.text.vocabulary import build_vocabulary
from speechssl.training.optim import export_state
from speechssl.training.run import seed_weights

WAYS = ("all", "lora", "adapters")


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    way = words.pop(0) if words and words[0] in WAYS else ""
    if way:
        print(measure(compose("bench", ["ctc", *words]), way))
        return
    print("| adapt | weights that learn | processor s a step | peak memory | checkpoint |")
    print("| --- | --- | --- | --- | --- |")
    for each in WAYS:
        command = [sys.executable, "-m", "tests.benchmarks.adaptation", each, *words]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(), flush=True)


def measure(config: BenchConfig, way: str) -> str:
    """Make steps, and give a row of the table."""
    network = replace(config.model, adapter_dim=ADAPTER_DIM * (way == "adapters"), feature_gradient_scale=0.0)
    seed_weights(config.seed)
    model = SpeechModel(network, build_vocabulary(TextConfig(), ()))
    if way != "all":
        model.adapt(Adaptation(adapt=way, init="random", lora=LoRAConfig()))
    else:
        model.backbone.encoder.requires_grad_(False)
    objective = CTCObjective(model, config.seed)
    batches = make_batches(replace(config, model=network), objective.make_collate(), whole=True)
    device = (torch.device("cpu"), "float32")
    job = TrainingJob(objective, batches, TrainingConfig(), device, config.seed, lambda _: 0.0)
    seconds = []
    for _ in range(1 + config.steps):
        start = time.process_time()
        job.run_step(Stopwatch(device[0]))
        seconds.append(time.process_time() - start)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = learning / sum(p.numel() for p in model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    held = [*collect_weights(model).values(), *export_state(job.optimizer, model).values()]
    size = sum(value.nbytes for value in held) / 2**20
    return f"| `{way}` | {learning:,} ({share:.2%}) | {min(seconds[1:]):.2f} | {peak:.2f} GiB | {size:.1f} MiB |"


if __name__ == "__main__":
    main()
