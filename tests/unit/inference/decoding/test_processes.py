"""Beam search over processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechssl.config.decoding import DecodingConfig
from speechssl.errors import ConfigError
from speechssl.inference.decoding.beam import BeamSearch
from speechssl.inference.decoding.hypotheses import FloatArray, Hypothesis
from speechssl.inference.decoding.ngram_training import train_ngram
from speechssl.inference.decoding.processes import choose_workers, searching, settle
from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary

CONFIG = DecodingConfig(name="beam", lm="x", beam_width=8)
SEARCH = BeamSearch(Vocabulary(FAIRSEQ_SYMBOLS), CONFIG, train_ngram(["SEE THE SEA", "I SEE"], 2))


def make_log_probs(seed: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((5 + 3 * (seed % 5), 32))).log_softmax(-1).numpy()


def run(num_workers: int) -> list[tuple[int, list[Hypothesis]]]:
    with searching(SEARCH, num_workers) as submit:
        return list(settle(((k, submit(make_log_probs(k), 2)) for k in range(30)), num_workers))


def test_processes_give_what_one_gives_in_order() -> None:
    alone = run(0)
    assert [k for k, _ in alone] == list(range(30))
    assert run(2) == alone
    assert not multiprocessing.active_children()


def test_other_weights_are_those_of_a_search_of_their_own() -> None:
    other = replace(SEARCH.config, lm_weight=2.0, word_bonus=1.5)
    expected = [SEARCH.reweigh(other).list_best(make_log_probs(k), 2) for k in range(6)]
    assert expected != [SEARCH.list_best(make_log_probs(k), 2) for k in range(6)]
    for num_workers in (0, 2):
        with searching(SEARCH, num_workers) as submit:
            assert [submit(make_log_probs(k), 2, other).result() for k in range(6)] == expected
            assert submit(make_log_probs(0), 2, SEARCH.config).result() == SEARCH.list_best(make_log_probs(0), 2)


def test_results_come_while_more_is_begun_and_not_too_much_is() -> None:
    begun: list[Future[int]] = []

    def begin() -> Iterator[tuple[int, Future[int]]]:
        for k in range(20):
            begun.append(Future())
            if k >= 12:
                begun[k - 12].set_result(k - 12)
            yield k, begun[-1]
        for k in range(8, 20):
            begun[k].set_result(k)

    results = settle(begin(), 3)
    assert next(results) == (0, 0)
    assert len(begun) == 13, "12 may be waiting"
    assert list(results) == [(k, k) for k in range(1, 20)]


def search_and(then: Callable[[], None], frame_size: int = 32) -> None:
    """Search once in two processes, do something, and search once more."""
    with searching(SEARCH, 2) as submit:
        submit(np.zeros((4, frame_size)), 1).result()
        then()
        submit(np.zeros((4, 32)), 1).result()


def interrupt() -> None:
    raise KeyboardInterrupt


def kill_all() -> None:
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def test_an_error_in_a_process_or_here_ends_all_of_them() -> None:
    with pytest.raises(IndexError):
        search_and(lambda: None, frame_size=3)
    with pytest.raises(KeyboardInterrupt):
        search_and(interrupt)
    assert not multiprocessing.active_children()


def test_a_process_that_was_killed_is_a_sentence() -> None:
    with pytest.raises(
        ConfigError, match="`decoding.num_workers` must be processes that the machine can keep, but one"
    ):
        search_and(kill_all)
    assert not multiprocessing.active_children()


def test_processes_end_when_the_main_one_is_killed() -> None:
    code = """
import multiprocessing, sys, time
from tests.unit.inference.decoding.test_processes import SEARCH, make_log_probs, searching
with searching(SEARCH, 2) as submit:
    submit(make_log_probs(1), 1).result()
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 2
        main.send_signal(signal.SIGKILL)
    for _ in range(600):
        if not [pid for pid in workers if _is_alive(pid)]:
            return
        time.sleep(0.05)
    raise AssertionError("they go on")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_as_many_processes_as_there_are_cores_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for cores, given, num_utterances, chosen in (
        (4, -1, 100, 3), (64, -1, 100, 8), (1, -1, 100, 0), (4, -1, 2, 2), (4, -1, 1, 0), (1, 5, 100, 5), (4, 0, 9, 0),
    ):  # fmt: skip
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert choose_workers(given, num_utterances) == chosen
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert choose_workers(-1, 100) == 0
    with pytest.raises(ConfigError, match="`decoding.num_workers` must be 0 on this system, which forks none"):
        choose_workers(3, 100)
