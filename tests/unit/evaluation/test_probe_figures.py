"""A probe on constructed features: least squares for numbers, and figures that are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from speechssl.config.inference import ProbeConfig
from speechssl.errors import ConfigError, DataError
from speechssl.evaluation.probe_figures import make_measure
from speechssl.evaluation.probe_plan import Plan
from speechssl.evaluation.probe_split import leave_groups_out
from speechssl.evaluation.probe_training import choose_rates, train_probe
from speechssl.evaluation.statistics import compute_interval
from tests.cases import each_case


def make_config(**keys: object) -> ProbeConfig:
    return ProbeConfig(**({"checkpoint": "x", "updates": 40, "num_resamples": 200} | keys))  # type: ignore[arg-type]


def make_plan(kind: str, values: list[str], groups: list[str]) -> Plan:
    return Plan(kind, values, groups, "speaker", True, leave_groups_out(groups, 10))


def test_a_linear_probe_of_a_number_is_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 1, 6)).astype(np.float32)
    wanted = (features[:, 0] @ rng.normal(size=6) + 0.3 * rng.normal(size=400)).astype(np.float32)
    wanted = (wanted - wanted.mean()) / wanted.std()
    probe = train_probe(features, wanted, 1, 150, 0.05, 1)
    # Nearly no penalty: a decay of 0.01 of AdamW is not one on the loss.
    closed = Ridge(alpha=1e-3).fit(features[:, 0], wanted)
    np.testing.assert_allclose(probe.heads[0].weight[0].numpy(), closed.coef_, atol=5e-3)
    np.testing.assert_allclose(
        probe(torch.from_numpy(features))[:, 0, 0].numpy(), closed.predict(features[:, 0]), atol=0.02
    )


def test_a_hidden_layer_tells_what_no_line_does() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(400, 1, 2)).astype(np.float32)
    labels = (features[:, 0, 0] * features[:, 0, 1] > 0).astype(np.int64)
    right = {}
    for hidden in (0, 16):
        probe = train_probe(features, labels, 2, 120, 0.05, 1, hidden)
        right[hidden] = float((probe(torch.from_numpy(features))[:, 0].argmax(-1).numpy() == labels).mean())
    assert right[0] < 0.7 < 0.93 < right[16]


def test_the_rate_of_the_lowest_loss_is_taken_for_each_network() -> None:
    losses = [np.array([0.3, np.nan, 0.1]), np.array([0.2, 0.5, 0.4]), np.array([np.inf, 0.6, 0.4])]
    assert choose_rates(losses, [0.1, 0.2, 0.3]) == [0.2, 0.2, 0.1]


def test_accuracy_of_groups_left_out_is_that_of_the_layer_that_knows() -> None:
    rng = np.random.default_rng(3)
    words, groups = [str(k % 3) for k in range(120)], [str(k // 30) for k in range(120)]
    features = rng.normal(size=(120, 2, 6)).astype(np.float32)
    features[np.arange(120), 1, [int(word) for word in words]] += 6.0
    found = make_measure(make_config(label="word", lr=[0.0001, 0.1]), make_plan("identification", words, groups))(
        [features]
    )
    assert found.mixed > 95 and found.layers[1] > 95 and found.layers[0] < 60
    assert found.weights[1] > 0.6
    assert (found.interval.unit, found.interval.count, found.interval.reliable) == ("speaker", 4, False)
    assert found.more["largest_label"] == pytest.approx(100 / 3)
    assert found.rates == [0.1] * 4
    several = make_measure(make_config(label="word", lr=0.1), make_plan("identification", words, groups))
    both = several(iter([features, rng.normal(size=(120, 2, 6)).astype(np.float32)]))
    assert both.mixed == pytest.approx(np.mean(both.seeds)) and both.seeds[1] < 60 < both.seeds[0]


def test_r2_is_one_minus_the_ratio_of_sums_and_so_is_its_interval() -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(90, 1, 4)).astype(np.float32)
    ages = 30 + 8 * features[:, 0, 0] + 3 * rng.normal(size=90)
    groups = [str(k // 30) for k in range(90)]
    config = make_config(label="age", lr=0.1, updates=150)
    plan = make_plan("regression", [str(age) for age in ages], groups)
    found = make_measure(config, plan)([features])
    told = np.empty(90)
    for fold in plan.folds:
        closed = Ridge(alpha=1e-3).fit(features[fold.train, 0], ages[fold.train])
        told[fold.test] = closed.predict(features[fold.test, 0])
    squares, spread = np.square(told - ages), np.square(ages - ages.mean())
    assert found.mixed == pytest.approx(100 * (1 - squares.sum() / spread.sum()), abs=1.0)
    assert found.more["mean_error"] == pytest.approx(np.abs(told - ages).mean(), abs=0.1)
    expected = compute_interval(squares, spread, groups, 200, 1)
    assert found.interval.low == pytest.approx(100 - (expected.high or 0), abs=1.5)
    assert found.interval.high == pytest.approx(100 - (expected.low or 0), abs=1.5)


def test_one_rate_alone_where_nothing_can_be_held_out() -> None:
    plan = Plan(
        "identification", ["x", "x", "y", "y"], list("abcd"), "speaker", True, leave_groups_out(list("abcd"), 2)[:1]
    )
    with pytest.raises(DataError, match=r"`lr` must be one number where"):
        make_measure(make_config(label="word", lr=[0.01, 0.1]), plan)([np.zeros((4, 1, 2), np.float32)])
    found = make_measure(make_config(label="word"), plan)([np.zeros((4, 1, 2), np.float32)])
    assert found.rates == [0.02]


@each_case(
    "keys, message",
    [
        ({"lr": []}, "`lr` must be a positive number or a list"),
        ({"lr": [0.1, -1]}, "`lr` must be a positive number or a list"),
        ({"label": "sex", "group": "sex"}, "`group` must be another column than label"),
        ({"backend": "plda"}, "`backend` must be left out without task=verification"),
        ({"task": "classification"}, "`task` must be"),
        ({"folds": 1}, "`folds` must be at least 2"),
        ({"task": "verification", "group": "room"}, "`group` must be left out with task=verification"),
    ],
)
def test_keys_that_cannot_be(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**keys)
