"""Utterances in an order whose every beginning is balanced over speakers and sexes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def take_turns(lengths: IntArray, speakers: Sequence[str], sexes: Sequence[str], limit: int, seed: int) -> IntArray:
    """Let the speaker who has said least so far, of the sex that has said least so far, speak next.

    Each speaker's utterances come in a random order. Because a choice depends on those before it alone, the subset
    of a smaller limit is contained in that of a larger one.

    Args:
        lengths: (rows,) of the utterances, in any unit.
        speakers: label of each row.
        sexes: label of each row; all alike where they are unknown.
        limit: total length; the first utterance that would pass it ends the subset, which has one at least.
        seed: of the random order.

    Returns:
        Indices of the rows taken, in the order in which they were.
    """
    queues = _make_queues(speakers, sexes, seed)
    said = dict.fromkeys(queues, 0)
    taken: list[int] = []
    total = 0
    while queues:
        sex = min(queues, key=lambda name: (said[name], name))
        heap = queues[sex]
        seconds, place, rows = heap[0]
        length = int(lengths[rows[-1]])
        if taken and total + length > limit:
            break
        taken.append(rows.pop())
        total += length
        said[sex] += length
        if rows:
            heapq.heapreplace(heap, (seconds + length, place, rows))
        else:
            heapq.heappop(heap)
        if not heap:
            del queues[sex]
    return np.asarray(taken, dtype=np.int64)


Queue = tuple[int, int, list[int]]
"""What a speaker has said, a random place among speakers who have said as much, and the rows that are left."""


def _make_queues(speakers: Sequence[str], sexes: Sequence[str], seed: int) -> dict[str, list[Queue]]:
    """Make a heap of speakers for each sex."""
    rng = np.random.default_rng([seed, 0x5B5E7])
    rows: dict[tuple[str, str], list[int]] = {}
    for row in rng.permutation(len(speakers)).tolist():
        rows.setdefault((sexes[row], speakers[row]), []).append(row)
    queues: dict[str, list[Queue]] = {}
    for key, place in zip(sorted(rows), rng.permutation(len(rows)).tolist(), strict=True):
        queues.setdefault(key[0], []).append((0, place, rows[key]))
    for heap in queues.values():
        heapq.heapify(heap)
    return queues
