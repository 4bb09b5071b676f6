"""The proof, one function a target: each returns its figures. Tests call them at a small size, `tools/soak` at full."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from speechssl.checkpoints.saver import Saver
from speechssl.checkpoints.snapshot import Progress
from speechssl.checkpoints.store import CheckpointStore
from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.training import TrainingConfig
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.optim import build_optimizer
from speechssl.training.resume import TrainingState
from tests.reliability.harness import (
    CRASH_POINTS,
    ROOT,
    ForkServer,
    Run,
    find_differences,
    is_over,
    list_leftovers,
    list_unreadable,
    make_random,
    read_outcome,
)

Figures = dict[str, Any]


def repeat_runs(
    server: ForkServer, manifests: Path, out: Path, updates: int, workers_of: Sequence[int] = (0, 0, 2, 2, 4)
) -> Figures:
    """R1 and R7: the same seed twice, with 0, 2 and 4 workers."""
    outcomes = []
    for number, workers in enumerate(workers_of):
        keys = {"training.max_updates": updates, "data.num_workers": workers}
        outcomes.append(read_outcome(finish(Run(server, manifests, out / f"repeat-{number}", keys))))
    differing = {name for outcome in outcomes for name in find_differences(outcomes[0], outcome)}
    return {"updates": updates, "runs": len(outcomes), "differing": sorted(differing)}


def stop_everywhere(server: ForkServer, manifests: Path, out: Path, updates: int, stride: int = 1) -> Figures:
    """R2: stop wherever the trainer looks whether it should, and go on; also twice in one epoch.

    It looks before each forward and before each batch of a validation: so at every update, inside its accumulation,
    at the end of an epoch, and inside a validation.
    """
    keys = {"training.max_updates": updates, "data.num_workers": 0}
    whole = read_outcome(finish(Run(server, manifests, out / "whole", keys)))
    differing: set[str] = set()
    stops, look = 0, 1
    while True:
        run = Run(server, manifests, out / f"stop-{look}", keys)
        code = run.finish(look)
        if code == 0:
            break
        assert code == 75, run.log.read_text()[-2000:]
        # The second stop comes soon after: in the same epoch, and often in the same update.
        stops += 1 + (run.finish(3) == 75)
        differing |= set(find_differences(whole, read_outcome(finish(run))))
        look += stride
    return {"updates": updates, "stops": stops, "differing": sorted(differing)}


def kill_at_random(server: ForkServer, manifests: Path, out: Path, kills: int, seed: str = "R3") -> Figures:
    """R3: SIGKILL at random updates, and at random points of a save, until so many have hit; then compare."""
    whole = Run(server, manifests, out / "whole")
    finish(whole)
    expected, rng = read_outcome(whole), make_random(seed)
    totals: Figures = {"kills": 0, "in_save": 0, "runs": 0, "unreadable": 0, "lost": 0, "differing": set()}
    while totals["kills"] < kills:
        run = Run(server, manifests, out / f"killed-{totals['runs']}")
        while not is_finished(run):
            if totals["kills"] >= kills:
                finish(run)
                break
            kill_once(run, rng, totals)
            seen = {f"log/{record['update']}/{record['split']}": record for record in run.read_metrics()}
            totals["differing"] |= {name for name, record in seen.items() if expected[name] != record}
            totals["unreadable"] += len(list_unreadable(run))
        totals["differing"] |= set(find_differences(expected, read_outcome(run)))
        totals["runs"] += 1
    return {**totals, "differing": sorted(totals["differing"])}


def kill_once(run: Run, rng: Any, totals: Figures) -> None:
    """Start the command and kill it: every third time at a point of a save, else some updates on."""
    before = run.read_update()
    if rng.random() < 0.35:
        point = rng.choice(CRASH_POINTS)
        code = run.finish(SPEECHSSL_CRASH_AT=f"{point}:{rng.choice((1, 2))}")
        totals["in_save"] += code == -signal.SIGKILL
    else:
        pid = run.start()
        if run.wait_for_update(pid, before + rng.randint(1, 6)):
            time.sleep(rng.random() * 0.05)
            os.kill(pid, signal.SIGKILL)
        code = run.wait(pid)
    assert code in (0, -signal.SIGKILL), run.log.read_text()[-2000:]
    totals["kills"] += code == -signal.SIGKILL
    totals["lost"] = max(totals["lost"], before - run.find_resumed())


def crash_at_points(server: ForkServer, manifests: Path, out: Path) -> Figures:
    """R8: die once at each named point of a save; the same command then goes on, leaves nothing, and ends the same."""
    expected = read_outcome(finish(Run(server, manifests, out / "whole")))
    reached, unreadable, leftovers, differing = [], 0, 0, set()
    for point in CRASH_POINTS:
        run = Run(server, manifests, out / f"point-{point}")
        # The third save is one that rotates; the first that is the best comes before it.
        code = run.finish(SPEECHSSL_CRASH_AT=point if point in ("best", "rotation") else f"{point}:3")
        reached += [point] if code == -signal.SIGKILL else []
        unreadable += len(list_unreadable(run))
        differing |= set(find_differences(expected, read_outcome(finish(run))))
        leftovers += len(list_leftovers(run))
    return {"points": len(reached), "unreadable": unreadable, "leftovers": leftovers, "differing": sorted(differing)}


CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75, signal.SIGINT: 130}


def send_signals(
    server: ForkServer, manifests: Path, out: Path, each: int, updates: int = 24, seed: str = "R5"
) -> Figures:
    """R5: SIGTERM, SIGUSR1 and Ctrl-C at random moments: while setting up, training, validating and saving."""
    keys = {"training.max_updates": updates}
    expected, rng = read_outcome(finish(Run(server, manifests, out / "whole", keys))), make_random(seed)
    slowest, lost, stops, wrong, differing = 0.0, 0, 0, 0, set()
    for number, code in CODES.items():
        for turn in range(each):
            run = Run(server, manifests, out / f"{number.name}-{turn}", keys)
            pid = run.start()
            if turn % 4 == 1:
                # Before its first line the process is one that has not begun: nothing hears a signal yet.
                wait_for(lambda run=run: run.log.exists())  # type: ignore[misc]
                time.sleep(0.05 + rng.random())
            else:
                run.wait_for_update(pid, rng.randint(0, updates - 2))
                time.sleep(rng.random() * 0.1)
            start = time.monotonic()
            os.kill(pid, number)
            found = run.wait(pid)
            slowest = max(slowest, time.monotonic() - start)
            stops += found == code
            wrong += found not in (code, 0)
            unsaved = run.read_update()
            assert not list_unreadable(run)
            finish(run)
            lost = max(lost, unsaved - run.find_resumed() if found == code else 0)
            differing |= set(find_differences(expected, read_outcome(run)))
    return {"stops": stops, "wrong": wrong, "slowest_s": slowest, "lost": lost, "differing": sorted(differing)}


def race(manifests: Path, out: Path, races: int) -> Figures:
    """R12: a second command in a folder that a run holds, as real processes; then kill the holder and start again."""
    slowest, named, refused = 0.0, 0, 0
    run = Run(None, manifests, out / "held", {"training.max_updates": 100_000})  # type: ignore[arg-type]
    holder = start_process(run)
    wait_for(lambda: run.read_update() > 0)
    for _ in range(races):
        start = time.monotonic()
        done = subprocess.run(command_line(run), capture_output=True, text=True, cwd=ROOT, env=one_thread())
        slowest = max(slowest, time.monotonic() - start)
        refused += done.returncode == 2
        named += f"process {holder.pid} on " in done.stderr
    holder.kill()
    holder.wait()
    again = start_process(run)
    start, before = time.monotonic(), run.log.read_text().count("resumed from")
    wait_for(lambda: run.log.read_text().count("resumed from") > before or again.poll() is not None)
    is_free = again.poll() is None
    again.send_signal(signal.SIGTERM)
    again.wait()
    figures = {"races": races, "refused": refused, "named": named, "slowest_s": slowest, "free_after_kill": is_free}
    return {**figures, "restart_s": time.monotonic() - start}


def race_for_start(manifests: Path, out: Path, races: int) -> Figures:
    """R12: two commands that start at the same moment in a new folder: exactly one wins."""
    winners = []
    for number in range(races):
        run = Run(None, manifests, out / f"race-{number}", {"training.max_updates": 1})  # type: ignore[arg-type]
        both = [start_process(run), start_process(run)]
        winners.append(sorted(process.wait() for process in both))
    # A loser that comes after the winner has ended is told the winner's result; that is no second run.
    return {"races": races, "one_winner": sum(codes == [0, 2] for codes in winners)}


def kill_processes(manifests: Path, out: Path, kills: int) -> Figures:
    """R3 with real processes, import of torch and all: a part of the kills, to show that the fork changes nothing."""
    whole = Run(None, manifests, out / "process-whole")  # type: ignore[arg-type]
    assert start_process(whole).wait() == 0, whole.log.read_text()[-2000:]
    run, rng = Run(None, manifests, out / "process-killed"), make_random("processes")  # type: ignore[arg-type]
    for _ in range(kills):
        process = start_process(run)
        goal = run.read_update() + rng.randint(1, 5)
        wait_for(lambda goal=goal, process=process: run.read_update() >= goal or process.poll() is not None)
        process.kill()
        process.wait()
    assert start_process(run).wait() == 0, run.log.read_text()[-2000:]
    return {"kills": kills, "differing": find_differences(read_outcome(whole), read_outcome(run))}


def soak(server: ForkServer, manifests: Path, out: Path, updates: int) -> Figures:
    """P3: memory, open files and threads of a long run, over its last two thirds."""
    keys = {
        "training.max_updates": updates,
        "training.checkpoint_every": max(updates // 50, 10),
        "training.validate_every": max(updates // 20, 10),
    }
    run = Run(server, manifests, out / "soak", keys)
    pid = run.start()
    samples: list[tuple[int, float, int, int]] = []
    while not is_over(pid):
        sample = measure_process(pid)
        if sample is not None:
            samples.append((run.read_update(), *sample))
        time.sleep(0.25 if updates > 1_000 else 0.05)
    assert run.wait(pid) == 0, run.log.read_text()[-2000:]
    steady = [sample for sample in samples if updates / 3 <= sample[0] < updates]
    x, memory = [sample[0] for sample in steady], [sample[1] for sample in steady]
    half = len(steady) // 2
    return {
        "updates": updates,
        "samples": len(steady),
        "mib_per_1000_updates": 1000 * compute_slope(x, memory),
        "peak_mib": max(memory),
        "more_mib": statistics.median(memory[half:]) - statistics.median(memory[:half]),
        # Validations, saves and their ends come and go, up and down: what stays is the middle of each half.
        "more_handles": _compare_middles([sample[2] for sample in steady]),
        "more_threads": _compare_middles([sample[3] for sample in steady]),
    }


def _compare_middles(counts: Sequence[int]) -> int:
    half = len(counts) // 2
    return statistics.median_low(counts[half:]) - statistics.median_low(counts[:half])


def time_base_save(out: Path) -> Figures:
    """R13: how long saving BASE (95 M parameters with the optimizer's state) blocks, and takes in all."""
    config = ModelConfig()
    objective = ContrastiveObjective(config, ContrastiveConfig(), 1, 10)
    optimizer = build_optimizer(objective.module, TrainingConfig())
    for parameter in objective.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = TrainingState(objective, optimizer, Progress(1))
    out.mkdir(parents=True)
    store = CheckpointStore(out, 2)
    saver = Saver(store)
    start, computing = time.monotonic(), time.thread_time()
    snapshot = state.take_snapshot()
    saver.save(snapshot, is_best=True)
    blocking, computing = time.monotonic() - start, time.thread_time() - computing
    saver.wait()
    valid = time.monotonic() - start
    assert store.find_valid() is not None
    # On a machine with other work the thread waits for a core; what it computes is what an idle one would take.
    times = {"blocking_s": blocking, "blocking_cpu_s": computing, "valid_s": valid}
    return {"gib": snapshot.num_bytes / 2**30, **times}


def measure_process(pid: int) -> tuple[float, int, int] | None:
    """Measure MiB resident, open files and threads of a process; None where it has ended."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        handles = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if "VmRSS" not in status:
        return None
    return int(status["VmRSS"].split()[0]) / 1024, handles, int(status["Threads"])


def compute_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Fit a line and return its slope."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def finish(run: Run) -> Run:
    """Run to the end and return the run."""
    code = run.finish()
    assert code == 0, f"exit code {code}: {run.log.read_text()[-2000:]}"
    return run


def is_finished(run: Run) -> bool:
    """Say whether the run has its result."""
    return (run.out / "result.json").exists()


def command_line(run: Run) -> list[str]:
    """The command as a user types it."""
    return [sys.executable, "-m", "speechssl", *run.words]


def one_thread() -> dict[str, str]:
    """The environment of a real process."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def start_process(run: Run) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own."""
    with run.log.open("ab") as log:
        return subprocess.Popen(command_line(run), stdout=log, stderr=log, cwd=ROOT, env=one_thread())


def wait_for(condition: Any, timeout_s: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
