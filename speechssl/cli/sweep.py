"""`-m`: one job for each point of a sweep, one after the other, job n in `out/n`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechssl.cli.compose import compose_tree
from speechssl.cli.output import resolve_out
from speechssl.cli.run import run_request
from speechssl.cli.words import Request, escape
from speechssl.errors import ConfigError

_logger = logging.getLogger("speechssl")


def run_sweep(requests: Sequence[Request]) -> dict[str, Any]:
    """Run every request and return their results.

    Returns:
        {"jobs": [{"job": n, "out": folder, "values": what differs, **result}, …]}.
    """
    roots = [_read_out(request) for request in requests]
    default = str(resolve_out("", requests[0].verb, overwrite=False)) if not all(roots) else ""
    varying = _find_varying(requests)
    jobs = []
    for number, (request, root) in enumerate(zip(requests, roots, strict=True)):
        request.values["out"] = escape(str(Path(root or default) / str(number)))
        given = {**request.choices, **request.values}
        values = {key: given.get(key) for key in varying}
        _logger.info(
            "job %d of %d: %s", number, len(requests), ", ".join(f"{key}={value}" for key, value in values.items())
        )
        jobs.append({"job": number, "values": values, **run_request(request)})
    return {"jobs": jobs}


def _read_out(request: Request) -> str:
    """Read `out` of one request, which an experiment file may set too."""
    tree = compose_tree(request)
    if "out" not in tree:
        raise ConfigError(f"-m must be used with a verb that writes to `out`, but `{request.verb}` does not")
    if request.verb in ("pretrain", "finetune") and "out" not in request.values:
        raise ConfigError("`out` must be given with -m (job n goes to out/n), but is missing")
    return str(tree.out)


def _find_varying(requests: Sequence[Request]) -> list[str]:
    """List the keys whose value is not the same in all requests, `out` apart."""
    given = [{**request.choices, **request.values} for request in requests]
    return [key for key in given[0] if key != "out" and any(row.get(key) != given[0][key] for row in given)]
