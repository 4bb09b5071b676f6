"""Nearest neighbours by cosine, exact and in memory: one product of matrices, block by block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

ROWS_AT_ONCE = 16_384
"""50 MB of float32 vectors of 768 numbers."""


class Neighbours(NamedTuple):
    """The (k,) rows that are nearest, nearest first, and their (k,) cosines; `num_without` rows have no direction."""

    rows: npt.NDArray[np.int64]
    cosines: FloatArray
    num_without: int


def find_neighbours(vectors: FloatArray, query: FloatArray, top: int, left_out: npt.ArrayLike = ()) -> Neighbours:
    """Find the vectors with the largest cosine to a query; of equal ones, the earlier.

    Args:
        vectors: (N, D) float32 or float16; one of zeros, or with a value that is not finite, is nobody's neighbour.
        query: (D,), neither of these.
        top: neighbours to give; all where there are no more.
        left_out: rows that do not count.
    """
    unit = query.astype(np.float32) / np.float32(np.linalg.norm(query.astype(np.float64)))
    cosines = np.empty(len(vectors), dtype=np.float32)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        block = np.asarray(vectors[first : first + ROWS_AT_ONCE], dtype=np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            cosines[first : first + len(block)] = (block @ unit) / norms
    is_without = ~np.isfinite(cosines)
    cosines[is_without] = -np.inf
    cosines[np.asarray(left_out, dtype=np.int64)] = -np.inf
    order = np.argsort(-cosines, kind="stable")[:top]
    rows = order[np.isfinite(cosines[order])]
    return Neighbours(rows, cosines[rows].clip(-1, 1), int(is_without.sum()))
