"""PLDA against densities of scipy, the closed form of a balanced set, and what it is for."""

from __future__ import annotations

import numpy as np
from scipy.stats import multivariate_normal

from speechssl.evaluation.plda import Plda, PldaScorer, fit_plda, scale_lengths

DIM = 3


def draw(num_speakers: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of the model itself, their speakers, and the covariances that they were drawn with."""
    rng = np.random.default_rng(seed)
    roots = [rng.normal(size=(DIM, DIM)) for _ in range(2)]
    between, within = (root @ root.T + 0.2 * np.eye(DIM) for root in roots)
    places = rng.multivariate_normal(np.ones(DIM), between, num_speakers)
    owners = np.repeat(np.arange(num_speakers), each)
    return places[owners] + rng.multivariate_normal(np.zeros(DIM), within, len(owners)), owners, between, within


def test_a_score_is_the_ratio_of_two_densities() -> None:
    vectors, _, between, within = draw(4, 2)
    model = Plda(np.ones(DIM), between, within)
    total, nothing = between + within, np.zeros((DIM, DIM))
    one = multivariate_normal(np.ones(2 * DIM), np.block([[total, between], [between, total]]))
    two = multivariate_normal(np.ones(2 * DIM), np.block([[total, nothing], [nothing, total]]))
    pairs = np.concatenate([vectors[::2], vectors[1::2]], axis=1)
    np.testing.assert_allclose(
        model.score(vectors[::2], vectors[1::2]), one.logpdf(pairs) - two.logpdf(pairs), rtol=1e-8
    )


def test_a_fit_is_the_closed_form_where_every_speaker_has_as_many_utterances() -> None:
    """Maximum likelihood of a balanced one-way layout, as analysis of variance gives it."""
    vectors, owners, _, _ = draw(300, 5)
    model = fit_plda(vectors, owners, rounds=200)
    means = np.stack([vectors[owners == k].mean(0) for k in range(300)])
    around = vectors - means[owners]
    within = around.T @ around / (300 * 4)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / 300 - within / 5
    np.testing.assert_allclose(model.mean, vectors.mean(0), rtol=1e-10)
    np.testing.assert_allclose(model.within, within, atol=0.01 * np.abs(within).max())
    np.testing.assert_allclose(model.between, between, atol=0.01 * np.abs(between).max())


def test_every_round_makes_the_data_likelier_with_speakers_of_any_size() -> None:
    vectors, owners, _, _ = draw(20, 6)
    kept = np.concatenate([np.flatnonzero(owners == k)[: 1 + k % 6] for k in range(20)])

    def measure(rounds: int) -> float:
        model, total = fit_plda(vectors[kept], owners[kept], rounds), 0.0
        for k in range(20):
            rows = vectors[kept][owners[kept] == k]
            ones = np.ones((len(rows), len(rows)))
            covariance = np.kron(ones, model.between) + np.kron(np.eye(len(rows)), model.within)
            total += multivariate_normal(np.tile(model.mean, len(rows)), covariance).logpdf(rows.ravel())
        return total

    likelihoods = [measure(rounds) for rounds in (0, 1, 3, 10, 30)]
    assert likelihoods == sorted(likelihoods)
    assert likelihoods[-1] > likelihoods[0] + 0.1


def test_the_chain_finds_speakers_in_noise_that_cosine_does_not() -> None:
    rng = np.random.default_rng(1)
    places = rng.normal(size=(40, 3)) @ np.eye(3, 20)
    owners = np.repeat(np.arange(40), 8)
    loud = np.where(np.arange(20) < 3, 0.3, 8.0)
    vectors = (places[owners] + loud * rng.normal(size=(320, 20)) + 5.0).astype(np.float32)
    seen = owners < 30
    scorer = PldaScorer(vectors[seen], [str(owner) for owner in owners[seen]])
    unseen = scorer.project(vectors[~seen]).reshape(10, 8, -1)
    np.testing.assert_allclose(np.linalg.norm(unseen, axis=-1), np.sqrt(unseen.shape[-1]), rtol=1e-9)
    same = scorer.plda.score(unseen[:, 0], unseen[:, 1])
    other = scorer.plda.score(unseen[:, 0], np.roll(unseen[:, 1], 1, axis=0))
    assert (same > other).mean() >= 0.9
    raw = vectors[~seen].reshape(10, 8, -1)
    cosine = [np.einsum("nd,nd->n", scale_lengths(raw[:, 0]), scale_lengths(np.roll(raw[:, 1], k, 0))) for k in (0, 1)]
    assert (cosine[0] > cosine[1]).mean() < 0.9


def test_more_dimensions_than_speakers_still_give_finite_scores() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(9, 30)).astype(np.float32)
    scorer = PldaScorer(vectors, ["a", "a", "a", "b", "b", "b", "c", "c", "c"])
    projected = scorer.project(vectors)
    assert projected.shape == (9, 2)
    assert np.isfinite(scorer.plda.score(projected[:4], projected[4:8])).all()
