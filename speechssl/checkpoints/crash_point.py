"""Named points at which a test lets the process die, as a power cut would."""

from __future__ import annotations

import os
import signal

VARIABLE = "SPEECHSSL_CRASH_AT"
"""`<point>` dies when it is reached first, `<point>:<n>` at the n-th time. For tests; without it nothing happens."""

_reached: dict[str, int] = {}


def crash_point(name: str) -> None:
    """Die by SIGKILL here if the environment asks for it."""
    wanted, _, count = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    _reached[name] = _reached.get(name, 0) + 1
    if _reached[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
