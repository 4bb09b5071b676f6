"""What every verb has around it, whether the command line or Python calls it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from speechssl.config.knobs import MISSING, check, list_keys
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.durable import REFUSALS, writing
from speechssl.errors import ConfigError
from speechssl.printable import log_lines
from speechssl.progress import show_logs
from speechssl.training.lock import hold_folder, remove_unused
from speechssl.verbs.output import check_writable, removing_unused
from speechssl.verbs.summary import format_summary

C = TypeVar("C")
P = ParamSpec("P")


def verb(function: Callable[Concatenate[C, P], dict[str, Any]]) -> Callable[Concatenate[C, P], dict[str, Any]]:
    """Put the frame of a verb around a function from its configuration to its result.

    Inside, logs and progress are shown, a training run holds its folder, what a disk refuses is one sentence, and
    folders that were made for nothing go again. It ends in a short table on stderr.

    Raises:
        ConfigError: a key that must be given is missing, a disk refuses, or another run holds the folder.
    """

    @wraps(function)
    def run(config: C, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        show_logs()
        for key in list_keys(type(config)):
            if key.default == MISSING and "." not in key.path:
                check(getattr(config, key.path) not in (MISSING, ""), key.path, f"given ({key.meaning})", "")
        out = str(getattr(config, "out", ""))
        is_main = os.environ.get("RANK", "0") == "0"
        is_run = is_main and isinstance(config, (PretrainConfig, FinetuneConfig))
        with writing(Path(out or "."), only=REFUSALS), removing_unused(), _hold(out) if is_run else nullcontext():
            result = function(config, *args, **kwargs)
        if is_main:
            log_lines(format_summary(function.__name__, result))
        return result

    return run


@contextmanager
def _hold(out: str) -> Iterator[None]:
    """Make the folder of a run and hold it while inside; a new one in which nothing was written goes again.

    Raises:
        ConfigError: it is a file, cannot be written, or another run is using it.
    """
    folder = Path(out)
    is_new = not os.path.exists(folder)
    if not is_new and not os.path.isdir(folder):
        raise ConfigError(f"`out` must be a folder, but {folder} is a file")
    check_writable(folder)
    with hold_folder(folder):
        try:
            yield
        finally:
            if is_new:
                remove_unused(folder)
