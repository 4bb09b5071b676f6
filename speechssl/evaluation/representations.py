"""Statistics of representations, as pure functions: dimensions in use, likeness of spaces, what units say.

States are (F, D): F frames or utterances, D numbers each. All is computed in float64; memory is that of a float64 copy
of the states and a few matrices (D, D), so that a sample of frames bounds it (`inference/sampling.py` draws one).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
States = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]

FLOOR = 1e-10
"""Directions with less than this share of the largest variance are rounding, and left out of CCA."""

ROWS_AT_ONCE = 1024


def compute_effective_rank(states: States) -> float:
    """Compute how many dimensions states use in effect: exp of the entropy of the shares of variance.

    Variances are the eigenvalues of the covariance. With k equal ones and no others it is k; a sample of F frames
    has F - 1 at most.

    Args:
        states: (F, D), F ≥ 2.

    Returns:
        1 to D; 0 where all states are equal.

    Source: Roy & Vetterli 2007, "The effective rank", with variances, the squares of their singular values.
    """
    variances = np.linalg.eigvalsh(np.cov(states.T.astype(np.float64)).reshape(states.shape[1], -1)).clip(min=0)
    total = variances.sum()
    # Of equal states, rounding leaves a variance of about the square of float64's precision.
    if total <= 1e-24 * np.square(states, dtype=np.float64).sum(1).mean():
        return 0.0
    shares = variances[variances > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def compute_spread(states: States) -> float:
    """Compute how much of the states differs between frames: variance over mean square, the median over dimensions.

    The median, since some trained models have a few dimensions that are large and constant, which means nothing.

    Args:
        states: (F, D).

    Returns:
        0 (all equal) to 1 (mean zero).
    """
    wide = states.astype(np.float64)
    shares: FloatArray = wide.var(0) / np.maximum(np.square(wide).mean(0), np.finfo(np.float64).tiny)
    return float(np.median(shares))


def compute_mean_norm(states: States) -> float:
    """Compute the mean Euclidean norm of states (F, D)."""
    return float(np.linalg.norm(states.astype(np.float64), axis=1).mean())


def compute_anisotropy(states: States) -> float:
    """Compute the mean cosine of two different states: 0 where directions are uniform, 1 where all are one.

    It is that of all pairs, not of random ones: the sum of cosines is the square of the sum of unit vectors.

    Args:
        states: (F, D), F ≥ 2; a zero vector has the cosine 0 to all.

    Source: Ethayarajh 2019, arXiv 1909.00512 §3.
    """
    norms = np.linalg.norm(states.astype(np.float64), axis=1, keepdims=True)
    unit = states / np.where(norms > 0, norms, 1.0)
    count = len(unit)
    return float((np.square(unit.sum(0)).sum() - np.square(unit).sum()) / (count * (count - 1)))


def compute_linear_cka(x: States, y: States, debiased: bool = True) -> float:
    """Compute the linear centred kernel alignment of spaces: 1 where they are one but for rotation, shift and scale.

    Args:
        x: (F, D).
        y: (F, E): the same frames, F ≥ 4.
        debiased: by the unbiased estimator of HSIC: 0 on average for independent spaces, and below in single cases.
            Without, few frames look alike: independent spaces of D dimensions have D / F.

    Returns:
        At most 1; NaN where a space is constant.

    Source: Kornblith et al. 2019, arXiv 1905.00414 eq. 3 and §3; Song et al. 2012, eq. 5 (debiased), here without the
    (F, F) kernels: of centred states the rows of a kernel sum to zero.
    """
    return float(compute_cka_matrix([x], [y], debiased)[0, 0])


def compute_cka_matrix(xs: Sequence[States], ys: Sequence[States] | None = None, debiased: bool = True) -> FloatArray:
    """Compute the linear CKA of each space of a list with each of another, or with each other.

    Args:
        xs: n spaces (F, D), such as the layers of a model.
        ys: m spaces (F, E) of the same frames; None: `xs` once more.
        debiased: as `compute_linear_cka`.

    Returns:
        (n, m).
    """
    first = [_centre(x) for x in xs]
    second = first if ys is None else [_centre(y) for y in ys]
    own, other = (np.array([_compute_hsic(x, x, debiased) for x in each]).clip(min=0) for each in (first, second))
    cross = np.zeros((len(first), len(second)))
    for row, x in enumerate(first):
        for column, y in enumerate(second):
            is_known = ys is None and column < row
            cross[row, column] = cross[column, row] if is_known else _compute_hsic(x, y, debiased)
    scale = np.sqrt(np.outer(own, other))
    return np.where(scale > 0, cross / np.where(scale > 0, scale, 1.0), np.nan)


def _compute_hsic(x: FloatArray, y: FloatArray, debiased: bool) -> float:
    """Compute HSIC of centred states, but for a factor that CKA divides out."""
    total = float(np.square(x.T @ y).sum())
    if not debiased:
        return total
    count = len(x)
    first, second = np.square(x).sum(1), np.square(y).sum(1)
    own = float(first @ second)
    # With zeros on the diagonals: tr(KL), the product of both sums, and the sum of KL.
    products = first.sum() * second.sum() / ((count - 1) * (count - 2))
    return total - own + float(products) - 2 * own / (count - 2)


def compute_cca(x: States, y: States, weighted: bool = False) -> float:
    """Compute the mean canonical correlation of two spaces: 1 where one is a linear map of the other.

    Of F frames that have nothing to do with each other, it is well above 0 unless F is far above D + E.

    Args:
        x: (F, D), of full rank or not.
        y: (F, E): the same frames.
        weighted: weight each correlation by how much of `x` lies in its direction (projection weighted).

    Returns:
        0 to 1, over min(rank of x, rank of y) correlations; NaN where a space is constant.

    Source: Hotelling 1936; Morcos et al. 2018, arXiv 1806.05759 §3 (projection weighted).
    """
    first, second = _centre(x), _centre(y)
    left, right = _whiten(first), _whiten(second)
    if not left.shape[1] or not right.shape[1]:
        return float("nan")
    # Whitened directions are orthonormal, so that singular values of their product are the correlations.
    directions, correlations, _ = np.linalg.svd(left.T @ right, full_matrices=False)
    correlations = correlations.clip(0, 1)
    if not weighted:
        return float(correlations.mean())
    weights = np.abs((left @ directions).T @ first).sum(1)
    return float((weights * correlations).sum() / weights.sum())


def _whiten(centred: FloatArray) -> FloatArray:
    """Give an orthonormal basis (F, rank) of the columns of centred states."""
    variances, axes = np.linalg.eigh(centred.T @ centred)
    kept = variances > max(FLOOR * variances[-1], 0.0)
    basis: FloatArray = centred @ (axes[:, kept] / np.sqrt(variances[kept]))
    return basis


def _centre(states: States) -> FloatArray:
    """Take the mean away; of equal states all of it, not all but rounding."""
    wide = states.astype(np.float64)
    centred: FloatArray = wide - wide.mean(0)
    centred[:, np.abs(centred).max(0) <= 1e-12 * np.abs(wide).max(0)] = 0.0
    return centred


def compute_variance_ratio(states: States, labels: Sequence[str]) -> float:
    """Compute how far classes lie apart: the variance between their means over the variance within them.

    Args:
        states: (n, D).
        labels: n classes.

    Returns:
        0 to infinity: traces of the scatter matrices between and within (Fukunaga 1990, §10.2); a ratio of shares of
        variance, without degrees of freedom. NaN where nothing varies.
    """
    wide = states.astype(np.float64)
    names, owners = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    counts = np.bincount(owners)
    means = np.zeros((len(names), wide.shape[1]))
    np.add.at(means, owners, wide)
    means /= counts[:, None]
    between = float((counts[:, None] * np.square(means - wide.mean(0))).sum())
    within = float(np.square(wide - means[owners]).sum())
    if within == 0:
        return float("nan") if between == 0 else float("inf")
    return between / within


def classify_by_neighbour(
    states: States, labels: Sequence[str], groups: Sequence[str] | None = None
) -> npt.NDArray[np.bool_]:
    """Say of which states the nearest other one, by the cosine of what is left without the mean, has the same label.

    Args:
        states: (n, D), n ≥ 2.
        labels: n classes.
        groups: n groups, such as speakers: neighbours of the same group do not count. None: all others do.

    Returns:
        (n,); a state without a neighbour that counts is wrong.
    """
    centred = _centre(states)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    names = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)[1]
    owners = np.arange(len(unit))
    if groups is not None:
        owners = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    right = np.zeros(len(unit), dtype=np.bool_)
    for first in range(0, len(unit), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(unit)))
        cosines = np.where(owners[rows, None] == owners, -np.inf, unit[rows] @ unit.T)
        nearest = cosines.argmax(1)
        right[rows] = (names[nearest] == names[rows]) & np.isfinite(cosines.max(1))
    return right


def count_joint(units: Sequence[int] | IntArray, labels: Sequence[str]) -> IntArray:
    """Count how often each unit meets each label.

    Args:
        units: F units.
        labels: F labels, such as phones.

    Returns:
        (units that occur, labels that occur).
    """
    rows, first = np.unique(np.asarray(units), return_inverse=True)
    columns, second = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    joint = np.zeros((len(rows), len(columns)), dtype=np.int64)
    np.add.at(joint, (first, second), 1)
    return joint


def compute_label_purity(joint: IntArray) -> float:
    """Compute the accuracy of naming each unit's likeliest label, of counts (units, labels): "phone purity".

    Source: HuBERT, arXiv 2106.07447 §IV-C.
    """
    return float(joint.max(1).sum() / joint.sum())


def compute_unit_purity(joint: IntArray) -> float:
    """Compute the share of frames in their label's likeliest unit, of counts (units, labels): "cluster purity".

    Source: HuBERT, arXiv 2106.07447 §IV-C.
    """
    return float(joint.max(0).sum() / joint.sum())


def compute_pnmi(joint: IntArray) -> float:
    """Compute which share of the uncertainty of a label its unit takes away: I(label; unit) / H(label), 0 to 1.

    Args:
        joint: counts (units, labels).

    Returns:
        Phone-normalised mutual information; NaN where there is one label.

    Source: HuBERT, arXiv 2106.07447 §IV-C.
    """
    shares = joint / joint.sum()
    of_units, of_labels = shares.sum(1), shares.sum(0)
    occurring, there = of_labels[of_labels > 0], shares > 0
    uncertainty = -float((occurring * np.log(occurring)).sum())
    information = float((shares[there] * np.log(shares[there] / np.outer(of_units, of_labels)[there])).sum())
    return information / uncertainty if uncertainty > 0 else float("nan")
