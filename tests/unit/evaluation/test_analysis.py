"""What a layer is said to be like, on states that are known."""

from __future__ import annotations

import numpy as np
import pytest

from speechssl.evaluation.analysis import (
    CKA_FRAMES,
    compare_layers,
    compute_cca_chance,
    describe_classes,
    describe_layer,
    describe_layers,
)
from speechssl.evaluation.representations import compute_linear_cka
from tests.cases import each_case

RNG = np.random.default_rng(0)
HEALTHY = RNG.standard_normal((3000, 16)).astype(np.float32)
OFFSET = RNG.standard_normal(16).astype(np.float32)


@each_case(
    "name, states, collapsed",
    [
        ("healthy", HEALTHY, False),
        ("anisotropic, as trained layers are", HEALTHY + 3 * OFFSET, False),
        ("one large and constant dimension", np.concatenate([HEALTHY, np.full((3000, 1), 1e4, "f")], 1), False),
        ("all equal", np.tile(OFFSET, (3000, 1)), True),
        ("all zero", np.zeros((3000, 16), np.float32), True),
        ("equal but for noise", 1e-2 * HEALTHY + OFFSET + np.sign(OFFSET), True),
        ("one direction", HEALTHY[:, :1] * OFFSET + 1e-2 * HEALTHY, True),
        ("three directions", HEALTHY[:, :3] @ RNG.standard_normal((3, 16)), False),
    ],
)
def test_a_collapsed_layer_is_seen(name: str, states: np.ndarray, collapsed: bool) -> None:
    described = describe_layer(states)
    assert described["collapsed"] is collapsed, described


def test_layers_beside_log_mel_and_what_chance_gives() -> None:
    log_mel = HEALTHY[:, :4] @ RNG.standard_normal((4, 8)).astype(np.float32)
    rows = describe_layers([HEALTHY, HEALTHY[:, 8:]], log_mel, weighted=False)
    assert [row["layer"] for row in rows] == [0, 1]
    assert rows[0]["cca_log_mel"] == pytest.approx(1) and rows[1]["cca_log_mel"] < 0.1
    assert compute_cca_chance(HEALTHY, log_mel, False, 1) < 0.12


def test_layers_are_compared_over_a_part_of_many_frames() -> None:
    layers: list[np.ndarray] = [HEALTHY, HEALTHY @ RNG.standard_normal((16, 16)), RNG.standard_normal((3000, 5))]
    cka = compare_layers(layers)
    np.testing.assert_allclose(cka, cka.T)
    np.testing.assert_allclose(np.diagonal(cka), 1)
    other = compare_layers(layers, layers[:2])
    np.testing.assert_allclose(other, cka[:, :2])
    assert cka[0, 1] == pytest.approx(compute_linear_cka(layers[0], layers[1]), abs=0.03) and len(HEALTHY) > CKA_FRAMES
    short = [states[:50] for states in layers]
    assert compare_layers(short)[0, 1] == pytest.approx(compute_linear_cka(short[0], short[1]))


def test_classes_that_are_apart_have_an_interval() -> None:
    labels = ["a", "b"] * 30
    means = RNG.standard_normal((60, 4)) + np.array([0, 9] * 30)[:, None]
    found = describe_classes(means, labels, None, [f"s{k // 2}" for k in range(60)], 100, 1)
    assert found["neighbour_accuracy"] == 100 and found["variance_ratio"] > 5
    assert found["neighbour_accuracy_interval"] == {
        "low": 100.0, "high": 100.0, "unit": "speaker", "count": 30, "reliable": True,
    }  # fmt: skip
    assert describe_classes(means, labels, None, None, 100, 1)["neighbour_accuracy_interval"]["unit"] == "utterance"
