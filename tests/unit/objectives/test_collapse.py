"""The collapse watch: two signs at once, held for 250 updates."""

from __future__ import annotations

import pytest
import torch

from speechssl.objectives.collapse import CollapseWatch
from speechssl.objectives.protocol import LossTerms

HEALTHY = {
    "removed_negatives": 0.05, "loss_contrastive": 5.0, "context_spread": 0.5, "hard_perplexity": [40.0, 40.0],
    "feature_variance": 0.6, "loss_of_guessing": 6.658,
}  # fmt: skip
SAME_CODES = HEALTHY | {
    "removed_negatives": 0.9,
    "loss_of_guessing": 3.4,
    "loss_contrastive": 0.2,
    "hard_perplexity": [1.0, 1.0],
}
ALL_EQUAL = HEALTHY | {"loss_contrastive": 6.658, "context_spread": 0.001}
FEW_CODES = {"removed_negatives": 0.25, "loss_of_guessing": 6.248, "hard_perplexity": [2.0, 2.0]}
"""Two codes a codebook, equally often: of 100 negatives 25 equal the target."""


def counts(collapsed: bool, frames: float = 12_000.0) -> LossTerms:
    made = torch.full((2, 64), 0.0 if collapsed else frames / 64, dtype=torch.float64)
    if collapsed:
        made[:, 3] = frames
    return LossTerms(torch.zeros(()), torch.ones(()), {"code_counts": made})


def feed(watch: CollapseWatch, metrics: dict, collapsed: bool, updates: range) -> list[str]:
    return [watch.observe(counts(collapsed), metrics, update).problem for update in updates]


def warn(watch: CollapseWatch, metrics: dict, collapsed: bool, updates: range) -> list[str]:
    return [watch.observe(counts(collapsed), metrics, update).warning for update in updates]


@pytest.fixture
def watch() -> CollapseWatch:
    watch = CollapseWatch(num_groups=2, num_codes=64)
    assert feed(watch, HEALTHY, False, range(1, 50)) == [""] * 49
    return watch


def test_same_codes_for_250_updates(watch: CollapseWatch) -> None:
    found = feed(watch, SAME_CODES, True, range(50, 300))
    assert found[:-1] == [""] * 249
    assert "same codes" in found[-1]
    assert "training.lr" in found[-1]


def test_equal_similarities_for_250_updates(watch: CollapseWatch) -> None:
    found = feed(watch, ALL_EQUAL, False, range(50, 300))
    assert found[:-1] == [""] * 249
    assert "guessing" in found[-1]


def test_constant_features_for_250_updates(watch: CollapseWatch) -> None:
    """Noise alone chooses codes then, so that all of them are in use."""
    found = feed(watch, HEALTHY | {"loss_contrastive": 6.655, "feature_variance": 1e-5}, False, range(50, 300))
    assert found[:-1] == [""] * 249
    assert "guessing (6.66 bits) and features no longer differ" in found[-1]
    assert not watch.is_candidate(HEALTHY | {"loss_contrastive": 6.655, "feature_variance": 1e-5})


@pytest.mark.parametrize(
    ("dead", "what"), [({"context_spread": 0.001}, "context vectors"), ({"feature_variance": 1e-5}, "features")]
)
def test_guessing_is_seen_where_negatives_are_removed(watch: CollapseWatch, dead: dict, what: str) -> None:
    """Among fewer candidates guessing costs less, and nothing of this run is alive."""
    metrics = HEALTHY | FEW_CODES | dead | {"loss_contrastive": 6.25}
    found = feed(watch, metrics, False, range(50, 300))
    assert found[:-1] == [""] * 249
    assert f"that of guessing (6.25 bits) and {what} no longer differ" in found[-1]
    assert not watch.is_candidate(metrics)


def test_few_codes_that_are_learned_are_healthy(watch: CollapseWatch) -> None:
    """Neither the loss alone nor, where something is learned, features that vary little make a sign."""
    learning = HEALTHY | FEW_CODES | {"loss_contrastive": 6.1, "context_spread": 0.02, "feature_variance": 0.05}
    assert not any(feed(watch, learning, False, range(50, 600)))
    assert not any(warn(watch, learning, False, range(600, 1_100)))
    assert watch.is_candidate(learning)
    assert not any(feed(watch, HEALTHY | FEW_CODES | {"loss_contrastive": 6.25}, False, range(1_100, 1_600)))


def test_one_sign_alone_is_healthy(watch: CollapseWatch) -> None:
    few_codes_only = HEALTHY | {"hard_perplexity": [1.0, 1.0]}
    assert not any(feed(watch, few_codes_only, True, range(50, 400)))
    assert not any(feed(watch, HEALTHY | {"feature_variance": 1e-5}, False, range(50, 400)))
    chance_only = HEALTHY | {"loss_contrastive": 6.66}
    assert not any(feed(watch, chance_only, False, range(400, 800)))


def test_an_update_without_the_sign_takes_back_two(watch: CollapseWatch) -> None:
    feed(watch, SAME_CODES, True, range(50, 290))
    assert feed(watch, HEALTHY, False, range(290, 291)) == [""]
    found = feed(watch, SAME_CODES, True, range(291, 303))
    assert found[:-1] == [""] * 11
    assert "for 250 updates up to 302" in found[-1]
    assert not any(feed(watch, HEALTHY, False, range(303, 500)))
    assert watch.held == 0


def test_perplexity_is_taken_over_ten_thousand_frames(watch: CollapseWatch) -> None:
    """Few frames an update: the code counts of several are put together before they are judged."""
    before = watch.perplexity
    watch.observe(counts(True, frames=4_000.0), SAME_CODES, 50)
    watch.observe(counts(True, frames=4_000.0), SAME_CODES, 51)
    assert watch.perplexity == before
    watch.observe(counts(True, frames=4_000.0), SAME_CODES, 52)
    assert watch.perplexity == pytest.approx(2.0, abs=1e-3)


def test_state_goes_through_a_checkpoint(watch: CollapseWatch) -> None:
    feed(watch, SAME_CODES, True, range(50, 290))
    other = CollapseWatch(num_groups=2, num_codes=64)
    other.load_state(watch.state())
    remaining = range(290, 300)
    assert feed(other, SAME_CODES, True, remaining) == feed(watch, SAME_CODES, True, remaining)


def test_a_collapsed_validation_is_no_candidate(watch: CollapseWatch) -> None:
    assert not watch.is_candidate(SAME_CODES)
    assert not watch.is_candidate(ALL_EQUAL)
    assert watch.is_candidate(HEALTHY)
    assert watch.is_candidate(ALL_EQUAL | {"loss_contrastive": float("nan")}), "the trainer refuses it for itself"


@pytest.mark.parametrize(
    ("metrics", "collapsed", "updates", "text"),
    [
        (SAME_CODES, True, 100, "few codes are used"),
        (ALL_EQUAL, False, 100, "context vectors hardly differ"),
        (HEALTHY | {"feature_variance": 0.01}, False, 100, "hardly change over time"),
        (HEALTHY | {"loss_contrastive": 6.66}, False, 400, "that of guessing"),
    ],
)
def test_early_signs_are_warned_of_long_before_the_stop(
    watch: CollapseWatch, metrics: dict, collapsed: bool, updates: int, text: str
) -> None:
    found = warn(watch, metrics, collapsed, range(50, 50 + updates))
    assert found[:-1] == [""] * (updates - 1)
    assert text in found[-1]
    assert "training.lr" in found[-1]
    assert warn(watch, HEALTHY, False, range(600, 601)) == [""]


def test_guessing_before_the_end_of_the_warm_up_is_how_runs_begin() -> None:
    watch = CollapseWatch(2, 64, warmup_updates=1_000)
    guessing = HEALTHY | {"loss_contrastive": 6.66}
    assert not any(warn(watch, guessing, False, range(1, 1_001)))
    assert not any(warn(watch, guessing, False, range(1_001, 1_400)))
    assert warn(watch, guessing, False, range(1_400, 1_401))[0]


def test_early_counts_go_through_a_checkpoint(watch: CollapseWatch) -> None:
    warn(watch, SAME_CODES, True, range(50, 140))
    other = CollapseWatch(2, 64)
    other.load_state(watch.state())
    assert vars(other).keys() == vars(watch).keys()
    assert warn(other, SAME_CODES, True, range(140, 160)) == warn(watch, SAME_CODES, True, range(140, 160))
