"""What a training is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from speechssl.checkpoints.state import Progress
from speechssl.checkpoints.store import CheckpointStore
from speechssl.config.training import TrainingConfig
from speechssl.data.loader import Batch
from speechssl.objectives.protocol import Objective
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.left_out import LeftOutTable
from speechssl.training.metrics import MetricsWriter
from speechssl.training.stop import StopFlag

UpdateSource = Callable[[int, int], Iterator[list[Batch]]]
"""`source(first, last)`: the batches of each update from the first to the last, both included."""


@dataclass
class Setup:
    """What a training is made of.

    Attributes:
        objective: what is learned.
        config: optimizer, schedule and bookkeeping.
        source: batches of any range of updates.
        ranks: the processes that train together, and where this one computes.
        precision: how it computes.
        seed: of dropout.
        validate: the batches of one validation; None for none.
        store: where checkpoints go; None keeps none (a probe).
        open_writers: opens the writers of metrics for a run that goes on from where it stands.
        open_skipped: opens the writer of skipped updates, likewise.
        open_left_out: opens the table of utterances that cannot be read.
        stop: says when to stop.
        is_quiet: no lines of progress.
    """

    objective: Objective
    config: TrainingConfig
    source: UpdateSource
    ranks: Ranks
    precision: str
    seed: int
    validate: Callable[[], Iterator[Batch]] | None = None
    store: CheckpointStore | None = None
    open_writers: Callable[[Progress], Sequence[MetricsWriter]] = lambda progress: ()
    open_skipped: Callable[[Progress], MetricsWriter | None] = lambda progress: None
    open_left_out: Callable[[], LeftOutTable | None] = lambda: None
    stop: StopFlag = field(default_factory=StopFlag)
    is_quiet: bool = False
