"""The command `speechssl`: finds the verb, runs it, prints one JSON line, and turns errors into exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from speechssl import __version__
from speechssl.cli.help import format_help, format_verb_help
from speechssl.cli.run import TRAINING_VERBS, run_request, run_sweep
from speechssl.cli.verbs import find_verb
from speechssl.cli.words import Request, is_assignment, read_words
from speechssl.errors import ConfigError, RanksError, SpeechSSLError, StoppedOnRequest
from speechssl.printable import abbreviate, make_printable
from speechssl.progress import show_logs
from speechssl.training.lock import find_rank
from speechssl.verbs.output import STDOUT, format_line, print_line

FAILED = 1
"""Exit code of what nobody planned; other exceptions than those of `errors` end with it, too."""

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
    show_logs(always=True)
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
        print_line(f"speechssl {__version__}")
        return 0
    name, rest = words[0], words[1:]
    find_verb(name)
    options = _take_options(rest)
    if options & {"--help", "--help all"}:
        print_line(format_verb_help(name, rest, "--help all" in options))
        return 0
    is_sweep = "-m" in options
    _check_single_process(name, is_sweep)
    if "--cfg" not in options:
        _handle_termination(name)
    requests = read_words(name, rest)
    if len(requests) > 1 and not is_sweep:
        sweep = next(word for word in rest if is_assignment(word) and "," in word)
        raise ConfigError(
            f"a list of values such as {abbreviate(sweep)} must come with -m, which runs {len(requests)} jobs, "
            "but does not"
        )
    if "--cfg" in options:
        _print_configs(requests)
        return 0
    result = run_sweep(requests) if is_sweep else run_request(requests[0])
    if find_rank() == 0:
        _print_result(result, "--json" in options)
    return 2 if is_sweep and any("error" in row for row in result["jobs"]) else 0


def _print_result(result: dict[str, Any], is_asked: bool) -> None:
    """Print the JSON line where a script may read it: a person at a terminal has the table that the verb ended in.

    Where stdout has texts (`transcribe`, `align`) or a table (`score`, `similar`), the line goes to stderr.
    """
    if not is_asked and sys.stdout.isatty():
        return
    if STDOUT in (result.get("texts"), result.get("out")):
        print(format_line(result), file=sys.stderr, flush=True)
    else:
        print_line(format_line(result))


def _take_options(words: list[str]) -> set[str]:
    """Take the few options out of the words: --help [all], --cfg [job], --json, -m."""
    spellings = {"-h": "--help", "-c": "--cfg", "--multirun": "-m"}
    options = set()
    for word in list(words):
        option = spellings.get(word, word)
        if option not in ("--help", "--cfg", "--json", "-m"):
            continue
        index = words.index(word)
        if option == "--cfg" and words[index + 1 : index + 2] == ["job"]:
            words.pop(index + 1)
        if option == "--help" and words[index + 1 : index + 2] == ["all"]:
            option = f"{option} {words.pop(index + 1)}"
        words.pop(index)
        options.add(option)
    return options


def _print_configs(requests: list[Request]) -> None:
    """Print the resolved configuration of every request as YAML."""
    from speechssl.cli.compose import build_config, to_yaml

    text = "---\n".join(to_yaml(build_config(request)) for request in requests).rstrip()
    print_line("\n".join(make_printable(line) for line in text.split("\n")))


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
