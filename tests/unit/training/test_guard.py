"""The numerical guard: what it skips, what it lets pass, when it stops (targets N1, N2 and N5)."""

from __future__ import annotations

import math
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.errors import NumericalError
from speechssl.training.guard import (
    LEAST,
    LEAST_SIGMA,
    WINDOW,
    NumericalGuard,
    compute_limit,
    find_broken,
    name_utterances,
)
from tests.cases import each_case


def healthy(number: int, seed: int = 0) -> list[tuple[float, float]]:
    """Losses that fall and gradient norms with the scatter of real ones: a log-normal of 25 %."""
    rng = np.random.default_rng(seed)
    return [
        (6.7 - 2.5 * (1 - math.exp(-k / 300)) + rng.normal(0, 0.15), 3.0 * math.exp(rng.normal(0, 0.25)))
        for k in range(number)
    ]


@pytest.fixture
def guard() -> NumericalGuard:
    guard = NumericalGuard(spike_sigmas=10.0)
    assert not any(guard.judge(update, *pair) for update, pair in enumerate(healthy(200), 1))
    return guard


@each_case("bad, place", product((math.nan, math.inf, -math.inf), (0, 1)))
def test_a_value_that_is_not_finite_is_skipped_from_the_first_update_on(bad: float, place: int) -> None:
    guard, pair = NumericalGuard(), [5.0, 1.0]
    pair[place] = bad
    assert guard.judge(1, *pair) == f"{('loss', 'grad_norm')[place]} is {bad}"
    assert guard.judge(2, 5.0, 1.0) == ""
    assert (guard.skipped, guard.in_row) == (1, 0)


@each_case("pair", [(450.0, 3.0), (4.5, 300.0)])
def test_a_spike_is_skipped_and_the_window_is_not_poisoned(guard: NumericalGuard, pair: tuple[float, float]) -> None:
    assert "a spike above" in guard.judge(201, *pair)
    later = healthy(210)[200:]
    assert [guard.judge(202 + k, *values) for k, values in enumerate(later)] == [""] * 10


def test_one_nan_does_not_decide_about_the_updates_after_it(guard: NumericalGuard) -> None:
    assert guard.judge(201, math.nan, math.nan)
    assert [guard.judge(202 + k, *pair) for k, pair in enumerate(healthy(340)[200:])] == [""] * 140
    assert guard.judge(342, 450.0, 3.0)


def test_without_sigmas_nothing_finite_is_a_spike() -> None:
    guard = NumericalGuard(spike_sigmas=0.0)
    assert not any(guard.judge(k, 5.0, 1.0) for k in range(1, 200))
    assert guard.judge(200, 1e30, 1e30) == ""


def test_a_curve_that_is_nearly_constant_makes_no_spike_of_its_next_digit() -> None:
    guard = NumericalGuard(spike_sigmas=10.0)
    assert not any(guard.judge(k, 5.0, 1.0) for k in range(1, 200))
    assert guard.judge(200, 5.1, 2.0) == ""
    assert guard.judge(201, 5.0, 100.0)


def test_what_is_usual_needs_64_updates() -> None:
    guard = NumericalGuard(spike_sigmas=10.0)
    assert not any(guard.judge(k, 5.0, 1.0) for k in range(1, LEAST))
    assert guard.judge(LEAST, 5.0, 100.0) == ""
    assert guard.judge(LEAST + 1, 5.0, 100.0)


def test_what_is_usual_starts_again_where_more_is_trained() -> None:
    guard = NumericalGuard(spike_sigmas=10.0, restart_at=(101,))
    assert not any(guard.judge(k, 5.0, 1.0) for k in range(1, 101))
    assert guard.judge(101, 5.0, 100.0) == ""
    other = NumericalGuard(spike_sigmas=10.0)
    assert not any(other.judge(k, 5.0, 1.0) for k in range(1, 101))
    assert other.judge(101, 5.0, 100.0)


def test_the_window_is_of_the_last_128() -> None:
    guard = NumericalGuard(spike_sigmas=10.0)
    assert not any(guard.judge(k, 5.0, 1.0) for k in range(1, 100))
    assert not any(guard.judge(k, 5.0, 2.5) for k in range(100, 100 + WINDOW))
    assert guard.norms == [2.5] * WINDOW
    assert compute_limit(guard.norms, 10.0) == pytest.approx(2.5 * math.exp(10 * LEAST_SIGMA))


def test_five_in_a_row_stop_the_run_and_four_do_not() -> None:
    guard = NumericalGuard()
    for update in range(1, 10):
        assert bool(guard.judge(update, math.nan if update != 5 else 5.0, 1.0)) == (update != 5)
        guard.check_count(update, "loss is nan", ["a"])
    guard.judge(10, math.nan, 1.0)
    with pytest.raises(
        NumericalError, match=r"`training.lr` must be .* the last 5 were skipped, .*loss is nan.* a, b:"
    ):
        guard.check_count(10, "loss is nan", ["a", "b"])


def test_one_in_a_thousand_stops_a_run_that_has_made_a_thousand() -> None:
    guard = NumericalGuard()
    guard.skipped, guard.in_row = 6, 1
    guard.check_count(1_000, "loss is nan", ["a"])
    with pytest.raises(NumericalError, match="6 of them were skipped"):
        guard.check_count(1_001, "loss is nan", ["a"])
    guard.skipped = 5
    guard.check_count(1_001, "loss is nan", ["a"])
    guard.skipped = 20
    guard.check_count(20_000, "loss is nan", ["a"])
    guard.skipped = 21
    with pytest.raises(NumericalError, match="21 of them were skipped"):
        guard.check_count(20_000, "loss is nan", ["a"])


def test_state_goes_through_a_checkpoint(guard: NumericalGuard) -> None:
    guard.judge(201, math.nan, 1.0)
    other = NumericalGuard(spike_sigmas=10.0)
    other.load_state({name: value.clone() for name, value in guard.state().items()})
    assert vars(other) == vars(guard)
    for missing in guard.state():
        left = {name: value for name, value in guard.state().items() if name != missing}
        with pytest.raises(KeyError):
            NumericalGuard().load_state(left)


def test_the_forward_that_is_not_finite_is_found() -> None:
    batches: list[Any] = [SimpleNamespace(ids=["a", "b"]), SimpleNamespace(ids=["c"])]
    good, bad = SimpleNamespace(sum=torch.tensor(1.0)), SimpleNamespace(sum=torch.tensor(math.nan))
    parts: list[Any] = [good, bad]
    assert find_broken(parts, batches) == ["c"]
    assert find_broken([good, good], batches) == []  # type: ignore[list-item]


def test_twenty_utterances_are_named() -> None:
    ids = [f"u{k}" for k in range(23)]
    assert name_utterances(ids).endswith("u19 and 3 more")
    assert name_utterances(ids[:20]).endswith("u18, u19")
