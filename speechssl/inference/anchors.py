"""Where a long text and its audio can be cut alike: at stretches that the recogniser reads as they are written.

A stretch of labels that comes once in the text and once in what is recognised greedily is an anchor. Anchors that are
in the same order in both are kept, and both are cut at a word's start inside of one, so that hours are aligned part by
part.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from speechssl.text.vocabulary import BLANK

ANCHOR = 12
"""Labels of an anchor: two to three words, which seldom come twice in an hour. A recogniser with 30 % CER still reads
one in seventy of them right."""

_MARGIN = 3
"""Labels of an anchor on either side of the cut."""

PART = 300
"""Fewest labels between two cuts, some 20 seconds: what is no longer than twice that is aligned in one piece."""

Ints = npt.NDArray[np.int64]


def find_cuts(log_probs: npt.NDArray[np.float32], columns: Ints, starts: Sequence[int]) -> list[tuple[int, int]]:
    """Find where frames and labels can be cut.

    Args:
        log_probs: (T, V) of all frames.
        columns: (L,) labels of the text, boundaries included.
        starts: where words begin among them.

    Returns:
        Pairs of a frame and a label, the first of either that lies behind the cut, in their order; none where the
        text is short or the recogniser reads it too badly.
    """
    if len(columns) < 2 * PART:
        return []
    best = log_probs.argmax(-1)
    ends = np.flatnonzero(np.diff(best, append=-1) != 0)
    ends = ends[best[ends] != BLANK]
    heard = best[ends]
    may_cut = np.zeros(len(columns) + 1, dtype=np.bool_)
    may_cut[list(starts)] = True
    cuts: list[tuple[int, int]] = []
    last = 0
    for here, there in _match(np.asarray(columns), heard):
        inside = np.flatnonzero(may_cut[here + _MARGIN : here + ANCHOR - _MARGIN + 1]) + _MARGIN
        if len(inside) and here + inside[0] - last >= PART and len(columns) - here - inside[0] >= PART:
            last = int(here + inside[0])
            cuts.append((int(ends[there + inside[0] - 1]) + 1, last))
    return cuts


def _match(text: Ints, heard: Ints) -> list[tuple[int, int]]:
    """Find the anchors that are in the same order in both: where each begins in the text, and in what was heard."""
    if min(len(text), len(heard)) < ANCHOR:
        return []
    here, there = _find_single(text), _find_single(heard)
    _, first, second = np.intersect1d(here[0], there[0], assume_unique=True, return_indices=True)
    places = sorted(zip(here[1][first].tolist(), there[1][second].tolist(), strict=True))
    return [places[k] for k in _find_rising([place for _, place in places])]


def _find_single(labels: Ints) -> tuple[npt.NDArray[np.uint64], Ints]:
    """Give the hash and the place of each stretch that comes once."""
    # Products of odd numbers modulo 2^64; two stretches in a million million million share a hash.
    factors = np.random.default_rng(0).integers(0, 2**63, ANCHOR, dtype=np.uint64) * 2 + 1
    windows = np.lib.stride_tricks.sliding_window_view(labels.astype(np.uint64) + 1, ANCHOR)
    hashes, places, counts = np.unique(windows @ factors, return_index=True, return_counts=True)
    return hashes[counts == 1], places[counts == 1]


def _find_rising(values: Sequence[int]) -> list[int]:
    """Find the longest rising subsequence (Fredman 1975): the indices of its members."""
    tails: list[int] = []
    lowest: list[int] = []
    before: list[int] = []
    for index, value in enumerate(values):
        at = bisect_left(lowest, value)
        before.append(tails[at - 1] if at else -1)
        tails[at : at + 1] = [index]
        lowest[at : at + 1] = [value]
    found = []
    index = tails[-1] if tails else -1
    while index >= 0:
        found.append(index)
        index = before[index]
    return found[::-1]
