"""The JSON file of a step: what was run, on what, and what came of it. These files are kept in the repository."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from recipes.librispeech_mini.study.plan import Command, Places, Step
from speechssl.bench.meter import read_device_name
from speechssl.durable import clean
from speechssl.errors import ConfigError
from speechssl.training.run_folder import describe_environment

Record = dict[str, Any]

STARTED, STOPPED, FAILED, DONE = "started", "stopped", "failed", "done"
"""A step that is `started` is running, or was killed before it could say so."""

MACHINE_KEYS = ("device", "precision", "data.num_workers", "data.cache_dir", "training.max_hours")
"""Keys that say where and how long, not what: a step may be run on with others."""

REBUILT = ".rebuilt.json"
"""How the file of a training ends that was made again, since its run folder was left on another machine."""

SO_FAR = ("metrics", "updates", "update_s", "hours_seen", "flop", "precision", "updates_s")
"""What another try of the same commands keeps of an earlier one, until it has measured its own."""

DROPPED = frozenset({"out", "checkpoint", "data", "run", "damaged_checkpoints", "seed", "unknown_letters"})
"""What of a verb's result is no figure, or stands elsewhere in the record."""


def find_path(places: Places, cell: str, step: str) -> Path:
    """Name the file of a step."""
    return places.results / cell / f"{step}.json"


def read_record(path: Path) -> Record | None:
    """Read a record; None where there is none."""
    if not path.exists():
        return None
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record in one step, so that a half-written one is never seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(clean(record), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_all(results: Path) -> dict[str, dict[str, Record]]:
    """Read every record: cell → step → record; what was only made again is left out."""
    found: dict[str, dict[str, Record]] = {}
    for path in sorted(path for path in results.glob("*/*.json") if not path.name.endswith(REBUILT)):
        record = read_record(path)
        assert record is not None, path
        found.setdefault(path.parent.name, {})[path.stem] = record
    return found


def format_command(command: Command, places: Places) -> str:
    """Write a command as it would be typed, with names in place of this machine's folders."""
    words = [f"{key}={_format_value(value)}" for key, value in command.keys.items()]
    program = "speechssl" if command.verb != "digits" else "recipes/librispeech_mini/study/run"
    line: str = places.hide(shlex.join([program, command.verb, *words]))
    return line


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_format_value(item) for item in value)}]"
    return str(value)


def describe_machine() -> Record:
    """Describe what a step is run on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"name": read_device_name(device), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def describe_now() -> Record:
    """Describe what is run now: machine, versions and the time."""
    environment = describe_environment()
    return {
        "machine": describe_machine(),
        "packages": {name: value for name, value in environment["packages"].items() if name in ("speechssl", "torch")},
        "revision": environment["git_revision"],
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def find_first_date(record: Mapping[str, Any]) -> str:
    """Say when the first try of a step began; records of before 2026-11-27 know the last one alone."""
    date: str = record.get("first_date", record["date"])
    return date


def open_record(path: Path, step: Step, places: Places) -> Record:
    """Begin the record of a step, or go on with that of an earlier try, whose figures stay until there are new ones.

    A step that is done may have been run with more commands than it has today.

    Raises:
        ConfigError: the record is of other commands.
    """
    commands = [format_command(command, places) for command in step.commands]
    before = read_record(path)
    if before is None:
        before = {"commands": commands, "status": STARTED, "wall_s": 0.0, "tries": 0}
    is_done = before["status"] == DONE
    is_same = set(commands) <= set(before["commands"]) if is_done else commands == before["commands"]
    if before["status"] in (DONE, STOPPED) and not is_same:
        raise ConfigError(
            f"`cell` must have the keys that {path} was run with, but they have changed since: a changed cell needs "
            "another name, or its record removed"
        )
    if is_done:
        return before
    now = describe_now()
    return {
        "cell": step.cell,
        "step": step.name,
        "status": STARTED,
        **step.facts,
        "commands": commands,
        "wall_s": before["wall_s"],
        "tries": before["tries"] + 1,
        **now,
        "first_date": find_first_date({**now, **before}),
        "metrics": {},
        **{key: before[key] for key in SO_FAR if is_same and key in before},
    }


def note_rebuilt(path: Path, step: Step, metrics: Mapping[str, Any]) -> None:
    """Add to the file beside a record that its training was made again here.

    Args:
        path: of the record, which stays as it is.
        step: the training.
        metrics: what it came to this time.
    """
    beside = path.with_name(f"{path.stem}{REBUILT}")
    before = read_record(beside) or {"cell": step.cell, "step": step.name, "rebuilt": []}
    write_record(beside, {**before, "rebuilt": [*before["rebuilt"], {**describe_now(), "metrics": metrics}]})


def trim(result: Mapping[str, Any]) -> Record:
    """Keep the figures of a verb's result."""
    return {key: value for key, value in result.items() if key not in DROPPED}
