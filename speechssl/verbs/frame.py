"""What every verb has around it, whether the command line or Python calls it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from speechssl.config.knobs import MISSING, check, list_keys
from speechssl.durable import REFUSALS, writing
from speechssl.printable import log_lines
from speechssl.progress import show_logs
from speechssl.training.lock import find_rank
from speechssl.verbs.output import STDOUT, removing_unused
from speechssl.verbs.summary import format_summary

C = TypeVar("C")
P = ParamSpec("P")


def verb(function: Callable[Concatenate[C, P], dict[str, Any]]) -> Callable[Concatenate[C, P], dict[str, Any]]:
    """Put the frame of a verb around a function from its configuration to its result.

    Inside, logs and progress are shown, what a disk refuses is one sentence, and folders that were made for nothing go
    again. It ends in a short table on stderr.

    Raises:
        ConfigError: a key that must be given is missing, or a disk refuses.
    """

    @wraps(function)
    def run(config: C, /, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        show_logs()
        for key in list_keys(type(config)):
            if key.default == MISSING and "." not in key.path:
                check(getattr(config, key.path) not in (MISSING, ""), key.path, f"given ({key.meaning})", "")
        out = str(getattr(config, "out", ""))
        with writing(Path(out or "."), only=REFUSALS), removing_unused():
            result = function(config, *args, **kwargs)
        # `score` without `out` has printed it to stdout.
        is_printed = function.__name__ == "score" and result["out"] == STDOUT
        summary = format_summary(function.__name__, result) if find_rank() == 0 and not is_printed else ""
        if summary:
            log_lines(summary)
        return result

    return run
