"""The Slurm recipe: bash reads it, and it requeues after 75 and only then."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.cases import each_case

SCRIPT = Path(__file__).parents[3] / "recipes" / "slurm" / "pretrain.sbatch"


def run_script(folder: Path, code: int, **env: str) -> tuple[int, list[str], str]:
    """Run the script with stand-ins for Slurm's commands: its exit code, what it called, what it said."""
    calls = folder / "calls"
    for name, ending in (("srun", f"exit {code}"), ("scontrol", "exit 0")):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{ending}\n')
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", **env}
    words = ["bash", str(SCRIPT), "model=tiny", "out=a b"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    return done.returncode, calls.read_text().splitlines(), done.stderr


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_it_asks_for_the_signal_of_the_step_and_for_requeueing() -> None:
    options = [line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--signal=USR1@300", "--requeue", "--open-mode=append"} <= set(options)


def test_75_requeues(tmp_path: Path) -> None:
    code, calls, _ = run_script(tmp_path, 75)
    assert code == 0
    assert calls == ["srun --ntasks=1 speechssl pretrain model=tiny out=a b", "scontrol requeue 42"]


@each_case("code", [0, 1, 2, 130, 143])
def test_other_codes_are_handed_on(code: int, tmp_path: Path) -> None:
    found, calls, _ = run_script(tmp_path, code)
    assert (found, len(calls)) == (code, 1)


def test_it_does_not_requeue_for_ever(tmp_path: Path) -> None:
    code, calls, said = run_script(tmp_path, 75, SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
    assert (code, len(calls)) == (75, 1)
    assert "restarted 3 times, not again" in said
