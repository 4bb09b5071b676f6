"""The best path of CTC labels through frames (Viterbi), with memory that is linear in the length.

States are those of CTC: a blank before, between and after the labels, 2L + 1 of them. A path stays in a state, goes to
the next one, or passes over the blank between two labels that differ. `torchaudio.functional.forced_align` finds the
same path for plain labels; here a text may also be passed over in part, and memory does not grow with T · L.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MAX_CELLS = 50_000_000
"""Frames × states whose steps are remembered at once, a byte each; more are halved (Hirschberg 1975)."""

IMPOSSIBLE = np.float32(-1e30)
"""The log-probability of what must not be; sums of many stay finite."""

_JUMP = 3
"""The step from one gap to another, beside those over 0, 1 and 2 states."""


@dataclass(frozen=True)
class States:
    """What a path goes through.

    Attributes:
        columns: (S,) which column of the log-probabilities each state emits.
        may_pass: (S,) whether a path may come to it over the state before: a label that differs from the one before.
        gaps: (G,) states between which what lies between may be passed over, in their order; none: nothing may.
        costs: (G,) nats from the first gap to each if all is passed over.
    """

    columns: Ints
    may_pass: npt.NDArray[np.bool_]
    gaps: Ints
    costs: Floats

    def cut(self, first: int, last: int) -> States:
        """Take the states from `first` to `last`, both included."""
        inside = (self.gaps >= first) & (self.gaps <= last)
        passes = self.may_pass[first : last + 1].copy()
        passes[:2] = False
        return States(self.columns[first : last + 1], passes, self.gaps[inside] - first, self.costs[inside])

    def reverse(self) -> States:
        """Give the states from the last to the first: a path backwards."""
        passes = np.zeros_like(self.may_pass)
        passes[2:] = self.may_pass[2:][::-1]
        costs = (self.costs[-1] - self.costs[::-1]) if len(self.costs) else self.costs
        return States(self.columns[::-1], passes, len(self.columns) - 1 - self.gaps[::-1], costs)


def find_path(log_probs: Floats, states: States, starts: Floats, ends: Floats, max_cells: int = MAX_CELLS) -> Ints:
    """Find the most probable path.

    Args:
        log_probs: (T, C) of each frame and column, T at least 1.
        states: S of them.
        starts, ends: (S,) nats added where a path starts and ends; `IMPOSSIBLE` where it must not.
        max_cells: memory, in bytes about; changes nothing else.

    Returns:
        (T,) state of each frame; empty where no path fits into the frames.
    """
    num_frames, num_states = len(log_probs), len(states.columns)
    if num_frames * num_states <= max_cells or num_frames < 3:
        return _trace(log_probs, states, starts, ends)
    middle = num_frames // 2
    before = _run(log_probs[: middle + 1], states, starts)
    after = _run(log_probs[middle:][::-1], states.reverse(), ends[::-1])[::-1]
    # Both sides count what the frame in the middle emits.
    total = before.astype(np.float64) + after - log_probs[middle, states.columns]
    here = int(total.argmax())
    if total[here] <= IMPOSSIBLE / 2:
        return np.zeros(0, dtype=np.int64)
    first = states.cut(0, here)
    second = states.cut(here, num_states - 1)
    left = find_path(log_probs[: middle + 1], first, starts[: here + 1], _only(here + 1, here), max_cells)
    right = find_path(log_probs[middle:], second, _only(num_states - here, 0), ends[here:], max_cells)
    return np.concatenate([left, right[1:] + here])


def _only(size: int, state: int) -> Floats:
    """Allow one state alone."""
    allowed = np.full(size, IMPOSSIBLE, dtype=np.float32)
    allowed[state] = 0
    return allowed


def _run(log_probs: Floats, states: States, starts: Floats) -> Floats:
    """Give the score of the best path to each state (S,) in the last frame."""
    scores: Floats = starts + log_probs[0, states.columns]
    steps = np.zeros(len(scores), dtype=np.uint8)
    for frame in log_probs[1:]:
        scores, _ = _step(scores, states, steps)
        scores += frame[states.columns]
    return scores


def _trace(log_probs: Floats, states: States, starts: Floats, ends: Floats) -> Ints:
    """Find the best path with every step remembered."""
    num_frames = len(log_probs)
    steps = np.zeros((num_frames, len(states.columns)), dtype=np.uint8)
    origins = np.zeros((num_frames, len(states.gaps)), dtype=np.int32)
    scores = starts + log_probs[0, states.columns]
    for k in range(1, num_frames):
        scores, origins[k] = _step(scores, states, steps[k])
        scores += log_probs[k, states.columns]
    scores = scores + ends
    path = np.zeros(num_frames, dtype=np.int64)
    path[-1] = scores.argmax()
    if scores[path[-1]] <= IMPOSSIBLE / 2:
        return path[:0]
    gap_numbers = {int(state): number for number, state in enumerate(states.gaps)}
    for k in range(num_frames - 1, 0, -1):
        state = int(path[k])
        step = int(steps[k, state])
        path[k - 1] = states.gaps[origins[k, gap_numbers[state]]] if step == _JUMP else state - step
    return path


def _step(scores: Floats, states: States, steps: npt.NDArray[np.uint8]) -> tuple[Floats, Ints | int]:
    """Go one frame on: the best score of each state without what it emits, and the gap that each gap was reached from.

    Args:
        scores: (S,) of the frame before.
        states: S of them.
        steps: (S,) gets how many states back each came from, or `_JUMP`.
    """
    best = scores.copy()
    steps[:] = 0
    better = scores[:-1] > best[1:]
    np.copyto(best[1:], scores[:-1], where=better)
    steps[1:][better] = 1
    better = (scores[:-2] > best[2:]) & states.may_pass[2:]
    np.copyto(best[2:], scores[:-2], where=better)
    steps[2:][better] = 2
    if not len(states.gaps):
        return best, 0
    level = scores[states.gaps] + states.costs
    highest = np.maximum.accumulate(level)
    # The gap that holds the highest level so far, itself included, from which a jump is no gain.
    origins = np.maximum.accumulate(np.where(level >= highest, np.arange(len(level)), 0))
    jumped = highest - states.costs
    better = jumped > best[states.gaps]
    best[states.gaps] = np.where(better, jumped, best[states.gaps])
    steps[states.gaps[better]] = _JUMP
    return best, origins
