"""The order of the data: a pure function of (lengths, seed, update), so that any update can be asked for directly.

The unit is the sub-batch: a fixed number of seconds of audio whose crop length, masks and codebook statistics belong
together, as they belonged to one GPU in the reference. Utterances are sorted by length with random ties and cut
into sub-batches greedily; the cuts depend on the sorted lengths alone, so every epoch has the same number of
sub-batches and the sub-batch of any number is found by a division.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from speechssl.data.augment import bound_lengths, count_at_speed, draw_speeds
from speechssl.seeds import make_rng

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
T = TypeVar("T", int, IntArray)

WHOLE_STEP_SAMPLES = 16_000
"""Batches of whole utterances are padded to a multiple of this, and utterances of one multiple change places between
epochs. The CPU prepares its kernels for every new shape, which costs as much as computing seconds of speech."""


@dataclass(frozen=True)
class SubBatch:
    """One sub-batch.

    Attributes:
        number: counts sub-batches over the whole run, from 0.
        epoch: from 0.
        indices: rows of the manifest.
        crop_samples: length of every row at 16 kHz; 0 takes whole utterances.
        speeds: at which each row is played; empty: as it is.
    """

    number: int
    epoch: int
    indices: tuple[int, ...]
    crop_samples: int
    speeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class ForwardPlan:
    """The sub-batches of one forward.

    Attributes:
        update: that it belongs to; 0 in validation.
        sub_batches: stacked in it.
        is_last: the last forward of its update on this rank.
        is_counted: False for the forward of a rank that has nothing left to validate while others have: it is made,
            since they wait for it, and left out of every sum.
    """

    update: int
    sub_batches: tuple[SubBatch, ...]
    is_last: bool
    is_counted: bool = True


@dataclass(frozen=True)
class PlanConfig:
    """What decides the plan.

    Attributes:
        seed: of the run.
        sub_batch_samples: audio a sub-batch may hold, at 16 kHz.
        sub_batches_per_update: how many make an update.
        forward_samples: audio, padding included, that one forward may hold.
        max_samples: longest crop; 0 takes whole utterances.
        ascending_epochs: number of first epochs that take short utterances first.
        speeds: factors of speed perturbation, one of which is drawn for each utterance and epoch; empty: none.
        shuffled: False keeps the order of lengths and of the manifest (validation).
        rank, num_ranks: which of how many processes this is. They share the sub-batches of an update out whole and in
            order, a contiguous block each; what the sub-batches are does not depend on them.
    """

    seed: int
    sub_batch_samples: int
    sub_batches_per_update: int
    forward_samples: int
    max_samples: int = 0
    ascending_epochs: int = 0
    speeds: tuple[float, ...] = ()
    shuffled: bool = True
    rank: int = 0
    num_ranks: int = 1


class UpdatePlanner:
    """Tells which utterances an update holds.

    Args:
        lengths: samples of each utterance at 16 kHz.
        config: what decides the plan.
    """

    def __init__(self, lengths: IntArray, config: PlanConfig) -> None:
        assert len(lengths) > 0, "a plan needs utterances"
        self.config, self.samples = config, lengths
        self.lengths = self._limit(lengths)
        # Cut once, for the longest lengths that an epoch may have, so that every one has as many sub-batches.
        longest = self._limit(bound_lengths(lengths, config.speeds)) if config.speeds else np.sort(self.lengths)[::-1]
        self.bounds = _cut(longest, config.sub_batch_samples)
        self._falling = np.argsort(-lengths, kind="stable")
        self._plan_epoch = lru_cache(maxsize=2)(self._compute_epoch)

    @property
    def sub_batches_per_epoch(self) -> int:
        """Sub-batches in every epoch."""
        return len(self.bounds) - 1

    @property
    def updates_per_epoch(self) -> float:
        """Updates in an epoch; an update may reach into the next one."""
        return self.sub_batches_per_epoch / self.config.sub_batches_per_update

    def plan_update(self, update: int) -> list[ForwardPlan]:
        """Plan this rank's forwards of update `update` (from 1)."""
        size, num_ranks = self.config.sub_batches_per_update, self.config.num_ranks
        assert size % num_ranks == 0, f"{num_ranks} ranks cannot share {size} sub-batches out whole"
        return self._plan_share(update, range((update - 1) * size, update * size))

    def plan_epoch_once(self) -> list[ForwardPlan]:
        """Plan this rank's part of one pass over all utterances (validation); every rank has as many forwards."""
        return self._plan_share(0, range(self.sub_batches_per_epoch))

    def find_sub_batch(self, number: int) -> SubBatch:
        """Find a sub-batch by its number in the run."""
        epoch, position = divmod(number, self.sub_batches_per_epoch)
        order, positions, speeds = self._plan_epoch(epoch)
        place = int(positions[position])
        rows = order[self.bounds[place] : self.bounds[place + 1]].tolist()
        drawn = () if speeds is None else tuple(speeds[rows].tolist())
        sub_batch = SubBatch(number, epoch, tuple(rows), 0, drawn)
        if not self.config.max_samples:
            return sub_batch
        # Within a sub-batch lengths fall: the first row is the longest and the last one the shortest.
        return replace(sub_batch, crop_samples=self._count_samples(sub_batch, -1))

    def _limit(self, lengths: IntArray) -> IntArray:
        """Shorten to the longest crop, or round whole utterances up."""
        limit = self.config.max_samples
        return np.minimum(lengths, limit) if limit else round_up(lengths)

    def _count_samples(self, sub_batch: SubBatch, place: int) -> int:
        """Count the samples of a row of a sub-batch as it is played, at most the longest crop, or rounded up."""
        row = sub_batch.indices[place]
        if not sub_batch.speeds:
            return int(self.lengths[row])
        return int(self._limit(count_at_speed(self.samples[[row]], sub_batch.speeds[place]))[0])

    def _compute_epoch(self, epoch: int) -> tuple[IntArray, IntArray, FloatArray | None]:
        """Order the utterances by falling length with random ties, shuffle the sub-batches, and draw speeds."""
        rng = make_rng(self.config.seed, "order", epoch)
        num = self.sub_batches_per_epoch
        if not self.config.shuffled:
            return np.argsort(-self.lengths, kind="stable"), np.arange(num), None
        speeds, lengths = None, self.lengths
        if self.config.speeds:
            own = make_rng(self.config.seed, "speed", epoch)
            speeds = draw_speeds(self._falling, self.config.speeds, own)
            lengths = self._limit(count_at_speed(self.samples, speeds))
        ties = rng.permutation(len(lengths))
        order = ties[np.argsort(-lengths[ties], kind="stable")]
        ascending = epoch < self.config.ascending_epochs
        return order, (np.arange(num)[::-1] if ascending else rng.permutation(num)), speeds

    def _plan_share(self, update: int, numbers: range) -> list[ForwardPlan]:
        """Share sub-batches out among the ranks and stack this rank's into forwards."""
        shares = [[self.find_sub_batch(number) for number in share] for share in _cut_evenly(numbers, self.config)]
        bounds = self._find_bounds(shares)
        own = shares[self.config.rank]
        groups = [tuple(own[first:end]) for first, end in pairwise(bounds)]
        idle = (self.find_sub_batch(numbers[0]),)
        return [
            ForwardPlan(update, group or idle, end == bounds[-1], bool(group))
            for group, end in zip(groups, bounds[1:], strict=True)
        ]

    def _find_bounds(self, shares: list[list[SubBatch]]) -> list[int]:
        """Find where each rank's sub-batches are cut into forwards, as large as memory allows on every rank.

        All ranks cut alike, so that they make the same number of forwards: weights that are sharded over them are
        gathered in every one.
        """
        bounds, num_places = [0], len(shares[0])
        for place in range(1, num_places):
            if not all(self._fits(share[bounds[-1] : place + 1]) for share in shares):
                bounds.append(place)
        return [*bounds, num_places]

    def _fits(self, stacked: list[SubBatch]) -> bool:
        rows = sum(len(sub_batch.indices) for sub_batch in stacked)
        longest = max((self._count_samples(sub_batch, 0) for sub_batch in stacked), default=0)
        return rows * longest <= self.config.forward_samples


def _cut_evenly(numbers: range, config: PlanConfig) -> list[range]:
    """Cut numbers into a contiguous block a rank; where they do not divide, the first ranks have one more."""
    size, more = divmod(len(numbers), config.num_ranks)
    bounds = [rank * size + min(rank, more) for rank in range(config.num_ranks + 1)]
    return [numbers[first:end] for first, end in pairwise(bounds)]


def round_up(lengths: T) -> T:
    """Round samples up to a multiple of `WHOLE_STEP_SAMPLES`."""
    return -(-lengths // WHOLE_STEP_SAMPLES) * WHOLE_STEP_SAMPLES


def _cut(falling: IntArray, capacity: int) -> IntArray:
    """Cut utterances, longest first, into sub-batches of at most `capacity` samples (at least one utterance each).

    Returns:
        (P + 1,) bounds of the P sub-batches.
    """
    fitting = np.maximum(capacity // falling, 1).tolist()
    bounds = [0]
    while bounds[-1] < len(fitting):
        bounds.append(bounds[-1] + fitting[bounds[-1]])
    return np.minimum(bounds, len(fitting), dtype=np.int64)


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
    rng = make_rng(seed, "limit")
    rows: dict[tuple[str, str], list[int]] = {}
    for row in rng.permutation(len(speakers)).tolist():
        rows.setdefault((sexes[row], speakers[row]), []).append(row)
    queues: dict[str, list[Queue]] = {}
    for key, place in zip(sorted(rows), rng.permutation(len(rows)).tolist(), strict=True):
        queues.setdefault(key[0], []).append((0, place, rows[key]))
    for heap in queues.values():
        heapq.heapify(heap)
    return queues
