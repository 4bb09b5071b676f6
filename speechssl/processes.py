"""What a process does when the one that started it ends."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_PDEATHSIG = 1


def signal_at_parents_end(number: int) -> None:
    """Get signal `number` when the parent of this process ends, however that may be; only Linux can do it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
