"""The command `speechssl`: finds the verb, runs it, prints one JSON line, and turns errors into exit codes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from speechssl.cli.help import format_help, format_verb_help
from speechssl.cli.overrides import is_assignment
from speechssl.cli.run import TRAINING_VERBS, build_config, run_request
from speechssl.cli.sweep_plan import Plan, take_plan
from speechssl.cli.verbs import find_verb
from speechssl.cli.words import Request, read_words
from speechssl.errors import ConfigError, RanksError, SpeechSSLError, StoppedOnRequest
from speechssl.printable import abbreviate, make_printable
from speechssl.training.lock import find_rank
from speechssl.verbs.output import format_line, print_line

FAILED = 1
"""Exit code of what nobody planned; other exceptions than those of `errors` end with it, too."""

JOB = "--job"
"""The word that runs one job of a sweep from its file (`speechssl.cli.jobs`)."""

USER_MISTAKE = 2
"""Exit code of a mistake that the user can mend."""

MAX_SENTENCE = 2000
"""Longest sentence that is printed, in characters."""

INTERRUPTED = 130
TERMINATED = 143
ASKED_TO_STOP = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `speechssl`; those of the process when None.

    Returns:
        the exit code: 0, 2 for the user's mistake, 75, 130 or 143 for a stop on request. Other exceptions pass.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _set_up_logging()
    try:
        return _dispatch(words)
    except SpeechSSLError as error:
        _print_cause(error)
        return USER_MISTAKE
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _print_cause(ConfigError(f"a path must be one that a disk can hold, but is {abbreviate(str(error.filename))}"))
        return USER_MISTAKE
    except RanksError as error:
        _print_cause(error)
        return FAILED
    except StoppedOnRequest as stop:
        _print_as_main(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        _print_as_main("stopped by Ctrl-C")
        return INTERRUPTED


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print_line(format_help())
        return 0
    if words[0] == "--version":
        print_line(_read_version())
        return 0
    if words[0] == JOB:
        return _run_job(words[1:])
    name, rest = words[0], words[1:]
    find_verb(name)
    options = _take_options(rest)
    if "--help" in options:
        print_line(format_verb_help(name))
        return 0
    _check_single_process(name, "-m" in options)
    if "--cfg" not in options:
        _handle_termination(name)
    plan = take_plan(rest)
    if "-m" in options and "--cfg" not in options:
        return _sweep(name, rest, plan)
    if plan.words:
        raise ConfigError(f"{plan.words[0]} must come with -m, but does not")
    return _run_one(read_words(name, rest), rest, options)


def _run_one(requests: list[Request], words: list[str], options: set[str]) -> int:
    if len(requests) > 1 and "-m" not in options:
        sweep = next(word for word in words if is_assignment(word) and "," in word)
        raise ConfigError(
            f"a list of values such as {abbreviate(sweep)} must come with -m, which runs {len(requests)} jobs, "
            "but does not"
        )
    if "--cfg" in options:
        _print_configs(requests)
        return 0
    result = run_request(requests[0])
    if find_rank() == 0:
        print_line(format_line(result))
    return 0


def _run_job(words: list[str]) -> int:
    """Run one job of a sweep, whose file is named."""
    from speechssl.cli.jobs import run_job

    if len(words) != 1:
        raise ConfigError(f"{JOB} must be given one file, but is given {len(words)}")
    _handle_termination(TRAINING_VERBS[0])
    print_line(format_line(run_job(Path(words[0]))))
    return 0


def _sweep(verb: str, words: list[str], plan: Plan) -> int:
    """Run a sweep, and name the jobs that failed."""
    from speechssl.cli.launchers import choose_launcher
    from speechssl.cli.optuna_sweep import run_optuna
    from speechssl.cli.sweep import find_exit_code, run_sweep

    launcher = choose_launcher(plan.choices["launcher"], plan.keys["launcher"])
    match plan.choices["sweeper"]:
        case "basic":
            result = run_sweep(read_words(verb, words), launcher)
        case "optuna":
            result = run_optuna(verb, words, plan.keys["sweeper"], launcher)
        case other:
            raise ConfigError(f"`hydra/sweeper` must be one of basic, optuna, but is {other!r}")
    for job in result["jobs"]:
        if "error" in job:
            values = ", ".join(f"{key}={value}" for key, value in job["values"].items())
            _say(f"job {job['job']} ({values}): {job['error']}")
    print_line(format_line(result))
    return find_exit_code(result["jobs"])


def _take_options(words: list[str]) -> set[str]:
    """Take the few options out of the words: --help, --cfg [job], -m."""
    spellings = {"-h": "--help", "--help": "--help", "--cfg": "--cfg", "-c": "--cfg", "-m": "-m", "--multirun": "-m"}
    options = set()
    for word in list(words):
        if word not in spellings:
            continue
        index = words.index(word)
        if spellings[word] == "--cfg" and words[index + 1 : index + 2] == ["job"]:
            words.pop(index + 1)
        words.pop(index)
        options.add(spellings[word])
    return options


def _print_configs(requests: list[Request]) -> None:
    """Print the resolved configuration of every request as YAML."""
    from speechssl.cli.compose import to_yaml

    text = "---\n".join(to_yaml(build_config(request)) for request in requests).rstrip()
    print_line("\n".join(make_printable(line) for line in text.split("\n")))


def _read_version() -> str:
    from speechssl import __version__

    return f"speechssl {__version__}"


def _check_single_process(verb: str, is_sweep: bool) -> None:
    """Refuse to start as one of several processes what is not made for it."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1" and (verb not in TRAINING_VERBS or is_sweep):
        what = f"`{verb}` with -m" if is_sweep else f"`{verb}`"
        raise ConfigError(
            f"{what} must run in one process, without torchrun, but `WORLD_SIZE` is {world_size} "
            f"(several processes share {' and '.join(TRAINING_VERBS)})"
        )


def _print_cause(error: Exception) -> None:
    """Print what ended this process, unless it is one of several and another has already named the cause."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        _say(str(error))
        return
    from speechssl.training.distributed.roll_call import name_cause

    if name_cause(str(error)):
        _say(f"rank {find_rank()}: {error}")


def _print_as_main(text: str) -> None:
    """Print what every process has to say; one says it."""
    if find_rank() == 0:
        _say(text)


def _say(text: str) -> None:
    """Print one line to stderr, whatever the names in it are; the exit code counts more than the line.

    stderr may go to a file on the very disk that is full.
    """
    try:
        print(f"speechssl: {abbreviate(make_printable(text), MAX_SENTENCE)}", file=sys.stderr, flush=True)
    except OSError:
        # Python flushes stderr once more when it ends, and would change the code then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to what `sys.stderr` is at the time, so that lines go above a progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _set_up_logging() -> None:
    logger = logging.getLogger("speechssl")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
    rank = find_rank()
    logger.setLevel(logging.WARNING if rank else logging.INFO)
    if rank:
        logger.handlers[0].setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))


def _handle_termination(verb: str) -> None:
    """Turn SIGTERM into `StoppedOnRequest`, so that temporary files are cleaned up; children keep the default.

    So does SIGUSR1 for a verb that trains, until the trainer takes the signals over: nothing is to be saved yet.
    """
    owner = os.getpid()
    numbers = [signal.SIGTERM, *([signal.SIGUSR1] if verb in TRAINING_VERBS else [])]

    def stop(signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        name = signal.Signals(signum).name
        raise StoppedOnRequest(f"stopped by {name}", TERMINATED if signum == signal.SIGTERM else ASKED_TO_STOP)

    for number in numbers:
        signal.signal(number, stop)
