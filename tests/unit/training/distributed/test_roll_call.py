"""The first cause is named once, and silent ranks are found (and killed where that is possible)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import torch.distributed as dist

from speechssl.training.distributed import roll_call
from speechssl.training.distributed.roll_call import RollCall, name_cause


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    monkeypatch.setattr(roll_call, "ANSWER_S", 0.3)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test's own process must go on hearing SIGTERM
    return dist.HashStore()


def test_the_first_cause_stands(store: dist.Store) -> None:
    first, second = RollCall(store, 0, 2), RollCall(store, 1, 2)
    assert second.name_cause("`x` must be y")
    assert second.name_cause("`x` must be y")
    assert not first.name_cause("lost contact")


def test_a_silent_rank_is_named_and_killed(store: dist.Store) -> None:
    hung = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        calls = [RollCall(store, rank, 3) for rank in range(3)]
        calls[1].store.set("place/1", f"{socket.gethostname()} {hung.pid}")
        calls[2].store.set("here/2", "")
        sentence = calls[0].find_missing("Timed out")
        assert sentence == (
            f"lost contact with other ranks: rank 1 ({socket.gethostname()} {hung.pid}) has ended without a word or "
            "hangs (Timed out)"
        )
        assert hung.wait(5.0) == -signal.SIGKILL
        assert not calls[2].name_cause("lost contact")
    finally:
        hung.kill()
        hung.wait()


def test_nobody_on_another_machine_is_touched(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    calls = [RollCall(store, rank, 2) for rank in range(2)]
    calls[1].store.set("place/1", f"another-machine {os.getpid()}")
    assert "rank 1 (another-machine " in calls[0].find_missing("Timed out")
    assert killed == []


def test_a_cause_that_is_known_ends_the_wait(store: dist.Store) -> None:
    calls = [RollCall(store, rank, 2) for rank in range(2)]
    calls[1].name_cause("`x` must be y")
    assert "all ranks are there" in calls[0].find_missing("closed")
    assert not calls[0].name_cause(calls[0].find_missing("closed"))


def test_all_who_answer_are_let_be(store: dist.Store) -> None:
    calls = [RollCall(store, rank, 2) for rank in range(2)]
    answer = threading.Timer(0.1, lambda: calls[1].store.set("here/1", ""))
    answer.start()
    assert "all ranks are there" in calls[0].find_missing("closed")
    answer.join()


def test_without_a_launcher_every_cause_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert name_cause("`x` must be y")
