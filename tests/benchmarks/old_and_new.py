"""The steps of two checkouts in turn, in processor time: how many times as fast a preset or the code has become.

    git worktree add /tmp/old 137f17e
    taskset -c 1 python -m tests.benchmarks.old_and_new /tmp/old --turns 12 model=small batch=6 seconds=5

Processor time is what counts where other work shares the cores; it is wall time where none does. One thread each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parents[2]
JOBS, PRECISIONS = ("pretrain", "ctc"), ("bf16", "float32")


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    turns = 12
    if "--turns" in words:
        place = words.index("--turns")
        turns = int(words[place + 1])
        del words[place : place + 2]
    roots = HERE, Path(words.pop(0)).resolve()
    print("| job | precision | new, audio s a processor s | old | times as fast: median | quartiles | turns |")
    print("| --- | --- | ---: | ---: | ---: | --- | ---: |")
    with ExitStack() as opened:
        workers = [opened.enter_context(start(root, words)) for root in roots]
        for job, precision in product(JOBS, PRECISIONS):
            wanted = f"{job} {precision}\n"
            speeds = np.array([[take(worker, wanted) for worker in workers] for _ in range(turns + 1)][1:])
            low, middle, high = np.percentile(speeds[:, 0] / speeds[:, 1], [25, 50, 75])
            new, old = np.median(speeds, 0)
            cells = (job, precision, f"{new:.0f}", f"{old:.0f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}", turns)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


@contextmanager
def start(root: Path, words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process that makes steps with the code of a checkout, and end it."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--work", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=root) as worker:
        yield worker
        assert worker.stdin is not None
        worker.stdin.close()


def take(worker: subprocess.Popen[str], wanted: str) -> float:
    """Let a process make some steps: seconds of audio in a second of processor time."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(wanted)
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(words: Sequence[str]) -> None:
    """Make as many steps as there are different batches, once for each line that comes."""
    import torch

    from speechssl.bench.batches import NUM_BATCHES
    from speechssl.bench.jobs import build_job
    from speechssl.bench.meter import Stopwatch
    from speechssl.cli.compose import compose

    torch.set_num_threads(1)
    device = torch.device("cpu")
    jobs = {}
    for line in sys.stdin:
        if line not in jobs:
            job, precision = line.split()
            jobs[line] = build_job(compose("bench", [job, *words]), (device, precision))
        stopwatch = Stopwatch(device)
        start_s = time.process_time()
        stopwatch.begin()
        audio_s = sum(jobs[line].run_step(stopwatch).audio_s for _ in range(NUM_BATCHES))
        stopwatch.finish()
        print(audio_s / (time.process_time() - start_s), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2:])
    else:
        main()
