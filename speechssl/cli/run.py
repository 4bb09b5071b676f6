"""From requests to results: one verb with its keys, or the jobs of a sweep one after another."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechssl.checkpoints.layout import RESULT
from speechssl.cli.verbs import map_keys
from speechssl.cli.words import Request, escape
from speechssl.durable import clean, write_in_one_step, writing
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.parsing import read_json
from speechssl.printable import format_columns, log_lines

_logger = logging.getLogger("speechssl")

TRAINING_VERBS = ("pretrain", "finetune")
"""Verbs whose folder belongs to one run, which goes on where it was stopped."""

METRICS = {
    "pretrain": ("valid.loss", "valid.accuracy"),
    "finetune": ("valid.wer", "valid.cer"),
    "evaluate": ("wer", "cer"),
    "score": ("wer", "cer"),
    "compare": ("wer_a", "wer_b"),
    "tune": ("wer", "cer"),
    "lm": ("perplexity",),
    "probe": ("accuracy", "eer"),
    "bench": ("audio_s_per_s", "peak_mib"),
}
"""Figures of a verb's result that the table of a sweep shows."""

SWEEP = "sweep.json"
"""The file in `out` that says which job is which."""


def run_verb(verb: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Run a verb with the keys of its command line.

    Args:
        verb: name of the verb.
        keys: values by key: dotted names (`{"training.lr": 1e-3}`), nested dicts (`{"training": {"lr": 1e-3}}`), or
            both; `model="small"` chooses a preset, as on the command line.

    Returns:
        the dict of the command's JSON line.

    Raises:
        SpeechSSLError: what the command would answer with exit code 2.
    """
    request = Request(verb)
    for key, value in keys.items():
        request.add(key, escape(value))
    return run_request(request)


def run_request(request: Request) -> dict[str, Any]:
    """Compose the configuration of one request, run its verb, and return the dict of its JSON line."""
    from speechssl import verbs
    from speechssl.cli.compose import build_config

    config = build_config(request)
    if request.verb == "demo":
        return verbs.demo(config, run_verb)
    result: dict[str, Any] = getattr(verbs, request.verb)(config)
    return result


def run_sweep(requests: Sequence[Request]) -> dict[str, Any]:
    """Run the jobs of a sweep one after another in this process, job n in `out/n`; a mistake in one leaves the others.

    The same command again goes on: trainings resume, and jobs that are finished are not run again.

    Args:
        requests: one a job.

    Returns:
        {"jobs": [{"job": n, "values": what differs from job to job, **result, or error and exit_code}, …]}.

    Raises:
        ConfigError: the verb has no `out`, none is given, or it holds another sweep.
        StoppedOnRequest: a job was stopped; it goes on when the command is given again.
    """
    verb, out = requests[0].verb, requests[0].values.get("out", "")
    if "out" not in map_keys(verb):
        raise ConfigError(f"-m must be used with a verb that writes to `out`, but `{verb}` does not")
    if not out:
        raise ConfigError("`out` must be given with -m (job n goes to out/n), but is missing")
    given: list[dict[str, Any]] = [clean(request.choices | request.values) for request in requests]
    varying = [key for key in given[0] if any(row.get(key) != given[0][key] for row in given)]
    _claim(requests, given)
    rows = []
    for number, request in enumerate(requests):
        values = {key: given[number].get(key) for key in varying}
        name = f"job {number} ({', '.join(f'{key}={value}' for key, value in values.items())})"
        _logger.info("%s, %d of %d", name, number + 1, len(requests))
        request.values["out"] = f"{request.values['out']}/{number}"
        row: dict[str, Any] = {"job": number, "values": values}
        try:
            rows.append(row | (_find_result(request) or run_request(request)))
        except SpeechSSLError as error:
            _logger.error("%s: %s", name, error)
            rows.append(row | {"error": str(error), "exit_code": 2})
    log_lines(_format_table(verb, rows))
    return {"jobs": rows}


def _claim(requests: Sequence[Request], given: Sequence[Mapping[str, Any]]) -> None:
    """Note in `out` which job is which, or find that the folder holds this very sweep."""
    folder = _find_out(requests[0])
    overwrite = any(request.values.get("overwrite") for request in requests)
    path = folder / SWEEP
    if path.exists() and not overwrite and read_json(path, ConfigError).get("jobs") != given:
        raise ConfigError(f"`out` must be a new place, but {folder} holds another sweep (overwrite=true replaces it)")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_in_one_step(path, json.dumps({"jobs": given}, ensure_ascii=False, indent=2) + "\n")


def _find_out(request: Request) -> Path:
    from speechssl.cli.compose import compose_tree

    return Path(str(compose_tree(request).out))


def _find_result(request: Request) -> dict[str, Any] | None:
    """Read the result of a job that was finished earlier; a training says so itself."""
    path = _find_out(request) / RESULT
    is_finished = request.verb not in TRAINING_VERBS and not request.values.get("overwrite") and path.exists()
    return read_json(path, ConfigError) if is_finished else None


def _format_table(verb: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the jobs: what is their own, and the figures of their verb that any of them has."""
    names = [name for name in METRICS.get(verb, ()) if any(_find_value(row, name) is not None for row in rows)]
    cells = [["job", *rows[0]["values"], *names]]
    for row in rows:
        found = ["failed" if "error" in row else _find_value(row, name) for name in names]
        figures = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in found]
        cells.append([str(row["job"]), *(str(value) for value in row["values"].values()), *figures])
    return format_columns(cells)


def _find_value(row: Mapping[str, Any], path: str) -> Any:
    """Find a dotted name in a job's result; None where it has none."""
    found: Any = row
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
