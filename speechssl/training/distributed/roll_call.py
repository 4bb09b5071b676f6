"""Who ended a run of several processes: the first cause is named once, and ranks that went silently are found.

The processes talk over the small key-value store that they met in, which works on when a collective has failed. With
`torchrun` it lives in the launcher and survives every one of them.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

ANSWER_S = 2.0
"""How long the ranks that are still there have to say so."""


class RollCall:
    """Names what ended a run.

    Args:
        store: that the ranks met in.
        rank, size: which of how many this one is.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = PrefixStore("roll call", store), rank, size
        self.store.set(f"place/{rank}", f"{socket.gethostname()} {os.getpid()}")

    def name_cause(self, cause: str) -> bool:
        """Offer what ended this rank as the cause; say whether it is the first one, which is to be printed."""
        own = f"rank {self.rank}: {cause}"
        return bool(self.store.compare_set("cause", "", own).decode() == own)

    def find_missing(self, problem: str) -> str:
        """Find out who has gone, after a collective failed with `problem`, and offer that as the cause.

        A rank that hangs on this machine is killed: `torchrun` would wait 30 s for it, and a stopped process does not
        hear SIGTERM.

        Returns:
            A sentence for the user.
        """
        # torchrun ends all ranks as soon as one has gone; what happened must be said first.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.store.set(f"here/{self.rank}", "")
        silent = self._wait_for_answers()
        places = {rank: self.store.get(f"place/{rank}").decode() for rank in silent}
        for place in places.values():
            _kill_here(place)
        named = ", ".join(f"rank {rank} ({place})" for rank, place in places.items())
        who = f"{named} has ended without a word or hangs" if silent else "all ranks are there"
        sentence = f"lost contact with other ranks: {who} ({problem})"
        self.name_cause(sentence)
        return sentence

    def _wait_for_answers(self) -> list[int]:
        """Wait until every rank has answered or a cause is known; list those that have not."""
        deadline = time.monotonic() + ANSWER_S
        silent = [rank for rank in range(self.size) if rank != self.rank]
        while silent and time.monotonic() < deadline and not self.store.check(["cause"]):
            silent = [rank for rank in silent if not self.store.check([f"here/{rank}"])]
            time.sleep(0.05)
        return [] if self.store.check(["cause"]) else silent


def name_cause(cause: str) -> bool:
    """Offer what ended this process as the cause of the whole job's end; say whether it is the first one.

    For errors before the ranks met, or after they parted. Without a launcher that keeps a store every cause is first.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    with suppress(dist.DistError):
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=10)))
        return RollCall(store, rank, size).name_cause(cause)
    return True


def _kill_here(place: str) -> None:
    """Kill the process at `place` ("host pid"), if this is its machine and it is still there."""
    host, _, pid = place.rpartition(" ")
    if host == socket.gethostname():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(int(pid), signal.SIGKILL)
