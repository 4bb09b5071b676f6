"""Workers that cannot work, die or stop: one sentence, or an end when one is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from speechssl.data import workers
from speechssl.data.workers import receive
from speechssl.errors import ConfigError, DataError
from tests.cases import each_case


class Scripted(Dataset[Any]):
    """Item n, or what a script says instead."""

    def __init__(self, **script: str) -> None:
        self.script = script

    def __getitem__(self, index: int) -> torch.Tensor:
        what = self.script.get(f"at_{index}", "")
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, what))
        if what == "exit":
            os._exit(3)
        if what == "bug":
            raise KeyError("a bug in the test")
        return torch.full((1000,), index)

    def __len__(self) -> int:
        return 12


def load(num_workers: int = 2, **script: str) -> DataLoader[Any]:
    return DataLoader(Scripted(**script), batch_size=None, num_workers=num_workers, prefetch_factor=2)


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    """Whatever happens, no worker stays."""
    before = list_children()
    yield
    assert list_children() <= before


def list_children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_everything_comes_in_order() -> None:
    assert [int(item[0]) for item in receive(load(), never)] == list(range(12))


def test_workers_end_where_nothing_more_is_asked_for() -> None:
    before, items = list_children(), receive(load(), never)
    assert int(next(items)[0]) == 0
    assert list_children() > before
    items.close()
    assert list_children() == before


@each_case(
    "index, script, sentence",
    [
        # Before the first item torch looks only every five seconds whether its workers live.
        (0, "SIGKILL", r"one of the 2 was killed by SIGKILL \(as Linux does where memory runs out\)"),
        (7, "SIGKILL", "one of the 2 was killed by SIGKILL"),
        (7, "SIGSEGV", "one of the 2 was killed by SIGSEGV"),
        (7, "exit", "one of the 2 was ended with exit code 3"),
    ],
)
def test_a_death_is_one_sentence(script: str, sentence: str, index: int) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        list(receive(load(**{f"at_{index}": script}), never))
    assert "\n" not in str(caught.value)


def test_a_bug_keeps_its_kind() -> None:
    with pytest.raises(KeyError, match="a bug in the test"):
        list(receive(load(at_4="bug"), never))


def test_a_request_to_stop_is_heard_while_workers_are_stopped() -> None:
    start = time.monotonic()
    seen = list(receive(load(at_3="stop", at_4="stop"), lambda: time.monotonic() > start + 1.0))
    assert len(seen) <= 3, "what a stopped worker has sent cannot be fetched"
    assert time.monotonic() < start + 30.0


def test_a_signal_is_heard_while_workers_are_stopped() -> None:
    """Before the trainer listens, handlers raise."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(TimeoutError):
            list(receive(load(at_3="stop", at_4="stop"), never))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_workers_that_deliver_nothing_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "SLOW_S", 0.3)
    monkeypatch.setattr(workers, "STALLED_S", 1.0)
    with pytest.raises(DataError, match="none of the 2 has delivered anything for 1 s"):
        list(receive(load(at_0="stop", at_1="stop"), never))
    assert [record.message for record in caplog.records] == [
        "no audio for 0.3 s: the processes that read it are slow, or stopped"
    ]


def test_too_few_processes_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(ConfigError, match="as many processes as the system lets start, but is 2 .*temporarily"):
        list(receive(load(), never))


HANDLES = """
import resource, sys
from tests.unit.data.test_workers import load, never, receive
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
try:
    print(len(list(receive(load(num_workers=6), never))))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_too_few_handles_are_one_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", HANDLES], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("ConfigError `data.num_workers` must be"), done.stdout
    assert "ulimit -n" in done.stdout
