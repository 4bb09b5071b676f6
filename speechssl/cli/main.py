"""The command `speechssl`: finds the verb, runs it, prints one JSON line, and turns errors into exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from speechssl.cli.help import format_help, format_verb_help
from speechssl.cli.output import format_line
from speechssl.cli.run import TRAINING_VERBS, build_config, run_request
from speechssl.cli.verbs import find_verb
from speechssl.cli.words import Request, is_assignment, read_words
from speechssl.errors import ConfigError, SpeechSSLError, StoppedOnRequest

USER_MISTAKE = 2
"""Exit code of a mistake that the user can mend."""

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
        print(f"speechssl: {error}", file=sys.stderr)
        return USER_MISTAKE
    except StoppedOnRequest as stop:
        print(f"speechssl: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("speechssl: stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        _print(format_help())
        return 0
    if words[0] == "--version":
        _print(_read_version())
        return 0
    name, rest = words[0], words[1:]
    find_verb(name)
    options = _take_options(rest)
    if "--help" in options:
        _print(format_verb_help(name))
        return 0
    _check_single_process()
    if "--cfg" not in options:
        _handle_termination(name)
    requests = read_words(name, rest)
    if len(requests) > 1 and "-m" not in options:
        sweep = next(word for word in rest if is_assignment(word) and "," in word)
        raise ConfigError(
            f"a list of values such as {sweep} must come with -m, which runs {len(requests)} jobs, but does not"
        )
    if "--cfg" in options:
        _print_configs(requests)
        return 0
    _print(format_line(_run(requests, is_sweep="-m" in options)))
    return 0


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


def _run(requests: list[Request], is_sweep: bool) -> Mapping[str, Any]:
    if not is_sweep:
        return run_request(requests[0])
    from speechssl.cli.sweep import run_sweep

    return run_sweep(requests)


def _print_configs(requests: list[Request]) -> None:
    """Print the resolved configuration of every request as YAML."""
    from speechssl.cli.compose import to_yaml

    _print("---\n".join(to_yaml(build_config(request)) for request in requests).rstrip())


def _read_version() -> str:
    from speechssl import __version__

    return f"speechssl {__version__}"


def _check_single_process() -> None:
    """Refuse to start as one of several processes: training in several comes with a later version."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ConfigError(
            f"`WORLD_SIZE` must be 1, since several processes only come with a later version, but is {world_size}"
        )


def _print(text: str) -> None:
    """Print to stdout; a reader that has gone (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to what `sys.stderr` is at the time, so that lines go above a progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _set_up_logging() -> None:
    logger = logging.getLogger("speechssl")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
    logger.setLevel(logging.INFO)


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
