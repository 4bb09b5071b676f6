"""Training a probe on features in memory, by the package's one trainer."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import torch

from speechssl.config.training import TrainingConfig
from speechssl.data.loader import Batch
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.objectives.speaker import SpeakerObjective, SpeakerProbe
from speechssl.seeds import make_torch_seed
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.trainer import Trainer

FloatArray = npt.NDArray[np.float32]


def train_probe(
    features: FloatArray, labels: npt.NDArray[np.int64], num_speakers: int, updates: int, lr: float, seed: int
) -> SpeakerProbe:
    """Train a linear probe; every update sees all utterances.

    Args:
        features: (n, S, D) standardised.
        labels: (n,) speakers, 0 to num_speakers - 1.
        num_speakers: classes.
        updates: of AdamW, its rate falling to 0.
        lr: peak learning rate.
        seed: of the first weights.
    """
    torch.manual_seed(make_torch_seed(seed, "probe"))
    probe = SpeakerProbe(features.shape[1], features.shape[2], num_speakers)
    inputs = {"features": torch.from_numpy(features), "labels": torch.from_numpy(labels)[:, None]}

    def source(first: int, last: int) -> Generator[list[Batch], None, None]:
        for update in range(first, last + 1):
            yield [_make_batch(inputs, update)]

    config = TrainingConfig(
        max_updates=updates, lr=lr, warmup_share=0.1, log_every=updates + 1, weight_decay=0.01, spike_sigmas=0.0
    )
    Trainer(SpeakerObjective(probe), config, source, Ranks(), "float32", seed, is_quiet=True).run()
    return probe.eval().requires_grad_(False)


def _make_batch(inputs: dict[str, torch.Tensor], update: int) -> Batch:
    count = len(inputs["labels"])
    plan = ForwardPlan(update, (SubBatch(update - 1, update - 1, tuple(range(count)), 0),), True)
    ids = [str(row) for row in range(count)]
    return Batch(torch.zeros(count, 1), None, ids, plan, torch.ones(1, count), inputs, [{"first": 0, "rows": count}])
