"""The steps of two checkouts in turn, in processor time: how many times as fast a preset or the code has become.

    git worktree add /tmp/old 137f17e
    taskset -c 1 python -m tests.benchmarks.old_and_new /tmp/old --turns 12 model=small batch=6 seconds=5 precision=float32

Processor time is what counts where other work shares the cores; it is wall time where none does. One thread each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

HERE = Path(__file__).resolve().parents[2]
JOBS = ("pretrain", "ctc")


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    turns = int(words.pop(words.index("--turns") + 1)) if "--turns" in words else 12
    words = [word for word in words if word != "--turns"]
    old = Path(words.pop(0)).resolve()
    print("| job | new, audio s a processor s | old | times as fast: median | quartiles | turns |")
    print("| --- | ---: | ---: | ---: | --- | ---: |")
    for job in JOBS:
        workers = [start(root, [job, *words]) for root in (HERE, old)]
        speeds = np.array([[take(worker) for worker in workers] for _ in range(turns + 1)][1:])
        for worker in workers:
            worker.kill()
            worker.communicate()
        low, middle, high = np.percentile(speeds[:, 0] / speeds[:, 1], [25, 50, 75])
        new_speed, old_speed = (median(column) for column in speeds.T)
        cells = (job, f"{new_speed:.0f}", f"{old_speed:.0f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}", turns)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def start(root: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    """Start a process that makes steps with the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--work", *words]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )


def take(worker: subprocess.Popen[str]) -> float:
    """Let a process make some steps: seconds of audio in a second of processor time."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(words: Sequence[str]) -> None:
    """Make as many steps as there are different batches, once for each line that comes."""
    import torch

    from speechssl.bench.batches import NUM_BATCHES
    from speechssl.bench.jobs import build_job
    from speechssl.bench.meter import Stopwatch
    from speechssl.cli.compose import compose
    from speechssl.devices import resolve_precision

    torch.set_num_threads(1)
    config, device = compose("bench", list(words)), torch.device("cpu")
    job = build_job(config, (device, resolve_precision(config.precision, device)))
    stopwatch = Stopwatch(device)
    for _ in sys.stdin:
        start_s = time.process_time()
        stopwatch.begin()
        audio_s = sum(job.run_step(stopwatch).audio_s for _ in range(NUM_BATCHES))
        stopwatch.finish()
        print(audio_s / (time.process_time() - start_s), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2:])
    else:
        main()
