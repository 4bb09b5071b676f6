"""PLDA as speaker verification uses it: LDA, vectors of one length, and two covariances, between and within speakers.

A vector is a speaker's place, drawn with the covariance between speakers, and a deviation from it, drawn with the
covariance within them. The score of a trial is the logarithm of how much likelier its two vectors are with one place
than with two.

Source: Brümmer and de Villiers 2010, "The speaker partitioning problem"; lengths: Garcia-Romero and Espy-Wilson 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MAX_LDA = 150
"""Dimensions that LDA keeps at most: of x-vectors Kaldi's recipes keep 128 to 200."""

EM_ROUNDS = 20
"""Rounds of expectation and maximisation. The likelihood changes little after ten."""


@dataclass(frozen=True)
class Plda:
    """Two covariances.

    Attributes:
        mean: (D,).
        between, within: (D, D), of speakers' places and of utterances around them.
    """

    mean: FloatArray
    between: FloatArray
    within: FloatArray

    def score(self, first: FloatArray, second: FloatArray) -> FloatArray:
        """Compute the log likelihood ratio of each pair, in nats.

        Args:
            first, second: (n, D) vectors of one side and of the other.

        Returns:
            (n,): above 0 where one speaker is likelier than two.
        """
        total, across = self.between + self.within, self.between
        # The precision of a pair of one speaker has blocks A and B: A = (T - C T⁻¹ C)⁻¹ and B = -A C T⁻¹.
        precision = np.linalg.inv(total)
        own = np.linalg.inv(total - across @ precision @ across)
        cross = -own @ across @ precision
        one, other = first - self.mean, second - self.mean
        alone = sum(np.einsum("nd,de,ne->n", side, precision - own, side) for side in (one, other))
        constant = np.linalg.slogdet(own)[1] - np.linalg.slogdet(precision)[1]
        scores: FloatArray = 0.5 * (alone - 2 * np.einsum("nd,de,ne->n", one, cross, other) + constant)
        return scores


def fit_plda(vectors: FloatArray, owners: npt.NDArray[np.int64], rounds: int = EM_ROUNDS) -> Plda:
    """Fit the covariances by expectation and maximisation, from those of speakers' means and around them.

    Args:
        vectors: (n, D).
        owners: (n,) speakers, 0 on, each with one utterance or more.
        rounds: of EM.
    """
    count, dim = len(vectors), vectors.shape[1]
    mean = vectors.mean(0)
    centred, sizes = vectors - mean, np.bincount(owners).astype(np.float64)
    sums = np.zeros((len(sizes), dim))
    np.add.at(sums, owners, centred)
    averages = sums / sizes[:, None]
    around = centred - averages[owners]
    # A thousandth of the variance keeps both invertible where there are fewer speakers than dimensions.
    floor = 1e-3 * np.square(centred).mean() * np.eye(dim)
    between, within = averages.T @ averages / len(sizes) + floor, around.T @ around / count + floor
    scatter = centred.T @ centred
    for _ in range(rounds):
        inverse, noise = np.linalg.inv(between), np.linalg.inv(within)
        # Speakers of as many utterances have the same covariance of their place.
        places, spread, weighted = np.zeros_like(sums), np.zeros((dim, dim)), np.zeros((dim, dim))
        for size in np.unique(sizes):
            rows = sizes == size
            covariance = np.linalg.inv(inverse + size * noise)
            places[rows] = sums[rows] @ noise @ covariance
            moments = rows.sum() * covariance + places[rows].T @ places[rows]
            spread, weighted = spread + moments, weighted + size * moments
        joint = sums.T @ places
        between = spread / len(sizes) + 1e-6 * floor
        within = (scatter - joint - joint.T + weighted) / count + 1e-6 * floor
    return Plda(mean, between, within)


class PldaScorer:
    """LDA, then vectors of one length, then PLDA, all of the speakers of one set.

    Args:
        vectors: (n, D) of the set.
        speakers: of each.
    """

    def __init__(self, vectors: npt.NDArray[np.float32], speakers: Sequence[str]) -> None:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        names, owners = np.unique(np.array(speakers), return_inverse=True)
        dim = min(len(names) - 1, vectors.shape[1], MAX_LDA)
        # Shrinkage (Ledoit and Wolf): embeddings often have more dimensions than the set has utterances.
        self._lda: Any = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=dim)
        reduced = self._lda.fit(vectors.astype(np.float64), owners).transform(vectors.astype(np.float64))
        self._middle = reduced.mean(0)
        self.plda = fit_plda(scale_lengths(reduced - self._middle), owners.astype(np.int64))

    def project(self, vectors: npt.NDArray[np.float32]) -> FloatArray:
        """Give the vectors that PLDA compares: (n, D')."""
        return scale_lengths(self._lda.transform(vectors.astype(np.float64)) - self._middle)


def scale_lengths(vectors: FloatArray) -> FloatArray:
    """Scale every vector to the length √D, so that each dimension has variance 1 on average."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scaled: FloatArray = vectors * (np.sqrt(vectors.shape[1]) / lengths)
    return scaled
