"""How the jobs of a sweep are run: one after the other, several at a time, or by submitit on a cluster.

The keys are spelt as for hydra's launcher plugins. The plugins themselves call a function with a configuration that
hydra composed, in workers that exchange pickles; here a job is a command of its own (see `jobs`).
"""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from speechssl.cli.jobs import Job
from speechssl.durable import writing
from speechssl.errors import ConfigError

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")

POLL_S = 0.1
CLUSTER_POLL_S = 2.0

SHARED = frozenset({"name", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb"})
"""Parameters that submitit gives one name for all clusters; others, such as `partition`, are Slurm's own."""


def choose_launcher(name: str, keys: Mapping[str, Any]) -> Callable[[Sequence[Job]], None]:
    """Choose what runs jobs; it returns when all have ended, and their files say how.

    Args:
        name: `basic`, `joblib` (as many processes at a time as `n_jobs` says), `submitit_local` or `submitit_slurm`.
        keys: `hydra.launcher.…`.

    Raises:
        ConfigError: another name, a key that it does not have, or submitit is not installed.
    """
    match name:
        case "basic":
            _check_keys(name, keys, ())
            return lambda jobs: run_here(jobs, 1)
        case "joblib":
            _check_keys(name, keys, ("n_jobs",))
            return lambda jobs: run_here(jobs, count_processes(keys.get("n_jobs", -1)))
        case "submitit_local" | "submitit_slurm":
            submitit = import_package("submitit", f"hydra/launcher={name}")
            return lambda jobs: run_by_submitit(submitit, name.removeprefix("submitit_"), keys, jobs)
        case _:
            raise ConfigError(f"`hydra/launcher` must be one of {', '.join(LAUNCHERS)}, but is {name!r}")


def count_processes(n_jobs: object) -> int:
    """Count the processes of `hydra.launcher.n_jobs`: -1 is one a core, as joblib has it.

    Raises:
        ConfigError: it is neither -1 nor positive.
    """
    if n_jobs == -1:
        return os.cpu_count() or 1
    if not isinstance(n_jobs, int) or isinstance(n_jobs, bool) or n_jobs < 1:
        raise ConfigError(f"`hydra.launcher.n_jobs` must be at least 1, or -1 for one a core, but is {n_jobs!r}")
    return n_jobs


def run_here(jobs: Sequence[Job], at_a_time: int) -> None:
    """Run jobs as processes of this machine; one that ends makes room for the next.

    When this process is told to stop, so are they: a training saves its state.
    """
    waiting, running = list(jobs), list[subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            running = [process for process in running if process.poll() is None]
            while waiting and len(running) < at_a_time:
                running.append(_start(waiting.pop(0), is_alone=at_a_time == 1))
            time.sleep(POLL_S)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def run_by_submitit(submitit: ModuleType, cluster: str, keys: Mapping[str, Any], jobs: Sequence[Job]) -> None:
    """Submit jobs through submitit, and wait until all have ended.

    Args:
        submitit: the package.
        cluster: `local` or `slurm`.
        keys: its parameters.
        jobs: to run.

    Raises:
        ConfigError: a parameter that it does not have.
    """
    folder = jobs[0].path.parent / "submitit"
    executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
    named = {key if key in SHARED or cluster != "slurm" else f"slurm_{key}": value for key, value in keys.items()}
    try:
        executor.update_parameters(**named)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(f"`hydra.launcher` must have parameters that submitit knows, but {error}") from error
    with executor.batch():
        submitted = [executor.submit(submitit.helpers.CommandFunction(job.command)) for job in jobs]
    try:
        while not all(job.done() for job in submitted):
            time.sleep(POLL_S if cluster == "local" else CLUSTER_POLL_S)
    finally:
        for job in submitted:
            if not job.done():
                job.cancel()


def import_package(name: str, asked: str) -> ModuleType:
    """Import a package of the extra `sweep`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        problem = f"{name} is not installed (pip install 'speechssl[sweep]')"
        raise ConfigError(f"`{asked}` must find its package, but {problem}") from error


def _start(job: Job, is_alone: bool) -> subprocess.Popen[bytes]:
    """Start a job; alone, it shows its progress here, beside others in its log."""
    if is_alone:
        return subprocess.Popen(job.command, stdout=subprocess.DEVNULL)
    with _open_log(job.log) as log:
        return subprocess.Popen(job.command, stdout=subprocess.DEVNULL, stderr=log)


def _open_log(path: Path) -> Any:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def _check_keys(name: str, keys: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in keys:
        if key not in known:
            has = ", ".join(f"hydra.launcher.{item}" for item in known) or "no key"
            raise ConfigError(f"`hydra.launcher.{key}` must be a key of hydra/launcher={name}, but that has {has}")
