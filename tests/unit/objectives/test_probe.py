"""A probe: an even mix at first, and a loss that is a sum over utterances."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.data.loader import Batch
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.objectives.probe import Probe, ProbeObjective
from speechssl.objectives.protocol import add_terms

PARTS = (slice(0, 3), slice(3, 7))


def make_batch(features: torch.Tensor, labels: torch.Tensor) -> Batch:
    count = len(labels)
    plan = ForwardPlan(1, (SubBatch(0, 0, tuple(range(count)), 0),), True)
    inputs = {"features": features, "labels": labels[:, None]}
    return Batch(torch.zeros(count, 1), None, [""] * count, plan, torch.ones(1, count), inputs, [])


def test_the_mix_is_even_at_first() -> None:
    probe, features = Probe(3, 4, 5), torch.randn(2, 3, 4)
    torch.testing.assert_close(probe.weights, torch.full((3,), 1 / 3))
    torch.testing.assert_close(probe.combine(features), features.mean(1))


def test_a_probe_that_knows_nothing_has_the_loss_of_chance() -> None:
    probe = Probe(3, 4, 5)
    torch.nn.init.zeros_(probe.heads[0].weight)
    torch.nn.init.zeros_(probe.heads[0].bias)
    objective = ProbeObjective(probe)
    terms = objective.compute(make_batch(torch.randn(6, 3, 4), torch.arange(6) % 5), 1).detach()
    metrics = objective.summarise(terms, 1)
    assert metrics["loss"] == pytest.approx(math.log(5), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(2 / 6)


def test_terms_add_up_over_forwards() -> None:
    objective = ProbeObjective(Probe(2, 4, 3))
    features, labels = torch.randn(7, 2, 4), torch.arange(7) % 3
    whole = objective.compute(make_batch(features, labels), 1).detach()
    parts = [objective.compute(make_batch(features[rows], labels[rows]), 1).detach() for rows in PARTS]
    joined = add_terms(parts)
    torch.testing.assert_close(joined.sum, whole.sum.double())
    assert int(joined.count) == 7
    assert objective.summarise(joined, 1)["accuracy"] == objective.summarise(whole, 1)["accuracy"]


def test_networks_side_by_side_have_the_gradients_that_each_has_alone() -> None:
    probe, features, labels = Probe(3, 4, 5, hidden=6, is_mixed=False), torch.randn(7, 3, 4), torch.arange(7) % 5
    ProbeObjective(probe).compute(make_batch(features, labels), 1).sum.backward()
    assert not probe.mix.requires_grad
    for k, head in enumerate(probe.heads):
        alone = Probe(1, 4, 5, hidden=6, is_mixed=False)
        alone.heads[0].load_state_dict(head.state_dict())
        ProbeObjective(alone).compute(make_batch(features[:, k : k + 1], labels), 1).sum.backward()
        for one, other in zip(alone.heads[0].parameters(), head.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)


def test_numbers_cost_their_squared_error() -> None:
    probe, features, wanted = Probe(3, 4, 1), torch.randn(6, 3, 4), torch.randn(6)
    terms = ProbeObjective(probe).compute(make_batch(features, wanted), 1).detach()
    told = features.mean(1) @ probe.heads[0].weight[0] + probe.heads[0].bias
    torch.testing.assert_close(terms.sum, (told - wanted).square().sum().detach())
