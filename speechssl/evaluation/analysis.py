"""What each layer of a model is like: its dimensions, its likeness to other layers and to log-mel, its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from speechssl.checkpoints.clusters import find_nearest, fit_centroids
from speechssl.evaluation.representations import (
    FloatArray,
    States,
    classify_by_neighbour,
    compute_anisotropy,
    compute_cca,
    compute_cka_matrix,
    compute_effective_rank,
    compute_label_purity,
    compute_mean_norm,
    compute_pnmi,
    compute_spread,
    compute_unit_purity,
    compute_variance_ratio,
    count_joint,
)
from speechssl.evaluation.statistics import compute_interval
from speechssl.objectives.collapse import SPREAD_SHARE
from speechssl.seeds import make_rng

LEAST_RANK = 2.0
"""Below it a layer uses one direction in effect. Layers of the healthy runs of recipes/librispeech_mini have 19 to 100;
states that are all equal have 0, and noise around one direction 1."""

LEAST_SPREAD = SPREAD_SHARE
"""The share below which the collapse watch of pretraining, too, says that nothing differs between frames: there of what
fresh weights tell apart, here of the mean square, since the fresh weights are gone."""

NUM_STARTS = 2
"""Of k-means: twenty, as for units that are kept, take some 20 s a layer on a core."""

CKA_FRAMES = 2000
"""Debiased CKA is right on average for any number of frames, and takes time in proportion for each pair of layers."""


def describe_layer(states: States) -> dict[str, Any]:
    """Describe the states (F, D) of a layer on their own, and say whether it has collapsed."""
    rank, spread = compute_effective_rank(states), compute_spread(states)
    return {
        "dim": states.shape[1],
        "rank": rank,
        "spread": spread,
        "norm": compute_mean_norm(states),
        "anisotropy": compute_anisotropy(states),
        "collapsed": rank < LEAST_RANK or spread < LEAST_SPREAD,
    }


def describe_layers(layers: Sequence[States], log_mel: States, weighted: bool) -> list[dict[str, Any]]:
    """Describe the layers of a model, each with its canonical correlation with the log-mel bands of the same frames.

    Args:
        layers: L + 1 spaces (F, D).
        log_mel: (F, 80).
        weighted: as `compute_cca`.
    """
    return [
        {"layer": number, **describe_layer(states), "cca_log_mel": compute_cca(states, log_mel, weighted)}
        for number, states in enumerate(layers)
    ]


def compute_cca_chance(states: States, log_mel: States, weighted: bool, seed: int) -> float:
    """Compute the canonical correlation with the log-mel bands of other frames: what so few frames give by chance."""
    return compute_cca(states, log_mel[make_rng(seed, "shuffle").permutation(len(log_mel))], weighted)


def compare_layers(first: Sequence[States], second: Sequence[States] | None = None) -> FloatArray:
    """Compute the CKA of each layer with each, of one model or of two: (n, m), over `CKA_FRAMES` frames at most."""
    count = len(first[0])
    chosen = np.unique(np.linspace(0, count - 1, min(count, CKA_FRAMES)).astype(np.int64))
    others = None if second is None else [states[chosen] for states in second]
    return compute_cka_matrix([states[chosen] for states in first], others)


def describe_units(states: States, labels: Sequence[str | None], num_codes: int, seed: int) -> dict[str, float]:
    """Describe how well k-means units of states know the labels of their frames.

    Args:
        states: (F, D): the clusters are fitted to all of them.
        labels: F labels, such as phones; None: the frame is not counted.
        num_codes: clusters.
        seed: of the fit.
    """
    wide = states.astype(np.float32)
    centroids = fit_centroids(wide, num_codes, seed, section="", num_starts=NUM_STARTS)
    units = find_nearest(torch.from_numpy(wide), torch.from_numpy(centroids))
    known = [(unit, label) for unit, label in zip(units.tolist(), labels, strict=True) if label is not None]
    joint = count_joint([unit for unit, _ in known], [label for _, label in known])
    purities = {"phone_purity": compute_label_purity(joint), "cluster_purity": compute_unit_purity(joint)}
    return {"pnmi": compute_pnmi(joint), **purities}


def describe_classes(
    means: States,
    labels: Sequence[str],
    groups: Sequence[str] | None,
    speakers: Sequence[str | None] | None,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Describe how classes lie in the means of utterances: how far apart, and whether neighbours are of one class.

    Args:
        means: (n, D).
        labels: n classes.
        groups: as `classify_by_neighbour`.
        speakers: what the interval is over; None or unknown ones: utterances.
        num_resamples, seed: of the interval.
    """
    right = classify_by_neighbour(means, labels, groups)
    interval = compute_interval(right.astype(np.float64), np.ones(len(right)), speakers, num_resamples, seed)
    return {
        "variance_ratio": compute_variance_ratio(means, labels),
        "neighbour_accuracy": 100 * float(right.mean()),
        "neighbour_accuracy_interval": interval.to_dict(),
    }
