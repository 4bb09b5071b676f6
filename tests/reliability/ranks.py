"""Jobs of several processes for the tests and for a soak: start them, hit one of them, see how they end.

Stands alone: `python -m tests.reliability.ranks --help` runs the nightly sizes and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from speechssl.checkpoints.model_folder import AVERAGED
from speechssl.training.metrics import MEASURED

ROOT = Path(__file__).parents[2]

"""What differs from run to run in a line of metrics."""

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What torchrun passes on to its workers; by itself it dies of SIGUSR1."""

TIMEOUT_S = 8.0
"""`training.timeout_s` of the fault cases."""


@dataclass
class Job:
    """A torchrun job and what it has said so far.

    Attributes:
        launcher: the process of torchrun.
        out: its run folder.
        log: stdout and stderr of all processes.
    """

    launcher: subprocess.Popen[bytes]
    out: Path
    log: Path
    started: float = field(default_factory=time.monotonic)

    def read_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def read_end(self) -> str:
        """Read the end of the log, for messages: what the workers said last, then what torchrun says of it."""
        workers, mark, launcher = self.read_log().partition("torch/distributed/elastic/multiprocessing/api.py")
        return workers[-4_000:] + mark + launcher[-2_000:]

    def find_workers(self) -> dict[int, int]:
        """Find the workers that are there: rank to process id."""
        workers = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError, LookupError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent != self.launcher.pid:
                    continue
                variables = dict(
                    pair.split("=", 1) for pair in (folder / "environ").read_text().split("\0") if "=" in pair
                )
                workers[int(variables["RANK"])] = int(folder.name)
        return workers

    def wait_for_update(self, update: int, timeout_s: float = 120.0) -> None:
        """Wait until the metrics hold so many updates."""
        deadline = time.monotonic() + timeout_s
        while count_updates(self.out) < update:
            assert self.launcher.poll() is None, f"the job ended early:\n{self.read_end()}"
            assert time.monotonic() < deadline, f"no update {update} after {timeout_s:g} s:\n{self.read_end()}"
            time.sleep(0.02)

    def wait(self, timeout_s: float = 120.0) -> int:
        """Wait for torchrun and return its exit code."""
        return self.launcher.wait(timeout_s)


@contextmanager
def launch(words: Sequence[str], out: Path, num_ranks: int = 2, script: str = "-m speechssl") -> Iterator[Job]:
    """Start `torchrun … -m speechssl <words> out=<out>`; on leaving, whatever is left of it is killed."""
    log = out.parent / f"{out.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    head += ["--signals-to-handle", SIGNALS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "JAXTYPING_DISABLE": "1"}
    # A worker that aborts says where.
    environment["PYTHONFAULTHANDLER"] = "1"
    with log.open("ab") as file:
        launcher = subprocess.Popen(
            [*head, *script.split(), *words, f"out={out}"], stdout=file, stderr=file, env=environment, cwd=ROOT
        )
    job = Job(launcher, out, log)
    workers: dict[int, int] = {}
    try:
        while launcher.poll() is None and len(workers) < num_ranks:
            workers = job.find_workers()
            time.sleep(0.02)
        yield job
    finally:
        for pid in [launcher.pid, *workers.values()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.wait()


def count_updates(out: Path) -> int:
    """Count the updates that a run has logged."""
    path = out / "metrics.jsonl"
    if not path.exists():
        return 0
    return sum('"split": "train"' in line for line in path.read_text(encoding="utf-8").splitlines())


def read_trace(out: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl` without what is measured in time."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def read_state(out: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of the last checkpoint: weights, their average, optimizer, what the objective remembers."""
    last = out / "checkpoints" / "last"
    averaged = safetensors.torch.load_file(last / AVERAGED) if (last / AVERAGED).exists() else {}
    return {
        **safetensors.torch.load_file(last / "model.safetensors"),
        **{f"ema/{name}": value for name, value in averaged.items()},
        **safetensors.torch.load_file(last / "training.safetensors"),
    }


def count_differences(a: Path, b: Path) -> int:
    """Count the lines of metrics and the tensors that are not the same to the bit in two runs."""
    one, two = read_state(a), read_state(b)
    tensors = sum(name not in two or not torch.equal(one[name], two[name]) for name in one)
    first, second = read_trace(a), read_trace(b)
    lines = sum(x != y for x, y in zip(first, second, strict=False)) + abs(len(first) - len(second))
    return tensors + lines + len(two.keys() - one.keys())


def find_children(pid: int) -> list[int]:
    """Find the children of a process, such as the loader's workers of a rank."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_running(pid: int) -> bool:
    """Say whether a process is there and is not just waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: Sequence[int], timeout_s: float) -> float:
    """Wait until no process is left, and return after how many seconds that was; infinity where some stay."""
    start = time.monotonic()
    while any(is_running(pid) for pid in pids):
        if time.monotonic() - start > timeout_s:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - start


@dataclass(frozen=True)
class Fault:
    """How a job ended after one of its workers was hit.

    Attributes:
        gone_s: seconds until no process was left.
        exit_code: of torchrun.
        causes: lines of the log that name a cause.
    """

    gone_s: float
    exit_code: int
    causes: list[str]


def hit(job: Job, strike: Callable[[int], object], rank: int, update: int) -> Fault:
    """Strike one rank after an update and see how the job ends."""
    job.wait_for_update(update)
    workers = job.find_workers()
    strike(workers[rank])
    gone = wait_until_gone([job.launcher.pid, *workers.values()], TIMEOUT_S + 30.0)
    causes = [line for line in job.read_log().splitlines() if line.startswith("speechssl: ")]
    return Fault(gone, job.wait(1.0) if gone < float("inf") else 0, causes)


def kill(pid: int) -> None:
    """End a process without a word."""
    os.kill(pid, signal.SIGKILL)


def freeze(pid: int) -> None:
    """Stop a process where it stands: it hears nothing any more."""
    os.kill(pid, signal.SIGSTOP)


def run_through_kills(words: Sequence[str], out: Path, num_kills: int, updates: int, seed: int) -> int:
    """Run a job to its end, killing a random rank so many times; each time the same command starts afresh.

    Returns:
        How many launches it took.
    """
    rng = random.Random(seed)
    launches = 0
    for _ in range(num_kills):
        # Somewhere ahead of where the last checkpoint stands, but short of the end.
        with launch(words, out) as job:
            launches += 1
            done = _read_last(out)
            job.wait_for_update(rng.randint(done + 1, max(done + 1, min(done + 6, updates - 2))))
            time.sleep(rng.uniform(0.0, 0.3))
            workers = job.find_workers()
            if len(workers) == 2:
                kill(workers[rng.randrange(2)])
            job.wait(60.0)
    with launch(words, out) as job:
        launches += 1
        assert job.wait(180.0) == 0, job.read_end()
    return launches


def _read_last(out: Path) -> int:
    last = out / "checkpoints" / "last"
    return int(last.resolve().name.removeprefix("update-")) if last.exists() else 0


def main() -> None:
    """Run the nightly sizes on manifests that are there, and print a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("train", help="manifest to learn from")
    parser.add_argument("out", type=Path, help="folder for the runs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--signals", type=int, default=20)
    given = parser.parse_args()
    words = make_words(given.train, updates=1_000)
    print("| case | runs | worst | result |\n| --- | --- | --- | --- |")
    if given.faults:
        measure_faults("kill -9 one of two", kill, 5.0, given.faults, words, given.out / "kill")
        measure_faults("SIGSTOP one of two", freeze, TIMEOUT_S + 5.0, given.faults, words, given.out / "stop")
    if given.signals:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            measure_stops(number, given.signals, words, given.out / signal.Signals(number).name)
    if given.kills:
        measure_relaunches(given.kills, given.train, given.out)


def measure_faults(
    name: str,
    strike: Callable[[int], object],
    limit_s: float,
    runs: int,
    words: Sequence[str],
    out: Path,
) -> None:
    """D1: strike one rank of so many jobs, and print a row."""
    faults = []
    for number in range(runs):
        with launch(words, out / str(number)) as job:
            faults.append(hit(job, strike, rank=number % 2, update=3 + number))
    worst = max(fault.gone_s for fault in faults)
    named = sum(len(fault.causes) == 1 and "rank " in fault.causes[0] for fault in faults)
    bad = sum(fault.exit_code != 0 for fault in faults)
    print(f"| D1 {name} | {runs} | gone after {worst:.1f} s (limit {limit_s:g}) | {bad} non-zero, {named} named once |")


def measure_stops(number: int, runs: int, words: Sequence[str], out: Path) -> None:
    """R5: send a signal to the launcher, or to one worker, in turn; each must leave a checkpoint of its last update."""
    worst, saved = 0.0, 0
    for run in range(runs):
        with launch(words, out / str(run)) as job:
            job.wait_for_update(2 + run % 5)
            workers = job.find_workers()
            os.kill([job.launcher.pid, *workers.values()][run % 3], number)
            worst = max(worst, wait_until_gone([job.launcher.pid, *workers.values()], 40.0))
        saved += _read_last(out / str(run)) == count_updates(out / str(run))
    print(f"| R5 {signal.Signals(number).name} | {runs} | gone after {worst:.1f} s (limit 10) | {saved} saved |")


def measure_relaunches(kills: int, train: str, out: Path) -> None:
    """D2: kill so often, launch again each time, and compare with a run that nobody touched."""
    updates = 20 + 7 * kills  # each attempt comes at most six updates further
    words = make_words(train, updates)
    with launch(words, out / "whole") as job:
        assert job.wait(300.0) == 0, job.read_end()
    launches = run_through_kills(words, out / "parts", kills, updates, seed=1)
    differing = count_differences(out / "whole", out / "parts")
    print(f"| D2 kill -9 and launch again | {kills} | {launches} launches | {differing} differences |")


def make_words(train: str, updates: int, valid: str = "", **keys: Any) -> list[str]:
    """Make the command line of a small pretraining run with everything random on."""
    given = {
        "model": "tiny",
        "data.train": train,
        "data.num_workers": 1,
        "device": "cpu",
        "precision": "float32",
        "model.layer_drop_prob": 0.3,
        "training.update_s": 16,
        "training.sub_batch_s": 8,
        "training.forward_s": 8,
        "training.max_updates": updates,
        "training.checkpoint_every": 3,
        "training.validate_every": 1000,
        "training.digest_every": 5,
        "training.timeout_s": TIMEOUT_S,
    } | ({"data.valid": valid} if valid else {})
    return ["pretrain", *(f"{key}={value}" for key, value in (given | keys).items())]


if __name__ == "__main__":
    main()
