"""A process that has imported everything once and forks a trainer for each run: a kill costs no import of torch.

It computes nothing itself and has no threads, so that each child begins as a fresh process would.

Protocol: one JSON line a request on stdin, one a reply on stdout. `{"words", "env", "log", "look", "file_bytes"}` forks
and answers `{"pid"}`; `{"wait": pid}` answers `{"code"}`, the exit code, or minus the signal that killed the run.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

# What a run imports on the way: the optimizer's first step, the curves, the report's pictures.
import librosa.filters  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import speechssl.cli.compose
import speechssl.verbs.finetune
import speechssl.verbs.pretrain  # noqa: F401
from speechssl.cli.main import main
from speechssl.training.stop import StopFlag


def serve() -> None:
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            reply = {"code": os.waitstatus_to_exitcode(status)}
        else:
            reply = {"pid": fork(request)}
        print(json.dumps(reply), flush=True)


def fork(request: dict[str, Any]) -> int:
    """Fork a child that runs one command, with its output in a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["env"])
        if request["file_bytes"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], resource.RLIM_INFINITY))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop_at_look(request["look"])
        code = main(request["words"])
    except BaseException:  # noqa: BLE001  the child ends here, whatever happened
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def stop_at_look(number: int) -> None:
    """Ask the run to stop when the trainer looks for the `number`-th time whether it should; 0 never does."""
    if not number:
        return
    answer, looks = StopFlag.is_requested.fget, iter(range(1, 1_000_000))  # type: ignore[attr-defined]

    def look(self: StopFlag) -> bool:
        if next(looks) == number:
            self.signal = signal.SIGUSR1
        return bool(answer(self))

    StopFlag.is_requested = property(look)  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    serve()
