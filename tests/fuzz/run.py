"""Fuzzes kinds of files; called by `tools/fuzz` and by the tests.

tools/fuzz --minutes 10                 every kind, another seed each day
tools/fuzz --minutes 2 tsv parquet
tools/fuzz --case parquet/20261130/4711  one case again, with its traceback
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SILENT_S = 60.0
"""A worker that is at one case for so long waits for something that never comes."""


@dataclass
class Outcome:
    """What came of one kind: cases tried, and faults, alike ones counted once."""

    num_cases: int = 0
    faults: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, fault: dict[str, Any]) -> None:
        key = (fault["what"].partition(":")[0].split(" MiB")[0], fault["where"])
        self.faults.setdefault(key, fault)
        self.counts[key] += 1

    def describe(self) -> str:
        """Say a line a fault, each with the command that shows it."""
        lines = [
            f"{self.counts[key]} × {fault['what']} at {fault['where']} for {fault['file']}: "
            f"tools/fuzz --case {fault['kind']}/{fault['seed']}/{fault['number']}"
            for key, fault in self.faults.items()
        ]
        return "\n".join(lines)


def fuzz(kind: str, seed: int, seconds: float) -> Outcome:
    """Try damaged files of one kind for some time; a worker that hangs or dies is named and another goes on."""
    outcome, end = Outcome(), time.monotonic() + seconds
    while outcome.num_cases == 0 or time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            code = _work(kind, seed, outcome.num_cases, max(1.0, end - time.monotonic()), Path(folder))
            now = int.from_bytes((Path(folder) / "now").read_bytes(), "little")
            for line in (Path(folder) / "failures.jsonl").read_text().splitlines():
                outcome.add(json.loads(line))
            errors = (Path(folder) / "errors").read_text(errors="replace")
        if code == 0:
            outcome.num_cases = now
            return outcome
        if code > 0:
            raise RuntimeError(f"the worker of {kind} failed itself:\n{errors}")
        what = "waits for ever" if code == -9 else f"ends the process with signal {-code}"
        outcome.add({"kind": kind, "seed": seed, "number": now, "file": "?", "what": what, "where": "?"})
        outcome.num_cases = now + 1
    return outcome


def _work(kind: str, seed: int, first: int, seconds: float, folder: Path) -> int:
    """Run a worker, and end it where it is silent; returns its exit code, minus the signal."""
    (folder / "now").write_bytes(first.to_bytes(8, "little"))
    (folder / "failures.jsonl").touch()
    words = [sys.executable, "-m", "tests.fuzz.worker", kind, str(seed), str(first), str(seconds), str(folder)]
    # Each thread would take 64 MiB of addresses for its own, which the limit counts.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=errors, stderr=errors)
        seen, since = b"", time.monotonic()
        while process.poll() is None:
            time.sleep(0.1)
            now = (folder / "now").read_bytes()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > SILENT_S:
                process.kill()
        return process.wait()


def replay(case: str) -> None:
    """Run one case in this process, so that its traceback shows."""
    from tests.fuzz.worker import Worker

    kind, seed, number = case.split("/")
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(kind, int(seed), Path(folder))
        worker.show_case(int(number))


def main(words: Sequence[str]) -> int:
    from tests.fuzz.kinds import KINDS

    parser = argparse.ArgumentParser(prog="tools/fuzz", description="Damages files of each kind, and reads them.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all without")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each kind")
    parser.add_argument("--seed", type=int, default=int(f"{date.today():%Y%m%d}"), help="another one each day")
    parser.add_argument("--case", default="", metavar="KIND/SEED/NUMBER", help="run one case again")
    given = parser.parse_args(words)
    if given.case:
        replay(given.case)
        return 0
    bad = 0
    for kind in given.kinds or KINDS:
        outcome = fuzz(kind, given.seed, 60 * given.minutes)
        bad += len(outcome.faults)
        print(f"{kind}: {outcome.num_cases} cases, {len(outcome.faults)} kinds of faults", flush=True)
        print(outcome.describe(), end="\n" if outcome.faults else "", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
