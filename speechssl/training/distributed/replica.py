"""The objective as this process computes it, and how its gradients come to be those of all processes.

Gradients are summed over the ranks, never averaged: an objective gives a sum, and the trainer divides once, by the
count of the whole update.
"""

# No `from __future__ import annotations`: DDP reads the annotations of its hook, and does not take strings.

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from speechssl.data.loader import Batch
from speechssl.errors import RanksError
from speechssl.model.conformer import ConformerBlock
from speechssl.model.transformer import TransformerBlock
from speechssl.objectives.protocol import LossTerms, Objective
from speechssl.training.distributed.ranks import Ranks


class Replica:
    """One process alone.

    Args:
        objective: what is learned; its module goes to the device of the ranks.
        ranks: who trains.

    Attributes:
        caches_casts: whether autocast may keep the bf16 copies of weights during a forward.
    """

    caches_casts = True

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        self.objective, self.ranks = objective, ranks
        objective.module.to(ranks.device)

    def prepare(self, update: int) -> None:
        """Get ready for the forwards of an update."""

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward, as `Objective.compute`."""
        return self.objective.compute(batch, update)

    def accumulate(self, is_last: bool) -> AbstractContextManager[None]:
        """Put around forward and backward; the gradients are complete after those of the last forward."""
        return nullcontext()

    def compare_weights(self, update: int) -> None:
        """Check that every rank has the same weights.

        Raises:
            RanksError: they differ; the sentence names the ranks.
        """


class ReplicatedReplica(Replica):
    """Every rank has the whole model; DDP sums the gradients while the last backward of an update still runs."""

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        super().__init__(objective, ranks)
        self.trained: list[bool] = []
        self.ddp: DistributedDataParallel | None = None

    def prepare(self, update: int) -> None:
        """Tell DDP which parameters learn in this update: it waits for the gradient of every one that it knows.

        They change twice at most (`training.freeze_share`, `training.unfreeze_share`), and then it is made anew.
        """
        parameters = dict(self.objective.module.named_parameters())
        trained = [self.objective.is_trained(name, update) for name in parameters]
        if trained == self.trained:
            return
        self.trained = trained
        for parameter, learns in zip(parameters.values(), trained, strict=True):
            parameter.requires_grad_(learns)
        if self.ddp is not None:
            self.ddp._remove_autograd_hooks()  # type: ignore[no-untyped-call]
        # All ranks have the same weights by seed or checkpoint: digests find it out if not, rather than hide it.
        self.ddp = DistributedDataParallel(_Forward(self.objective), gradient_as_bucket_view=True, init_sync=False)
        self.ddp.register_comm_hook(None, _sum_gradients)

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward; in validation without DDP, which has nothing to do there."""
        if self.ddp is None or not torch.is_grad_enabled():
            return self.objective.compute(batch, update)
        return LossTerms(*self.ddp(batch, update))

    def accumulate(self, is_last: bool) -> AbstractContextManager[None]:
        """Sum over the ranks in the last backward only."""
        return nullcontext() if is_last or self.ddp is None else self.ddp.no_sync()

    def compare_weights(self, update: int) -> None:
        """Compare an exact digest of every parameter with that of the other ranks."""
        digests = self.ranks.gather(compute_digests(self.objective.module))
        is_different = digests != digests.mode(0).values
        if not bool(is_different.any()):
            return
        odd = is_different.any(1).nonzero()[:, 0].tolist()
        if 2 * len(odd) >= self.ranks.size:
            odd = list(range(self.ranks.size))  # no majority says who is right
        names = [name for name, _ in self.objective.module.named_parameters()]
        first = names[int(is_different.any(0).int().argmax())]
        raise RanksError(
            f"all ranks must have the same weights, but after update {update} those of rank "
            f"{' and '.join(map(str, odd))} differ, first in {first} "
            "(checkpoints up to the comparison before are sound)"
        )


class ShardedReplica(Replica):
    """Every rank keeps a part of each weight, gradient and moment (FSDP2); blocks are gathered while they compute.

    Weights and gradients stay float32 between the ranks, so that autocast rounds as it does on one process. Each
    backward hands its gradients on at once: keeping them until the last one would keep them whole.
    """

    # A cached bf16 copy of every block would outlive the gathered block, and undo the sharding.
    caches_casts = False

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        self.objective, self.ranks = objective, ranks
        mesh = dist.device_mesh.init_device_mesh(ranks.device.type, (ranks.size,))
        for part in objective.module.modules():
            if isinstance(part, (TransformerBlock, ConformerBlock)):
                fully_shard(part, mesh=mesh)
        self.forward = _Forward(objective)
        # The outermost part, too, lets go of what it gathered: a validation leaves no whole weights behind.
        fully_shard(self.forward, mesh=mesh, reshard_after_forward=True)
        for part in self.forward.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)

    def compute(self, batch: Batch, update: int) -> LossTerms:
        """Compute the loss of one forward; every rank must make as many."""
        return LossTerms(*self.forward(batch, update))


class _Forward(nn.Module):
    """What DDP and FSDP see: `forward` is `Objective.compute`, with its terms as tensors side by side."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective, self.module = objective, objective.module

    def forward(self, batch: Batch, update: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        terms = self.objective.compute(batch, update)
        return terms.sum, terms.count, terms.stats


def build_replica(objective: Objective, ranks: Ranks, sharding: str) -> Replica:
    """Build what computes the objective here; `sharding` is `training.sharding`."""
    if ranks.size == 1:
        return Replica(objective, ranks)
    return ShardedReplica(objective, ranks) if sharding == "full" else ReplicatedReplica(objective, ranks)


def compute_digests(module: nn.Module) -> Tensor:
    """Sum the bits of each parameter, taken as whole numbers: (P,) int64; a single differing bit changes it."""
    parameters = [parameter.detach() for parameter in module.parameters()]
    return torch.stack([parameter.contiguous().view(torch.int32).sum(dtype=torch.int64) for parameter in parameters])


def _sum_gradients(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum a bucket over the ranks, where DDP by itself would take the mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future
