"""`-m`: one job for each point of a sweep, job n in `out/n`, and one table at the end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechssl.cli.compose import compose_tree
from speechssl.cli.jobs import CRASHED, USER_MISTAKE, Job
from speechssl.cli.launchers import choose_launcher
from speechssl.cli.verbs import VERBS
from speechssl.cli.words import Request, escape
from speechssl.config.knobs import list_keys
from speechssl.errors import ConfigError
from speechssl.printable import make_printable
from speechssl.verbs.output import resolve_out

_logger = logging.getLogger("speechssl")

METRICS: dict[str, tuple[str, ...]] = {
    "pretrain": ("valid.loss_contrastive", "valid.loss_codes", "valid.accuracy", "train.loss_contrastive"),
    "finetune": ("valid.wer", "valid.cer", "train.loss"),
    "evaluate": ("wer", "cer"),
    "probe": ("accuracy", "eer"),
    "bench": ("audio_s_per_s", "peak_mib"),
}
"""Figures of a verb's result that the table shows, the first of them first."""

Launcher = Callable[[Sequence[Job]], None]


def run_sweep(requests: Sequence[Request], launcher: Launcher | None = None) -> dict[str, Any]:
    """Run every request that has not been run, and return their results; one that fails leaves the others alone.

    Args:
        requests: one a job.
        launcher: runs them; None one after the other.

    Returns:
        {"jobs": [{"job": n, "values": what differs, **result or error and exit_code}, …], "table": flat rows}.
    """
    run = launcher or choose_launcher("basic", {})
    jobs = plan_jobs(requests)
    rows = run_jobs(jobs, run)
    table = make_table(requests[0].verb, rows)
    print_table(table)
    return {"jobs": rows, "table": table}


def plan_jobs(requests: Sequence[Request], default: str = "", first: int = 0) -> list[Job]:
    """Give each request its number and its folder.

    Args:
        requests: one a job.
        default: folder of the sweep where a request does not say `out`; empty: runs/<verb>-<date>-<time>.
        first: number of the first one.

    Raises:
        ConfigError: the verb writes nothing, or training is given no `out`.
    """
    roots = [read_out(request) for request in requests]
    if not all(roots):
        default = default or str(resolve_out("", requests[0].verb, overwrite=False))
    varying = _find_varying(requests)
    jobs = []
    for number, (request, root) in enumerate(zip(requests, roots, strict=True), first):
        folder = Path(root or default)
        request.values["out"] = escape(str(folder / str(number)))
        given = {**request.choices, **request.values}
        jobs.append(Job(number, folder / "jobs" / f"{number}.json", request, {key: given.get(key) for key in varying}))
    return jobs


def run_jobs(jobs: Sequence[Job], launcher: Launcher) -> list[dict[str, Any]]:
    """Run the jobs that have no result yet, and return a row for each."""
    waiting = [job for job in jobs if job.find_result() is None]
    for job in jobs:
        state = "" if job in waiting else " (finished before)"
        _logger.info("job %d of %d: %s%s", job.number, len(jobs), job.describe(), state)
    for job in waiting:
        job.write()
    if waiting:
        launcher(waiting)
    return [{"job": job.number, "values": job.values, **job.read_outcome()} for job in jobs]


def make_table(verb: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make flat rows: the job, what is its own, and the figures of its verb that any job has.

    A swept key whose name is that of another column, as the `job` of `bench`, stands there as `bench.job`.
    """
    metrics = METRICS.get(verb, ())
    present = [name for name in metrics if any(find_value(row, name) is not None for row in rows)]
    taken = ("job", "state", *present)
    return [
        {
            "job": row["job"],
            **{f"{verb}.{key}" if key in taken else key: value for key, value in row["values"].items()},
            **{name: find_value(row, name) for name in present},
            "state": "failed" if is_failed(row) else "stopped" if "error" in row else "done",
        }
        for row in rows
    ]


def find_value(row: Mapping[str, Any], path: str) -> Any:
    """Find a dotted name in a job's result; None where it has none."""
    found: Any = row
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def is_failed(row: Mapping[str, Any]) -> bool:
    """Say whether a job failed; one that was stopped on request goes on when the command is given again."""
    return row.get("exit_code") in (CRASHED, USER_MISTAKE)


def find_exit_code(rows: Sequence[Mapping[str, Any]]) -> int:
    """Find the exit code of a sweep: 0 if all jobs are done, else that of a failure, else that of a stop."""
    codes = [int(row["exit_code"]) for row in rows if "exit_code" in row]
    failed = [code for code in codes if code in (CRASHED, USER_MISTAKE)]
    return min(failed) if failed else codes[0] if codes else 0


def print_table(table: Sequence[Mapping[str, Any]]) -> None:
    """Print flat rows to stderr."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*[str(name) for name in table[0]])
    for row in table:
        cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        drawn.add_row(*(make_printable(cell) for cell in cells))
    Console(file=sys.stderr, markup=False).print(drawn)


def read_out(request: Request) -> str:
    """Read `out` of one request, which an experiment file may set too."""
    if all(row.path != "out" for row in list_keys(VERBS[request.verb].schema)):
        raise ConfigError(f"-m must be used with a verb that writes to `out`, but `{request.verb}` does not")
    if request.verb in ("pretrain", "finetune") and not request.values.get("out"):
        raise ConfigError("`out` must be given with -m (job n goes to out/n), but is missing")
    return str(compose_tree(request).out)


def _find_varying(requests: Sequence[Request]) -> list[str]:
    """List the keys whose value is not the same in all requests, `out` apart."""
    given = [{**request.choices, **request.values} for request in requests]
    return [key for key in given[0] if key != "out" and any(row.get(key) != given[0][key] for row in given)]
