"""The best path: torchaudio's for plain labels, a search's through all paths where text may be passed over."""

from __future__ import annotations

import warnings
from itertools import pairwise, product

import numpy as np
import torch
import torchaudio

from speechssl.inference.trellis import IMPOSSIBLE, States, find_path

SMALL, HALVED = 10**6, (40, 12, 1)


def make_states(labels: list[int], gaps: list[int], cost: float = 0.7) -> States:
    columns = np.zeros(2 * len(labels) + 1, dtype=np.int64)
    columns[1::2] = labels
    may_pass = np.zeros(len(columns), dtype=np.bool_)
    may_pass[3::2] = columns[3::2] != columns[1:-2:2]
    return States(columns, may_pass, np.array(gaps, dtype=np.int64), cost * np.array(gaps, dtype=np.float32))


def make_ends(num_states: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = np.full((2, num_states), IMPOSSIBLE, dtype=np.float32)
    starts[:2] = 0
    ends[first:] = 0
    return starts, ends


def test_the_path_is_torchaudios_whatever_the_memory() -> None:
    """Few symbols, so that letters repeat, and few frames, so that some texts just fit."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(100):
        num_labels, num_symbols = (int(torch.randint(*ends, (1,), generator=draw)) for ends in ((1, 12), (2, 6)))
        labels = torch.randint(1, num_symbols, (num_labels,), generator=draw)
        repeats = int((labels[1:] == labels[:-1]).sum())
        num_frames = num_labels + repeats + int(torch.randint(0, 20, (1,), generator=draw))
        log_probs = torch.randn(num_frames, num_symbols, generator=draw).mul(3).log_softmax(-1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, _ = torchaudio.functional.forced_align(log_probs[None], labels[None].int())
        states = make_states(labels.tolist(), [])
        starts, ends = make_ends(len(states.columns), -2)
        for max_cells in (SMALL, *HALVED):
            path = find_path(log_probs.numpy(), states, starts, ends, max_cells)
            assert states.columns[path].tolist() == theirs[0].tolist()


def test_no_path_where_the_labels_do_not_fit() -> None:
    states = make_states([1, 1, 2], [])
    starts, ends = make_ends(len(states.columns), -2)
    for max_cells in (SMALL, 1):
        assert not len(find_path(np.zeros((3, 3), dtype=np.float32), states, starts, ends, max_cells))
        assert len(find_path(np.zeros((4, 3), dtype=np.float32), states, starts, ends, max_cells)) == 4


def score(path: tuple[int, ...], log_probs: np.ndarray, states: States, starts: np.ndarray, ends: np.ndarray) -> float:
    """Add up a path as its definition has it."""
    gaps = states.gaps.tolist()
    total = starts[path[0]] + ends[path[-1]] + sum(log_probs[t, states.columns[state]] for t, state in enumerate(path))
    for before, after in pairwise(path):
        step = after - before
        if step in (0, 1) or (step == 2 and states.may_pass[after]):
            continue
        if not (step > 0 and before in gaps and after in gaps):
            return -np.inf
        total -= states.costs[gaps.index(after)] - states.costs[gaps.index(before)]
    return float(total)


def test_what_is_passed_over_is_what_a_search_through_all_paths_passes_over() -> None:
    rng = np.random.default_rng(0)
    num_jumps = 0
    for _ in range(60):
        labels = rng.integers(1, 4, 3).tolist()
        states = make_states(labels, [0, 2, 4, 6], cost=float(rng.uniform(0.1, 0.6)))
        log_probs = np.log(rng.dirichlet(np.full(4, 0.3), 4)).clip(-30).astype(np.float32)
        starts, ends = make_ends(7, -2)
        starts[states.gaps], ends[states.gaps] = -states.costs, states.costs - states.costs[-1]
        best = max(score(path, log_probs, states, starts, ends) for path in product(range(7), repeat=4))
        for max_cells in (SMALL, *HALVED):
            path = find_path(log_probs, states, starts, ends, max_cells)
            assert abs(score(tuple(path.tolist()), log_probs, states, starts, ends) - best) < 1e-4
        num_jumps += bool((np.diff(path) > 2).any())
    assert num_jumps >= 3
