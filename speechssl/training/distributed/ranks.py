"""The processes that make one update together: who this one is, and the few things that they tell each other.

`torchrun` starts them and says in the environment who they are. On one process everything here gives back what it got,
so that the trainer need not ask how many there are. Nothing is pickled: only tensors travel.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from speechssl.config.training import TrainingConfig
from speechssl.devices import resolve_device
from speechssl.errors import ConfigError, RanksError, SpeechSSLError, StoppedOnRequest
from speechssl.objectives.protocol import LossTerms
from speechssl.processes import signal_at_parents_end
from speechssl.training.distributed.roll_call import RollCall

FIRST_TIMEOUT_S = 300.0
"""How long a rank waits for the others until the first update is made: reading manifests and starting loaders takes
one longer than another. After it `training.timeout_s` holds."""


class Ranks:
    """One process among those of a run; by default the only one.

    A context: on its way out an error is named once, with its rank, and a rank whose partner has gone ends too.

    Args:
        device: where this process computes.
        rank, size: which of how many it is.
        roll_call: finds out who is still there; None on one process.

    Attributes:
        began: `time.monotonic()` of the beginning of the run in this process: before models and manifests are read.
    """

    def __init__(
        self, device: torch.device | None = None, rank: int = 0, size: int = 1, roll_call: RollCall | None = None
    ) -> None:
        self.device = device or torch.device("cpu")
        self.rank, self.size, self.roll_call = rank, size, roll_call
        self.timeout_s = FIRST_TIMEOUT_S
        self.began = time.monotonic()

    @property
    def is_alone(self) -> bool:
        """Whether this process may stop wherever it stands, since no other waits for it."""
        return self.size == 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.roll_call is None:
            return
        if isinstance(error, Exception) and not isinstance(error, StoppedOnRequest):
            self._explain(error)
        else:
            dist.destroy_process_group()

    def sum_terms(self, terms: LossTerms) -> LossTerms:
        """Add up the terms of all ranks, in float64 and in one call; the result is the same on every rank."""
        if self.size == 1:
            return terms
        parts = [terms.sum, terms.count, *terms.stats.values()]
        flat = torch.cat([part.detach().double().reshape(-1).to(self.device) for part in parts])
        dist.all_reduce(flat)
        pieces = torch.split(flat, [part.numel() for part in parts])
        total, count, *stats = (piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True))
        return LossTerms(total, count, dict(zip(terms.stats, stats, strict=True)))

    def find_max(self, number: int) -> int:
        """Find the largest of the numbers that the ranks give."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def gather(self, numbers: Tensor) -> Tensor:
        """Put the numbers of all ranks, (P,) each, side by side: (ranks, P)."""
        if self.size == 1:
            return numbers[None]
        rows = [torch.empty_like(numbers) for _ in range(self.size)]
        dist.all_gather(rows, numbers)
        return torch.stack(rows)

    def broadcast(self, text: str) -> str:
        """Give every rank the text of rank 0."""
        if self.size == 1:
            return text
        length = self.find_max(len(text.encode()) if self.is_main else 0)
        letters = torch.zeros(length, dtype=torch.uint8, device=self.device)
        if self.is_main:
            letters.copy_(torch.tensor(list(text.encode()), dtype=torch.uint8))
        dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode()

    def gather_lines(self, lines: Sequence[str]) -> list[str]:
        """Put the lines of all ranks one behind the other; none holds a line break."""
        if self.size == 1:
            return list(lines)
        data = "\n".join(lines).encode()
        letters = torch.zeros(self.find_max(len(data)), dtype=torch.uint8, device=self.device)
        letters[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(data)], device=self.device))[:, 0].tolist()
        rows = zip(self.gather(letters).tolist(), lengths, strict=True)
        return [line for row, length in rows for line in bytes(row[:length]).decode().split("\n") if line]

    def wait_for_all(self) -> None:
        """Wait until every rank has come here."""
        self.find_max(0)

    def agree_to_stop(self, reason: tuple[str, int] | None) -> tuple[str, int] | None:
        """Say why to stop and the exit code, if any rank has a reason; all ranks get the same code."""
        code = self.find_max(reason[1] if reason else 0)
        if code == 0 or (reason is not None and reason[1] == code):
            return reason if code else None
        return "stopped on the request of another rank", code

    def set_timeout(self, seconds: float) -> None:
        """Wait no longer than this for other ranks from now on."""
        if self.size > 1 and seconds != self.timeout_s:
            self.timeout_s = seconds
            _set_timeout(timedelta(seconds=seconds))

    def _explain(self, error: Exception) -> None:
        """Tell the other ranks what ended this one; a rank that only lost contact finds out who has gone."""
        assert self.roll_call is not None, "one process has nobody to tell"
        if not is_lost_contact(error):
            self.roll_call.name_cause(format_cause(error))
            return
        problem = _shorten(error).rpartition("] ")[2].partition(". ")[0]
        raise RanksError(self.roll_call.find_missing(problem)) from error


def join_ranks(device: str) -> Ranks:
    """Join the processes that `torchrun` started, or be the only one.

    Args:
        device: of the key `device`; with several processes each takes the GPU of its local rank.

    Raises:
        ConfigError: `device` names one GPU for several processes, or one that is not there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(resolve_device(device))
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    own = _choose_device(device, local_rank)
    if int(os.environ.get("LOCAL_WORLD_SIZE", size)) == size and sys.platform == "linux":
        # All on one machine: what gloo opens is not for others.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Without its launcher nobody would end this process any more: it saves and stops.
        signal_at_parents_end(signal.SIGTERM)
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=FIRST_TIMEOUT_S)))
    # A second run in the same processes must not find the addresses of the first.
    number = store.add(f"joined/{rank}", 1)
    is_gpu = own.type == "cuda"
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        store=PrefixStore(f"training/{number}", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=FIRST_TIMEOUT_S),
        device_id=own if is_gpu else None,
    )
    return Ranks(own, rank, size, RollCall(store, rank, size))


def check_division(ranks: Ranks, training: TrainingConfig) -> None:
    """Check that the ranks can share an update's sub-batches out whole.

    Raises:
        ConfigError: they cannot; the message has the numbers that can.
    """
    whole = training.sub_batches_per_update
    if whole % ranks.size:
        divisors = [str(number) for number in range(1, whole + 1) if whole % number == 0]
        raise ConfigError(
            f"the number of processes must divide the {whole} sub-batches of an update (`training.update_s / "
            f"training.sub_batch_s`), so be one of {', '.join(divisors)}, but is {ranks.size}"
        )


def is_lost_contact(error: BaseException) -> bool:
    """Say whether an error means that another rank has gone: it then says nothing about this one."""
    words = str(error)
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(mark in words for mark in ("gloo", "NCCL", "by peer", "ProcessGroup"))
    )


def format_cause(error: BaseException) -> str:
    """Say what ended this rank: the sentence of a user's mistake, else kind and message."""
    if isinstance(error, SpeechSSLError | RanksError):
        return str(error)
    return f"{type(error).__name__}: {_shorten(error)}"


def _shorten(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _choose_device(device: str, local_rank: int) -> torch.device:
    name = device.partition(":")[0]
    if name not in ("auto", "cpu", "cuda") or name != device:
        raise ConfigError(f"`device` must be auto, cpu or cuda with several processes, but is {device!r}")
    if resolve_device(device).type == "cpu":
        return torch.device("cpu")
    own = resolve_device(f"cuda:{local_rank}")
    torch.cuda.set_device(own)
    return own


def _set_timeout(timeout: timedelta) -> None:
    try:
        from torch.distributed import set_timeout
    except ImportError:  # torch before 2.14
        from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout
    set_timeout(timeout, dist.group.WORLD)
