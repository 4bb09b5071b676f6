"""What a process does when the one that started it ends, and what its threads do while they wait."""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1

SPIN_KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how the threads of OpenMP wait."""


def limit_spinning() -> None:
    """Let threads that have nothing to do sleep soon, unless the user has said how they wait.

    By default they keep their cores busy while they wait for each other, and beside another process that wants one,
    the thread that all wait for does not get it. OpenMP reads its variables once, when torch is imported; processes
    that are started later inherit them. GNU's counts rounds of its loop, Intel's and LLVM's milliseconds.
    """
    if "torch" not in sys.modules and not any(os.environ.get(key) for key in SPIN_KEYS):
        os.environ["GOMP_SPINCOUNT"] = "1000"
        os.environ["KMP_BLOCKTIME"] = "0"


def signal_at_parents_end(number: int) -> None:
    """Get signal `number` when the parent of this process ends, however that may be; only Linux can do it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
