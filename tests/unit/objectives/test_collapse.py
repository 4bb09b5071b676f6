"""The collapse watch: two signs at once, held for 300 updates."""

from __future__ import annotations

import pytest
import torch

from speechssl.objectives.collapse import CollapseWatch

HEALTHY = {"removed_negatives": 0.05, "loss_contrastive": 5.0, "context_spread": 0.5, "hard_perplexity": [40.0, 40.0]}
SAME_CODES = HEALTHY | {"removed_negatives": 0.9, "loss_contrastive": 0.2, "hard_perplexity": [1.0, 1.0]}
ALL_EQUAL = HEALTHY | {"loss_contrastive": 6.658, "context_spread": 0.001}


def counts(collapsed: bool, frames: float = 12_000.0) -> torch.Tensor:
    if not collapsed:
        return torch.full((2, 64), frames / 64, dtype=torch.float64)
    made = torch.zeros(2, 64, dtype=torch.float64)
    made[:, 3] = frames
    return made


def feed(watch: CollapseWatch, metrics: dict, collapsed: bool, updates: range) -> list[str]:
    return [watch.observe(counts(collapsed), metrics, update) for update in updates]


@pytest.fixture
def watch() -> CollapseWatch:
    watch = CollapseWatch(num_groups=2, num_codes=64, num_negatives=100)
    assert feed(watch, HEALTHY, False, range(1, 50)) == [""] * 49
    return watch


def test_same_codes_for_300_updates(watch: CollapseWatch) -> None:
    found = feed(watch, SAME_CODES, True, range(50, 350))
    assert found[:-1] == [""] * 299
    assert "same codes" in found[-1]
    assert "training.lr" in found[-1]


def test_equal_similarities_for_300_updates(watch: CollapseWatch) -> None:
    found = feed(watch, ALL_EQUAL, False, range(50, 350))
    assert found[:-1] == [""] * 299
    assert "guessing" in found[-1]


def test_one_sign_alone_is_healthy(watch: CollapseWatch) -> None:
    few_codes_only = HEALTHY | {"hard_perplexity": [1.0, 1.0]}
    assert not any(feed(watch, few_codes_only, True, range(50, 400)))
    chance_only = HEALTHY | {"loss_contrastive": 6.66}
    assert not any(feed(watch, chance_only, False, range(400, 800)))


def test_a_recovery_starts_the_count_again(watch: CollapseWatch) -> None:
    feed(watch, SAME_CODES, True, range(50, 340))
    feed(watch, HEALTHY, False, range(340, 341))
    assert not any(feed(watch, SAME_CODES, True, range(341, 500)))


def test_perplexity_is_taken_over_ten_thousand_frames(watch: CollapseWatch) -> None:
    """Few frames an update: the code counts of several are put together before they are judged."""
    before = watch.perplexity
    watch.observe(counts(True, frames=4_000.0), SAME_CODES, 50)
    watch.observe(counts(True, frames=4_000.0), SAME_CODES, 51)
    assert watch.perplexity == before
    watch.observe(counts(True, frames=4_000.0), SAME_CODES, 52)
    assert watch.perplexity == pytest.approx(2.0, abs=1e-3)


def test_state_goes_through_a_checkpoint(watch: CollapseWatch) -> None:
    feed(watch, SAME_CODES, True, range(50, 340))
    other = CollapseWatch(num_groups=2, num_codes=64, num_negatives=100)
    other.load_state(watch.state())
    remaining = range(340, 350)
    assert feed(other, SAME_CODES, True, remaining) == feed(watch, SAME_CODES, True, remaining)


def test_a_collapsed_validation_is_no_candidate(watch: CollapseWatch) -> None:
    assert watch.has_signs(SAME_CODES)
    assert watch.has_signs(ALL_EQUAL)
    assert not watch.has_signs(HEALTHY)
