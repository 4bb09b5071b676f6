"""Runs the jobs at nightly size and prints one dated table; called by `tools/soak`."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch

from tests.reliability import jobs
from tests.reliability.harness import CRASH_POINTS, ForkServer, make_manifests, serve_forks

Job = Callable[[ForkServer, Path, Path, bool], tuple[str, bool, str]]


def run_r1(server: ForkServer, manifests: Path, out: Path, is_small: bool) -> tuple[str, bool, str]:
    figures = jobs.repeat_runs(server, manifests, out, updates=5 if is_small else 50)
    bits = len(figures["differing"])
    what = f"same seed, {figures['updates']} updates, 5 runs with 0, 0, 2, 2 and 4 workers"
    return what, bits == 0, f"{bits} of all tensors, counters and log lines differ"


def run_r2(server: ForkServer, manifests: Path, out: Path, is_small: bool) -> tuple[str, bool, str]:
    figures = jobs.stop_everywhere(server, manifests, out, updates=5, stride=4 if is_small else 1)
    what = "stopped wherever it can stop in 2 epochs, and once more soon after"
    return what, not figures["differing"], f"{figures['stops']} stops, {len(figures['differing'])} differ"


def run_r3(server: ForkServer, manifests: Path, out: Path, is_small: bool) -> tuple[str, bool, str]:
    figures = jobs.kill_at_random(server, manifests, out, kills=5 if is_small else 50)
    ok = not figures["differing"] and figures["unreadable"] == 0 and (is_small or figures["in_save"] >= 10)
    found = (
        f"{figures['kills']} kills, {figures['in_save']} of them in a save, over {figures['runs']} runs: "
        f"{len(figures['differing'])} differ, {figures['unreadable']} unreadable checkpoints, "
        f"at most {figures['lost']} updates lost (a checkpoint every 3)"
    )
    return "`kill -9` at random, forked processes", ok, found


def run_r3_processes(_: ForkServer, manifests: Path, out: Path, is_small: bool) -> tuple[str, bool, str]:
    figures = jobs.kill_processes(manifests, out, kills=1 if is_small else 5)
    found = f"{figures['kills']} kills, {len(figures['differing'])} differ"
    return "`kill -9` at random, processes as a user starts them", not figures["differing"], found


def run_r5(server: ForkServer, manifests: Path, out: Path, is_small: bool) -> tuple[str, bool, str]:
    figures = jobs.send_signals(server, manifests, out, each=1 if is_small else 20)
    ok = not figures["differing"] and figures["wrong"] == 0 and figures["slowest_s"] < 10 and figures["lost"] == 0
    found = (
        f"{figures['stops']} stops, slowest {figures['slowest_s']:.2f} s, {figures['wrong']} wrong codes, "
        f"{figures['lost']} updates lost, {len(figures['differing'])} differ"
    )
    return "SIGTERM, SIGUSR1 and Ctrl-C at random moments", ok, found


def run_r8(server: ForkServer, manifests: Path, out: Path, _: bool) -> tuple[str, bool, str]:
    figures = jobs.crash_at_points(server, manifests, out)
    bad = figures["unreadable"] + figures["leftovers"] + len(figures["differing"])
    found = (
        f"{figures['points']} points: {figures['unreadable']} unreadable, {figures['leftovers']} leftovers, "
        f"{len(figures['differing'])} differ"
    )
    return "death at each named point of a save", bad == 0 and figures["points"] == len(CRASH_POINTS), found


def run_r12(_: ForkServer, manifests: Path, out: Path, is_small: bool) -> tuple[str, bool, str]:
    races = 2 if is_small else 20
    held = jobs.race(manifests, out, races)
    started = jobs.race_for_start(manifests, out, max(races // 2, 1))
    ok = held["refused"] == held["named"] == races and started["one_winner"] == started["races"]
    found = (
        f"{held['refused']} of {races} refused with the holder's pid, slowest {held['slowest_s']:.2f} s; of two that "
        f"start together one won {started['one_winner']} of {started['races']} times; free after kill -9: "
        f"{'yes' if held['free_after_kill'] else 'no'}"
    )
    return "a second run in the folder", ok and held["free_after_kill"] and held["slowest_s"] < 2, found


def run_r13(_: ForkServer, __: Path, out: Path, ___: bool) -> tuple[str, bool, str]:
    figures = [jobs.time_base_save(out / str(number)) for number in range(3)]
    names = ("blocking_s", "blocking_cpu_s", "valid_s")
    blocking, computing, valid = (sorted(each[name] for each in figures) for name in names)
    found = (
        f"{figures[0]['gib']:.2f} GiB, three times: blocking {blocking[0]:.2f} to {blocking[-1]:.2f} s "
        f"({computing[0]:.2f} to {computing[-1]:.2f} s of computing), whole after {valid[0]:.1f} to {valid[-1]:.1f} s"
    )
    return "saving BASE with its optimizer", blocking[1] < 2 and valid[1] < 15, found


def run_p3(server: ForkServer, manifests: Path, out: Path, is_small: bool) -> tuple[str, bool, str]:
    figures = jobs.soak(server, manifests, out, updates=400 if is_small else 10_000)
    slope, flat = figures["mib_per_1000_updates"], figures["more_handles"] <= 0 and figures["more_threads"] <= 0
    found = (
        f"{slope:+.3f} MiB per 1,000 updates, {figures['more_handles']:+d} open files, "
        f"{figures['more_threads']:+d} threads, peak {figures['peak_mib']:.0f} MiB"
    )
    return f"memory over {figures['updates']:,} updates", flat and (is_small or slope < 1), found


JOBS: dict[str, Job] = {
    "R1": run_r1,
    "R2": run_r2,
    "R3": run_r3,
    "R3p": run_r3_processes,
    "R5": run_r5,
    "R8": run_r8,
    "R12": run_r12,
    "R13": run_r13,
    "P3": run_p3,
}
"""R1 also shows R7's half without ranks. R4, R9, R10 and R11 run at full size in the tests."""


def main(words: Sequence[str]) -> int:
    """Run the chosen jobs and print a row as each ends; 0 where every one held its target."""
    is_small = "--small" in words
    chosen = [word for word in words if word in JOBS] or list(JOBS)
    unknown = [word for word in words if word not in JOBS and word != "--small"]
    assert not unknown, f"no such job: {unknown} (there are {', '.join(JOBS)})"
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{date.today()}, {machine}, one thread each\n")
    print("| id | what | found | held | took |\n| --- | --- | --- | --- | --- |")
    held = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, serve_forks() as server:
        manifests = make_manifests(Path(folder))
        for name in chosen:
            out = Path(folder) / name
            out.mkdir()
            start = time.monotonic()
            what, ok, found = JOBS[name](server, manifests, out, is_small)
            held.append(ok)
            took = time.monotonic() - start
            print(f"| {name} | {what} | {found} | {'yes' if ok else '**no**'} | {took:.0f} s |", flush=True)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
