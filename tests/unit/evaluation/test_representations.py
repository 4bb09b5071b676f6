"""Statistics of representations against closed forms, and against scikit-learn, SciPy and kernels written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.stats import entropy, ortho_group
from sklearn.cross_decomposition import CCA
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import KNeighborsClassifier

from speechssl.evaluation.representations import (
    classify_by_neighbour,
    compute_anisotropy,
    compute_cca,
    compute_effective_rank,
    compute_label_purity,
    compute_linear_cka,
    compute_mean_norm,
    compute_pnmi,
    compute_spread,
    compute_unit_purity,
    compute_variance_ratio,
    count_joint,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 12)) * np.linspace(1, 4, 12) + 3


def make_orthogonal(rows: int, columns: int) -> np.ndarray:
    """Columns of mean zero and variance 1 that are exactly uncorrelated."""
    drawn = RNG.standard_normal((rows, columns))
    return np.linalg.qr(drawn - drawn.mean(0))[0] * math.sqrt(rows)


def test_the_effective_rank_of_equal_variances_is_their_number() -> None:
    for used in (1, 3, 7):
        states = np.zeros((50, 8))
        states[:, :used] = make_orthogonal(50, used)
        assert compute_effective_rank(states + 5) == pytest.approx(used)
    scaled = make_orthogonal(100, 2) * np.sqrt([3.0, 1.0])
    assert compute_effective_rank(scaled) == pytest.approx(math.exp(entropy([0.75, 0.25])))
    rotation = ortho_group.rvs(12, random_state=0)
    assert compute_effective_rank(X @ rotation * 7 + 1) == pytest.approx(compute_effective_rank(X))
    assert compute_effective_rank(X[:, :1]) == pytest.approx(1)
    assert compute_effective_rank(np.full((20, 5), 0.1, np.float32)) == 0.0
    assert compute_effective_rank(np.zeros((20, 5))) == 0.0


def test_spread_norm_and_anisotropy_of_known_directions() -> None:
    assert compute_spread(make_orthogonal(50, 3)) == pytest.approx(1)
    assert compute_spread(make_orthogonal(50, 3) + 3) == pytest.approx(0.1)
    assert compute_spread(np.ones((5, 3))) == compute_spread(np.zeros((5, 3))) == 0.0
    constant = np.concatenate([make_orthogonal(50, 3), np.full((50, 1), 1e4)], axis=1)
    assert compute_spread(constant) == pytest.approx(1)
    assert compute_mean_norm(np.array([[3.0, 4.0], [0.0, 1.0]])) == 3.0
    assert compute_anisotropy(np.array([[1.0, 0.0], [5.0, 0.0]])) == pytest.approx(1)
    assert compute_anisotropy(np.array([[1.0, 0.0], [0.0, 2.0]])) == pytest.approx(0)
    assert compute_anisotropy(np.array([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-1)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(len(X), 1)]
    assert compute_anisotropy(X) == pytest.approx(pairs.mean())
    assert compute_anisotropy(np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_knows_a_space_that_is_rotated_shifted_and_scaled(debiased: bool) -> None:
    rotated = X @ ortho_group.rvs(12, random_state=1) * 0.01 - 8
    assert compute_linear_cka(X, rotated, debiased) == pytest.approx(1)
    stretched = X @ np.diag([100.0, *[1.0] * 11])
    assert compute_linear_cka(X, stretched, debiased) < 0.9
    assert compute_linear_cka(X, X[:, :5], debiased) == pytest.approx(compute_linear_cka(X[:, :5], X, debiased))
    assert math.isnan(compute_linear_cka(X, np.full((400, 3), 0.1), debiased))


def test_cka_of_independent_spaces_is_about_zero_once_it_is_debiased() -> None:
    drawn = [np.random.default_rng(seed).standard_normal((2, 200, 60)) for seed in range(10)]
    assert np.mean([compute_linear_cka(a, b, debiased=False) for a, b in drawn]) == pytest.approx(60 / 260, rel=0.1)
    debiased = [compute_linear_cka(a, b) for a, b in drawn]
    assert abs(np.mean(debiased)) < 0.02 and min(debiased) < 0


def test_cka_equals_its_kernels_written_out() -> None:
    y = X[:60, :4] + RNG.standard_normal((60, 4))
    count = 60

    def hsic(first: np.ndarray, second: np.ndarray) -> float:
        k, m = first @ first.T, second @ second.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        parts = np.trace(k @ m) + k.sum() * m.sum() / (count - 1) / (count - 2) - 2 * (k @ m).sum() / (count - 2)
        return float(parts / count / (count - 3))

    x = X[:60]
    assert compute_linear_cka(x, y) == pytest.approx(hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y)))
    centre = np.eye(count) - 1 / count
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    biased = np.trace(k @ m) / np.linalg.norm(k) / np.linalg.norm(m)
    assert compute_linear_cka(x, y, debiased=False) == pytest.approx(biased)


def test_cca_equals_scipy_and_scikit_learn() -> None:
    y = X[:, :3] @ RNG.standard_normal((3, 5)) + 2 * RNG.standard_normal((400, 5))
    angles = subspace_angles(X - X.mean(0), y - y.mean(0))
    assert compute_cca(X, y) == pytest.approx(np.cos(angles).mean())
    left, right = CCA(5, max_iter=5000, tol=1e-10).fit_transform(X, y)
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(left.T, right.T, strict=True)]
    assert compute_cca(X, y) == pytest.approx(np.mean(found), abs=1e-3)
    weights = np.abs(((left / np.linalg.norm(left, axis=0)).T) @ (X - X.mean(0))).sum(1)
    assert compute_cca(X, y, weighted=True) == pytest.approx(np.average(found, weights=weights), abs=1e-3)


def test_cca_knows_a_space_that_is_mapped_linearly_even_of_lower_rank() -> None:
    mapped = X @ RNG.standard_normal((12, 12)) + 4
    assert compute_cca(X, mapped) == pytest.approx(1) == compute_cca(X, mapped, weighted=True)
    doubled = np.concatenate([X, X[:, :4]], axis=1)
    assert compute_cca(doubled, X) == pytest.approx(1)
    many = np.random.default_rng(3).standard_normal((20_000, 6))
    assert compute_cca(many[:, :3], many[:, 3:]) < 0.03
    assert math.isnan(compute_cca(X, np.full((400, 2), 0.3)))


def test_classes_apart_and_classes_mixed() -> None:
    states = np.array([[0.0, 1.0], [0.0, 3.0], [10.0, 1.0], [10.0, 3.0]])
    assert compute_variance_ratio(states, ["a", "a", "b", "b"]) == pytest.approx(100 / 4)
    assert compute_variance_ratio(states, ["a", "b", "a", "b"]) == pytest.approx(4 / 100)
    assert math.isinf(compute_variance_ratio(states[[0, 0, 2]], ["a", "a", "b"]))
    assert math.isnan(compute_variance_ratio(np.ones((3, 2)), ["a", "a", "b"]))


def test_neighbours_of_ones_own_group_do_not_count() -> None:
    labels = RNG.choice(["a", "b", "c"], 2500)
    states = RNG.standard_normal((2500, 6)) + (labels == "a")[:, None]
    centred = states - states.mean(0)
    knn = KNeighborsClassifier(2, metric="cosine").fit(centred, labels)
    nearest = knn.kneighbors(centred, return_distance=False)[:, 1]
    np.testing.assert_array_equal(classify_by_neighbour(states, labels.tolist()), labels[nearest] == labels)
    states = np.array([[1.0, 0.1], [1.0, 0.2], [-1.0, 0.1], [-1.0, -0.3]])
    found = classify_by_neighbour(states, ["f", "f", "m", "m"], ["s", "s", "t", "u"])
    assert found.tolist() == [False, False, True, True]
    assert not classify_by_neighbour(states, ["f"] * 4, ["s"] * 4).any()


def test_purity_and_pnmi_by_hand() -> None:
    joint = count_joint([0, 0, 0, 7, 7, 9], ["a", "a", "b", "b", "b", "a"])
    assert joint.tolist() == [[2, 1], [0, 2], [1, 0]]
    assert compute_label_purity(joint) == pytest.approx(5 / 6)
    assert compute_unit_purity(joint) == pytest.approx(4 / 6)
    # H(label) = ln 2, H(label | unit) = 3/6 · H(2/3).
    assert compute_pnmi(joint) == pytest.approx(1 - 0.5 * entropy([2 / 3, 1 / 3]) / math.log(2))
    units, labels = RNG.integers(0, 9, 500), RNG.choice(list("abcd"), 500)
    shares = np.unique(labels, return_counts=True)[1] / 500
    expected = mutual_info_score(labels, units) / entropy(shares)
    assert compute_pnmi(count_joint(units, labels.tolist())) == pytest.approx(expected)
    assert compute_pnmi(np.diag([3, 4, 5])) == pytest.approx(1)
    assert compute_pnmi(np.outer([1, 2], [3, 4])) == pytest.approx(0)
    assert math.isnan(compute_pnmi(np.array([[3], [4]])))
