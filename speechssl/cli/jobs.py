"""One job of a sweep as a file: what is asked, and once it has run, what came of it.

A job runs in a process of its own, so that one that fails, or runs out of memory, takes no other with it, and so that
nothing but text goes from process to process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speechssl.cli.run import run_request
from speechssl.cli.words import Request
from speechssl.durable import clean, write_in_one_step, writing
from speechssl.errors import ConfigError, SpeechSSLError, StoppedOnRequest

OPTION = "--job"
"""The word that starts a job from its file: `speechssl --job out/jobs/3.json`."""

USER_MISTAKE, CRASHED = 2, 1


@dataclass
class Job:
    """One point of a sweep.

    Attributes:
        number: its place in the sweep.
        path: its file, `out/jobs/<number>.json`; what it prints goes beside it where several run at a time.
        request: the command.
        values: those of its keys that differ from job to job.
    """

    number: int
    path: Path
    request: Request
    values: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """The words that run it."""
        return [sys.executable, "-m", "speechssl", OPTION, str(self.path)]

    @property
    def log(self) -> Path:
        """Where its progress goes when several jobs run at a time."""
        return self.path.with_suffix(".log")

    def describe(self) -> str:
        """Name the job by what is its own."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items())

    def find_result(self) -> dict[str, Any] | None:
        """Return the result, if this very command has run to its end before and is not to be run again."""
        stored = self._read()
        is_same = stored.get("request") == clean(asdict(self.request))
        if not is_same or self.request.values.get("overwrite") or "result" not in stored:
            return None
        result: dict[str, Any] = stored["result"]
        return result

    def write(self) -> None:
        """Write what is asked; an earlier outcome goes."""
        _write(self.path, {"request": asdict(self.request)})

    def read_outcome(self) -> dict[str, Any]:
        """Return the result, or `error` and `exit_code`."""
        stored = self._read()
        if "result" in stored:
            result: dict[str, Any] = stored["result"]
            return result
        crashed = "it ended without a result" + (f" ({self.log} has what it said)" if self.log.exists() else "")
        return {"error": stored.get("error", crashed), "exit_code": stored.get("exit_code", CRASHED)}

    def _read(self) -> dict[str, Any]:
        return read_json(self.path) if self.path.exists() else {}


def run_job(path: Path) -> dict[str, Any]:
    """Run the job of a file, and write what came of it into the file.

    Raises:
        SpeechSSLError, StoppedOnRequest: those of the verb, once they are noted.
    """
    stored = read_json(path)
    if "request" not in stored:
        raise ConfigError(f"`{OPTION}` must be a job's file, but {path} has no request")
    request = {"request": stored["request"]}
    try:
        result = run_request(Request(**stored["request"]))
    except (SpeechSSLError, StoppedOnRequest) as error:
        code = error.exit_code if isinstance(error, StoppedOnRequest) else USER_MISTAKE
        _write(path, request | {"error": str(error), "exit_code": code})
        raise
    _write(path, request | {"result": result})
    return result


def read_json(path: Path) -> dict[str, Any]:
    """Read a job's file.

    Raises:
        ConfigError: it is not there, or holds something else.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"`{OPTION}` must be a job's file, but {path} does not load ({error})") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"`{OPTION}` must be a job's file, but {path} holds something else")
    return stored


def _write(path: Path, content: dict[str, Any]) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(path, json.dumps(clean(content), ensure_ascii=False, indent=2) + "\n")
