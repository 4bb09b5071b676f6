"""Training a probe on features in memory, by the package's one trainer, and choosing its learning rate."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from speechssl.config.training import TrainingConfig
from speechssl.data.loader import Batch
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.objectives.probe import Probe, ProbeObjective
from speechssl.seeds import make_torch_seed
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.trainer import Trainer

FloatArray = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64] | FloatArray
"""(n,) classes from 0 on, or standardised numbers."""


def train_probe(
    features: FloatArray,
    targets: Targets,
    num_outputs: int,
    updates: int,
    lr: float,
    seed: int,
    hidden: int = 0,
    is_mixed: bool = True,
) -> Probe:
    """Train a probe; every update sees all utterances.

    Args:
        features: (n, S, D) standardised.
        targets: (n,) classes, 0 to num_outputs - 1, or numbers of float32.
        num_outputs: classes; 1 for numbers.
        updates: of AdamW, its rate falling to 0.
        lr: peak learning rate.
        seed: of the first weights.
        hidden, is_mixed: as `Probe`.
    """
    torch.manual_seed(make_torch_seed(seed, "probe"))
    probe = Probe(features.shape[1], features.shape[2], num_outputs, hidden, is_mixed)
    inputs = {"features": torch.from_numpy(features), "labels": torch.from_numpy(targets)[:, None]}

    def source(first: int, last: int) -> Generator[list[Batch], None, None]:
        for update in range(first, last + 1):
            yield [_make_batch(inputs, update)]

    config = TrainingConfig(
        max_updates=updates, lr=lr, warmup_share=0.1, log_every=updates + 1, weight_decay=0.01, spike_sigmas=0.0
    )
    Trainer(ProbeObjective(probe), config, source, Ranks(), "float32", seed, is_quiet=True).run()
    return probe.eval().requires_grad_(False)


def choose_rates(losses: Sequence[npt.NDArray[np.float64]], rates: Sequence[float]) -> list[float]:
    """Choose the rate of the lowest loss for each network of a probe.

    Args:
        losses: of each rate, (K,) on development utterances; what is not finite loses.
        rates: learning rates.
    """
    table = np.where(np.isfinite(losses), losses, np.inf)
    return [rates[int(best)] for best in table.argmin(0)]


def compute_losses(probe: Probe, features: FloatArray, targets: Targets) -> npt.NDArray[np.float64]:
    """Compute the mean loss of each network: share that is wrong and cross-entropy in nats, or squared error.

    The share that is wrong decides, and cross-entropy where it is equal: it is divided by what it cannot exceed here.

    Returns:
        (K,).
    """
    outputs, wanted = probe(torch.from_numpy(features)), torch.from_numpy(targets)
    if wanted.is_floating_point():
        squared: npt.NDArray[np.float64] = (outputs[..., 0] - wanted[:, None]).square().double().mean(0).numpy()
        return squared
    wrong = (outputs.argmax(-1) != wanted[:, None]).double().mean(0)
    nats = torch.stack([F.cross_entropy(outputs[:, k], wanted) for k in range(outputs.shape[1])]).double()
    # Less than one utterance, so that it only breaks ties.
    ranked: npt.NDArray[np.float64] = (wrong + nats / (1 + nats) / len(wanted)).numpy()
    return ranked


def _make_batch(inputs: dict[str, torch.Tensor], update: int) -> Batch:
    count = len(inputs["labels"])
    plan = ForwardPlan(update, (SubBatch(update - 1, update - 1, tuple(range(count)), 0),), True)
    ids = [str(row) for row in range(count)]
    return Batch(torch.zeros(count, 1), None, ids, plan, torch.ones(1, count), inputs, [{"first": 0, "rows": count}])
