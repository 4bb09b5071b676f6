"""What a user's mistake looks like: one sentence that names the key or file, what it must be, and what it is."""

from __future__ import annotations

from speechssl.printable import make_printable


class SpeechSSLError(Exception):
    """A mistake that the user can mend; the command prints its one sentence and exits with 2."""

    def __str__(self) -> str:
        """Return the sentence, on one line whatever the names in it are."""
        return make_printable(super().__str__())


class ConfigError(SpeechSSLError):
    """A key has a value that it cannot have, or two keys contradict each other."""


class DataError(SpeechSSLError):
    """Audio, transcripts or a manifest are not what the command needs."""


class CheckpointError(SpeechSSLError):
    """A checkpoint is missing, damaged, or of another kind than the command needs."""


class CollapseError(SpeechSSLError):
    """Pretraining has collapsed; the message explains the signs and the remedies."""


class NumericalError(SpeechSSLError):
    """Too many updates were skipped for their numbers; the message says why, which utterances, and the remedies."""


class RanksError(Exception):
    """Processes that train together have parted: one has gone or hangs, or their weights differ. Exit code 1."""


class StoppedOnRequest(BaseException):
    """The run saved its state and stopped because it was asked to; the command exits with `exit_code`.

    Like KeyboardInterrupt no `Exception`: a signal may come while another library would catch it as one of its own.

    Args:
        message: one sentence for the user.
        exit_code: 75 (time limit or SIGUSR1), 130 (Ctrl-C) or 143 (SIGTERM).
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
