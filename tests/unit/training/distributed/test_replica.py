"""Digests see every bit, and objectives say rightly which parameters learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from speechssl.bench.batches import make_batches
from speechssl.config.adaptation import Adaptation, LoRAConfig
from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.verbs import BenchConfig
from speechssl.data.loader import Batch
from speechssl.errors import RanksError
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.ctc import CTCObjective, CTCOptions
from speechssl.objectives.protocol import Objective
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.text.vocabulary import build_vocabulary
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.distributed.replica import (
    Replica,
    ReplicatedReplica,
    ShardedReplica,
    build_replica,
    compute_digests,
)
from tests.cases import each_case


class ScriptedRanks(Ranks):
    """Answers with digests that a test made up."""

    def __init__(self, digests: torch.Tensor) -> None:
        super().__init__(size=len(digests))
        self.digests = digests

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.digests


def test_one_flipped_bit_changes_the_digest_of_its_parameter() -> None:
    module = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    before = compute_digests(module)
    with torch.no_grad():
        module[1].weight.view(torch.int32).view(-1)[4] ^= 1
    assert (compute_digests(module) != before).tolist() == [False, False, True, False]


@each_case(
    "rows, who",
    [
        ([[1, 2], [1, 2], [1, 3]], "rank 2 differ, first in"),
        ([[1, 2], [9, 2], [1, 2], [1, 2]], "rank 1 differ, first in"),
        ([[1, 2], [1, 3]], "rank 0 and 1 differ, first in"),
    ],
)
def test_ranks_that_differ_are_named(rows: list[list[int]], who: str, tiny_model_config: ModelConfig) -> None:
    objective = ContrastiveObjective(tiny_model_config, ContrastiveConfig(), seed=1, max_updates=10)
    replica = ReplicatedReplica(objective, ScriptedRanks(torch.tensor(rows)))
    with pytest.raises(RanksError, match=f"after update 7 those of {who}"):
        replica.compare_weights(7)


def test_equal_digests_pass(tiny_model_config: ModelConfig) -> None:
    objective = ContrastiveObjective(tiny_model_config, ContrastiveConfig(), seed=1, max_updates=10)
    ranks = ScriptedRanks(torch.tensor([[1, 2], [1, 2]]))
    assert ReplicatedReplica(objective, ranks).compare_weights(7) is None  # it raises where they differ


def test_one_process_is_alone_whatever_the_sharding(tiny_model_config: ModelConfig) -> None:
    objective = ContrastiveObjective(tiny_model_config, ContrastiveConfig(), seed=1, max_updates=10)
    for sharding in ("none", "full"):
        assert type(build_replica(objective, Ranks(), sharding)) is Replica
    assert type(build_replica(objective, Ranks(size=2), "none")) is ReplicatedReplica
    assert ShardedReplica.caches_casts is False


def build_objectives(config: ModelConfig) -> Iterator[tuple[Objective, Batch, int]]:
    """Build objectives with everything that may keep a parameter from learning."""
    for scale in (0.0, 1.0):
        network = replace(config, feature_gradient_scale=scale, layer_drop_prob=0.5)
        bench = BenchConfig(model=network, batch=2, seconds=1.0)
        contrastive = ContrastiveObjective(network, ContrastiveConfig(), seed=1, max_updates=10)
        yield contrastive, next(make_batches(bench, contrastive.make_collate()))[0], 1
        for prob in (0.0, 0.65):
            masked = replace(network, mask=replace(network.mask, prob=prob))
            told = replace(masked, self_conditioning=1, norm_first=prob > 0)
            options = CTCOptions(2, 1, 3, intermediate_weight=0.3, intermediate_layer=1, consistency_weight=0.2)
            ctc = CTCObjective(SpeechModel(told, build_vocabulary(TextConfig(), ())), seed=1, options=options)
            batch = next(make_batches(replace(bench, job="ctc", model=told), ctc.make_collate()))[0]
            yield from ((ctc, batch, update) for update in (2, 3, 4))
    for way in ("lora", "adapters"):
        small = replace(network, adapter_dim=4 * (way == "adapters"))
        module = SpeechModel(small, build_vocabulary(TextConfig(), ()))
        module.adapt(Adaptation(adapt=way, init="there", lora=LoRAConfig()))
        adapted = CTCObjective(module, seed=1, options=CTCOptions(2, 1, 3))
        batch = next(make_batches(replace(bench, job="ctc", model=small), adapted.make_collate()))[0]
        yield from ((adapted, batch, update) for update in (2, 3, 4))


def test_an_objective_knows_which_parameters_get_a_gradient(tiny_model_config: ModelConfig) -> None:
    """DDP waits for exactly these: one too many and it hangs, one too few and it is never summed."""
    seen = set()
    for objective, batch, update in build_objectives(tiny_model_config):
        objective.module.train().zero_grad(set_to_none=True)
        objective.compute(batch, update).sum.backward()
        parameters = dict(objective.module.named_parameters())
        got = [name for name, parameter in parameters.items() if parameter.grad is not None]
        assert [name for name in parameters if objective.is_trained(name, update)] == got
        seen.add(len(parameters) - len(got))
    assert len(seen) > 6
