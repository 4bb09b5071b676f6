"""Several ways to do the same work, timed in turn in one process; the memory of each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from speechssl.bench.meter import MemoryMeter, measure_ceiling, read_device_name

ROOT = Path(__file__).parents[2]
OURS = "ours"
"""What the names of our own contestants begin with."""

COMPILED = " compiled "
"""In the name of contestants that `torch.compile` takes minutes to build: they take part only where `--only` asks."""

PACKAGES = ("torch", "transformers", "torchaudio")
MEMORY_RUNS = 2
"""Runs in the process that measures the memory, after the warm-up."""


@dataclass
class Contestant:
    """One way to do the work.

    Attributes:
        name: of the library, and how it runs.
        precision: `float32` or `bf16`.
        run: does the work once, to its end.
        audio_s: seconds of audio in a run.
        flop: operations of matrix products and convolutions in a run; 0 where they are not counted.
    """

    name: str
    precision: str
    run: Callable[[], object]
    audio_s: float
    flop: float = 0.0


@dataclass(frozen=True)
class Contest:
    """What is compared.

    Attributes:
        title: the work in a few words.
        module: of the script, for the processes that measure memory.
        argv: the words that it was called with.
        device: where it runs.
        build: makes a contestant by its name, and imports its library only then.
        names: of all contestants.
    """

    title: str
    module: str
    argv: Sequence[str]
    device: torch.device
    build: Callable[[str], Contestant]
    names: Sequence[str]


def make_parser(description: str) -> argparse.ArgumentParser:
    """Make the options that every script has; bare words are keys of `speechssl bench`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("words", nargs="*", help="keys of `speechssl bench`, such as model=base batch=4 seconds=5")
    parser.add_argument("--repeats", type=int, default=7, help="so many runs of each contestant, in turn")
    parser.add_argument("--only", default="", help="names of contestants, with commas between; empty: all")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--cpu", action="store_true", help="count seconds of the processor, where other work runs too")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    return parser


def hold(contest: Contest, options: argparse.Namespace, warmup: int) -> str:
    """Hold a contest and return its tables in Markdown; with `--memory`, one contestant's memory as JSON.

    Args:
        contest: what is compared.
        options: of `make_parser`.
        warmup: runs of each contestant before the timed ones.
    """
    if options.memory:
        return json.dumps(_measure_memory(contest, options.memory, warmup))
    names = [name for name in contest.names if COMPILED not in name]
    if options.only:
        names = [name.strip() for name in options.only.split(",")]
    unknown = sorted({*names} - {*contest.names})
    if unknown:
        raise SystemExit(f"--only must be of {', '.join(contest.names)}, but has {unknown[0]!r}")
    memory = {} if options.no_memory else {name: _ask_memory(contest, name) for name in names}
    contestants = [contest.build(name) for name in names]
    precisions = sorted({contestant.precision for contestant in contestants})
    before = {precision: measure_ceiling(contest.device, precision) for precision in precisions}
    clock = time.process_time if options.cpu else time.perf_counter
    times = take_turns(contestants, options.repeats, warmup, contest.device, clock)
    after = {precision: measure_ceiling(contest.device, precision) for precision in precisions}
    ceilings = {precision: max(before[precision], after[precision]) for precision in precisions}
    parts = [f"## {contest.title}", describe_run(contest, ceilings)]
    parts += [format_contestants(contestants, times, memory, ceilings), format_ratios(contestants, times)]
    return "\n\n".join(part for part in parts if part)


def take_turns(
    contestants: Sequence[Contestant],
    repeats: int,
    warmup: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every contestant `repeats` times, one after the other, and who begins changes from turn to turn.

    Returns:
        Seconds of each run by name; the n-th runs of all belong together.
    """
    for contestant in contestants:
        for _ in range(warmup):
            contestant.run()
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for turn in range(repeats):
        first = turn % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            times[contestant.name].append(_time(contestant, device, clock))
        print(f"turn {turn + 1} of {repeats}", file=sys.stderr)
    return times


def _time(contestant: Contestant, device: torch.device, clock: Callable[[], float]) -> float:
    _wait(device)
    start = clock()
    contestant.run()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ask_memory(contest: Contest, name: str) -> float | None:
    """Measure the peak memory of one contestant in a process that does nothing else."""
    command = [sys.executable, "-m", contest.module, *contest.argv, "--memory", name]
    # The scripts are found from any folder, and paths in `argv` stay what they are.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the memory of {name} was not measured:\n{done.stderr}")
    peak: float | None = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
    return peak


def _measure_memory(contest: Contest, name: str, warmup: int) -> dict[str, Any]:
    contestant = contest.build(name)
    meter = MemoryMeter(contest.device)
    for _ in range(warmup + MEMORY_RUNS):
        contestant.run()
    return {"name": name, "peak_mib": meter.read_mib()}


def describe_run(contest: Contest, ceilings: dict[str, float]) -> str:
    """Say when, where, with what and how this was measured."""
    hardware = f"{read_device_name(contest.device)}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    peaks = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {precision}" for precision, rate in ceilings.items())
    command = f"python -m {contest.module} {' '.join(contest.argv)}".strip()
    load = f"load {os.getloadavg()[1]:.1f} over five minutes"
    return f"{time.strftime('%Y-%m-%d')}; {hardware}; {load}; {versions}; matrix products {peaks}; `{command}`"


def format_contestants(
    contestants: Sequence[Contestant],
    times: dict[str, list[float]],
    memory: dict[str, float | None],
    ceilings: dict[str, float],
) -> str:
    """Write a row a contestant: date, median and quartiles of a run, rate, share of the ceiling, peak memory."""
    lines = [
        "| date | contestant | run, s: median (quartiles) | audio s/s | share of ceiling | peak, MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for contestant in contestants:
        seconds = times[contestant.name]
        middle = median(seconds)
        low, high = np.percentile(seconds, [25, 75])
        share = contestant.flop / middle / ceilings[contestant.precision]
        peak = memory.get(contestant.name)
        cells = (
            time.strftime("%Y-%m-%d"),
            contestant.name,
            f"{middle:.3f} ({low:.3f} to {high:.3f})",
            f"{contestant.audio_s / middle:.1f}",
            f"{100 * share:.1f} %" if contestant.flop else "",
            "" if peak is None else f"{peak:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_ratios(contestants: Sequence[Contestant], times: dict[str, list[float]]) -> str:
    """Write how many times as fast each of ours is as each other one, turn by turn; empty without a pair."""
    ours = [contestant.name for contestant in contestants if contestant.name.startswith(OURS)]
    theirs = [contestant.name for contestant in contestants if not contestant.name.startswith(OURS)]
    rows = [_format_ratio(mine, other, times) for mine, other in product(ours, theirs)]
    head = [
        "| date | faster, times: median | spread, % | range | ours | than |",
        "| --- | ---: | ---: | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows]) if rows else ""


def _format_ratio(mine: str, other: str, times: dict[str, list[float]]) -> str:
    middle, spread, low, high = summarise_ratio(times[mine], times[other])
    cells = (f"{middle:.2f}", f"{spread:.1f}", f"{low:.2f} to {high:.2f}", mine, other)
    return f"| {time.strftime('%Y-%m-%d')} | {' | '.join(cells)} |"


def summarise_ratio(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float, float]:
    """Return median, distance of the quartiles in percent of it, least and greatest of theirs / mine, turn by turn."""
    ratios = [other / own for own, other in zip(mine, theirs, strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return float(middle), float(100 * (high - low) / middle), min(ratios), max(ratios)
