"""The plan of the data: a pure function of (lengths, seed, update)."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import numpy as np

from speechssl.data.sampler import PlanConfig, UpdatePlanner, round_up
from tests.cases import each_case

CONFIG = PlanConfig(
    seed=1, sub_batch_samples=160_000, sub_batches_per_update=4, forward_samples=160_000, max_samples=64_000
)


def draw_lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(16_000, 200_000, count)


def test_an_epoch_holds_every_utterance_once() -> None:
    planner = UpdatePlanner(draw_lengths(331), CONFIG)
    size = planner.sub_batches_per_epoch
    for epoch in range(3):
        rows = [row for n in range(epoch * size, (epoch + 1) * size) for row in planner.find_sub_batch(n).indices]
        assert Counter(rows) == Counter(range(331))


def test_sub_batches_fit_and_crop_to_their_shortest_row() -> None:
    lengths = draw_lengths(331)
    planner = UpdatePlanner(lengths, CONFIG)
    for number in range(planner.sub_batches_per_epoch):
        sub_batch = planner.find_sub_batch(number)
        rows = np.minimum(lengths[list(sub_batch.indices)], 64_000)
        assert len(rows) * rows.max() <= CONFIG.sub_batch_samples
        assert sub_batch.crop_samples == rows.min()


def test_any_update_can_be_asked_for_directly() -> None:
    lengths = draw_lengths(331)
    in_order = UpdatePlanner(lengths, CONFIG)
    plans = [in_order.plan_update(update) for update in range(1, 200)]
    fresh = UpdatePlanner(lengths, CONFIG)
    assert fresh.plan_update(123) == plans[122]
    assert fresh.plan_update(7) == plans[6]


def test_order_and_company_change_with_epoch_and_seed() -> None:
    lengths = np.full(200, 64_000)
    planner = UpdatePlanner(lengths, CONFIG)
    size = planner.sub_batches_per_epoch
    first = [planner.find_sub_batch(n).indices for n in range(size)]
    assert first != [planner.find_sub_batch(n + size).indices for n in range(size)]
    other = UpdatePlanner(lengths, replace(CONFIG, seed=2))
    assert first != [other.find_sub_batch(n).indices for n in range(size)]


@each_case("forward_s", [10, 20, 40, 1_000])
def test_forwards_hold_the_same_sub_batches_whatever_fits(forward_s: int) -> None:
    lengths = draw_lengths(331)
    small = UpdatePlanner(lengths, CONFIG).plan_update(5)
    large = UpdatePlanner(lengths, replace(CONFIG, forward_samples=forward_s * 16_000)).plan_update(5)
    numbers = [[s.number for plan in plans for s in plan.sub_batches] for plans in (small, large)]
    assert numbers[0] == numbers[1] == list(range(16, 20))
    assert [plan.is_last for plan in large] == [False] * (len(large) - 1) + [True]
    for plan in large:
        rows = [min(int(lengths[row]), 64_000) for s in plan.sub_batches for row in s.indices]
        assert len(plan.sub_batches) == 1 or len(rows) * max(rows) <= forward_s * 16_000


def test_data_smaller_than_an_update_goes_round() -> None:
    planner = UpdatePlanner(np.array([50_000, 40_000]), replace(CONFIG, sub_batch_samples=50_000))
    (plan,) = UpdatePlanner(np.array([50_000]), replace(CONFIG, forward_samples=10**9)).plan_update(3)
    assert planner.sub_batches_per_epoch == 2
    assert [s.epoch for s in plan.sub_batches] == [8, 9, 10, 11]


def test_ascending_epochs_take_short_utterances_first() -> None:
    lengths = draw_lengths(100)
    planner = UpdatePlanner(lengths, replace(CONFIG, max_samples=0, sub_batch_samples=400_000, ascending_epochs=1))
    size = planner.sub_batches_per_epoch
    longest = [int(lengths[list(planner.find_sub_batch(n).indices)].max()) for n in range(2 * size)]
    rising = [round_up(value) for value in longest[:size]]
    assert rising == sorted(rising)
    assert longest[size:] != sorted(longest[size:])


def test_an_epoch_of_a_million_utterances_is_planned_in_seconds() -> None:
    lengths = np.random.default_rng(0).integers(16_000, 560_000, 1_000_000)
    start = time.monotonic()
    UpdatePlanner(lengths, PlanConfig(1, 1_400_000, 64, 1_400_000, 250_000)).plan_update(1)
    assert time.monotonic() - start < 6.0


def draw_shared_plan(rng: np.random.Generator, num_ranks: int) -> list[UpdatePlanner]:
    """Draw a random data set and plan, and give the planner of each rank."""
    lengths = rng.integers(16_000, 200_000, int(rng.integers(1, 300)))
    config = replace(
        CONFIG,
        seed=int(rng.integers(1_000)),
        sub_batches_per_update=12,
        forward_samples=int(rng.choice([160_000, 400_000, 4_000_000])),
        max_samples=int(rng.choice([0, 64_000])),
        num_ranks=num_ranks,
    )
    return [UpdatePlanner(lengths, replace(config, rank=rank)) for rank in range(num_ranks)]


@each_case("num_ranks", [1, 2, 3, 4])
def test_ranks_share_an_update_out_whole_and_in_order(num_ranks: int) -> None:
    """D3: the same plan with any number of ranks, each sub-batch once, and as many forwards on every rank."""
    rng = np.random.default_rng(num_ranks)
    for _ in range(100):
        planners = draw_shared_plan(rng, num_ranks)
        one = UpdatePlanner(planners[0].lengths, replace(planners[0].config, rank=0, num_ranks=1))
        for update in (1, 2, int(rng.integers(3, 5_000))):
            shares = [planner.plan_update(update) for planner in planners]
            numbers = [sub_batch.number for share in shares for plan in share for sub_batch in plan.sub_batches]
            assert numbers == list(range((update - 1) * 12, update * 12))
            taken = [sub_batch for share in shares for plan in share for sub_batch in plan.sub_batches]
            assert taken == [sub_batch for plan in one.plan_update(update) for sub_batch in plan.sub_batches]
            assert len({len(share) for share in shares}) == 1
            assert {sum(len(plan.sub_batches) for plan in share) for share in shares} == {12 // num_ranks}
            for share in shares:
                assert [plan.is_last for plan in share] == [False] * (len(share) - 1) + [True]
                assert all(plan.is_counted for plan in share)


@each_case("num_ranks", [1, 2, 3, 4])
def test_ranks_validate_every_utterance_once(num_ranks: int) -> None:
    rng = np.random.default_rng(num_ranks)
    idle = 0
    for _ in range(100):
        planners = draw_shared_plan(rng, num_ranks)
        shares = [planner.plan_epoch_once() for planner in planners]
        counted = [plan for share in shares for plan in share if plan.is_counted]
        rows = [row for plan in counted for sub_batch in plan.sub_batches for row in sub_batch.indices]
        assert Counter(rows) == Counter(range(len(planners[0].lengths)))
        assert len({len(share) for share in shares}) == 1
        assert all(plan.sub_batches for share in shares for plan in share)
        idle += sum(len(share) for share in shares) - len(counted)
    assert (idle > 0) == (num_ranks > 1)
