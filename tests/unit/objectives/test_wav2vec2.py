"""The contrastive objective: sums that do not care how sub-batches are stacked, and metrics at known points."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from speechssl.config.model import MaskConfig, ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.data.dataset import Example
from speechssl.data.loader import Batch, stack
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.errors import ConfigError
from speechssl.objectives.protocol import LossTerms, add_terms
from speechssl.objectives.wav2vec2 import ContrastiveObjective, compute_terms

Speech = Callable[..., np.ndarray]


def make_objective(config: ModelConfig, unmasked_weight: float = 0.0) -> ContrastiveObjective:
    for name in ("dropout", "attention_dropout", "input_dropout", "feature_dropout"):
        setattr(config, name, 0.0)
    torch.manual_seed(0)
    task = ContrastiveConfig(num_negatives=30, unmasked_weight=unmasked_weight)
    return ContrastiveObjective(config, task, 1, 100)


@pytest.fixture
def objective(tiny_model_config: ModelConfig) -> ContrastiveObjective:
    return make_objective(tiny_model_config)


def make_batch(objective: ContrastiveObjective, speech: Speech, numbers: tuple[int, ...]) -> Batch:
    """Sub-batches 0 and 1 have rows of 2.0 and 3.0 s."""
    collate, parts, plans = objective.make_collate(), [], []
    for number in numbers:
        rows = [Example(f"{number}-{row}", speech(2.0 + number, 10 * number + row), None, None) for row in range(3)]
        parts.append((rows, collate(rows, 1, number)))
        plans.append(SubBatch(number, 0, (0, 1, 2), len(rows[0].waveform)))
    return stack(ForwardPlan(1, tuple(plans), True), parts)


def gradients(objective: ContrastiveObjective, terms: LossTerms) -> dict[str, torch.Tensor]:
    objective.module.zero_grad()
    terms.sum.backward()
    return {name: p.grad.clone() for name, p in objective.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.5])
def test_one_forward_of_two_sub_batches_is_two_forwards_of_one(
    tiny_model_config: ModelConfig, speech: Speech, unmasked_weight: float
) -> None:
    """Noise, masks, diversity and penalty belong to the sub-batch: stacking changes nothing but rounding."""
    objective = make_objective(tiny_model_config, unmasked_weight)
    stacked = objective.compute(make_batch(objective, speech, (0, 1)), 1)
    apart = [objective.compute(make_batch(objective, speech, (number,)), 1) for number in (0, 1)]
    together = add_terms(apart)
    assert float(stacked.sum.detach()) == pytest.approx(float(together.sum.detach()), rel=1e-5)
    assert int(stacked.count) == int(together.count)
    for name, value in stacked.stats.items():
        torch.testing.assert_close(value, together.stats[name], rtol=1e-4, atol=1e-4)
    first, second = gradients(objective, stacked), gradients(objective, together)
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=1e-3, atol=1e-3)


def test_autocast_rounds_no_part_of_the_loss(objective: ContrastiveObjective, speech: Speech) -> None:
    """The trainer calls objectives inside it; in bf16 the counts were, and with few codes diversity fell below 0."""
    batch = make_batch(objective, speech, (0, 1))
    output = objective.model(
        batch.waveforms, batch.num_samples, batch.inputs["mask"], batch.inputs["negatives"], None, 1.0
    )
    expected = compute_terms(output, batch.membership, objective.task)
    with torch.autocast("cpu", torch.bfloat16):
        found = compute_terms(output, batch.membership, objective.task)
    assert found.sum.dtype == torch.float32
    assert torch.equal(found.sum, expected.sum)
    assert {name for name, value in expected.stats.items() if not torch.equal(found.stats[name], value)} == set()


def test_a_dead_model_with_few_codes_is_caught(objective: ContrastiveObjective, speech: Speech) -> None:
    """Noise chooses among two codes a codebook, which removes a quarter of the negatives; all similarities are 0."""
    with torch.no_grad():
        for part in (objective.model.context_projection, objective.model.target_projection):
            part.weight.zero_()
            part.bias.zero_()
        objective.model.quantizer.logits.weight.zero_()
        objective.model.quantizer.logits.bias.view(2, -1)[:, 2:] = -100.0
    objective.watch.first_spread, objective.watch.first_variance = 0.5, 0.5
    batch = make_batch(objective, speech, (0, 1))
    terms = objective.compute(batch, 1).detach()
    metrics = objective.summarise(terms, 1)
    assert metrics["removed_negatives"] == pytest.approx(0.25, abs=0.05)
    assert metrics["loss_contrastive"] == pytest.approx(metrics["loss_of_guessing"], abs=1e-5)
    assert metrics["loss_of_guessing"] < math.log2(31) - 0.3
    problems = [objective.watch.observe(terms, metrics, update).problem for update in range(1, 251)]
    assert problems[:-1] == [""] * 249
    assert "context vectors no longer differ" in problems[-1]
    assert not objective.watch.is_candidate(metrics)


def test_guessing_costs_what_is_left_to_choose_from(objective: ContrastiveObjective, speech: Speech) -> None:
    batch = make_batch(objective, speech, (0, 1))
    output = objective.model(
        batch.waveforms, batch.num_samples, batch.inputs["mask"], batch.inputs["negatives"], None, 1.0
    )
    metrics = objective.summarise(compute_terms(output, batch.membership, objective.task).detach(), 1)
    left = 1 + (~output.removed[output.valid]).sum(-1)
    assert metrics["loss_of_guessing"] == pytest.approx(float(left.double().log2().mean()))


def test_losses_add_up_in_bits(objective: ContrastiveObjective, speech: Speech) -> None:
    terms = objective.compute(make_batch(objective, speech, (0, 1)), 1)
    metrics = objective.summarise(terms.detach(), 1)
    parts = sum(metrics[f"loss_{name}"] for name in ("contrastive", "diversity", "features"))
    assert metrics["loss"] == pytest.approx(parts, rel=1e-5)
    assert metrics["loss"] == pytest.approx(float(terms.sum.detach()) / int(terms.count) / math.log(2), rel=1e-6)
    assert 0.3 < metrics["masked_share"] < 0.6
    assert len(metrics["hard_perplexity"]) == len(metrics["soft_perplexity"]) == 2
    assert metrics["temperature"] == 2.0


def test_collate_is_a_function_of_seed_and_sub_batch(objective: ContrastiveObjective, speech: Speech) -> None:
    rows = [Example(str(k), speech(2.0, k), None, None) for k in range(3)]
    collate = objective.make_collate()
    first, again, other = collate(rows, 1, 5), collate(rows, 1, 5), collate(rows, 1, 6)
    assert all((a == b).all() for a, b in zip(first["negatives"], again["negatives"], strict=True))
    assert any((a != b).any() for a, b in zip(first["mask"], other["mask"], strict=True))
    assert {mask.sum() for mask in first["mask"]} == {len(row) for row in first["negatives"]}


def test_validation_draws_nothing(objective: ContrastiveObjective, speech: Speech) -> None:
    objective.module.eval()
    batch = make_batch(objective, speech, (0,))
    with torch.no_grad():
        values = [float(objective.compute(batch, update).sum) for update in (1, 50)]
    assert values[0] == values[1]


def test_training_noise_depends_on_the_sub_batch_alone(objective: ContrastiveObjective, speech: Speech) -> None:
    batch = make_batch(objective, speech, (0,))
    sums = [float(objective.compute(batch, 1).sum.detach()) for _ in range(2)]
    assert sums[0] == sums[1]


def test_a_mask_that_leaves_no_negatives_is_refused(tiny_model_config: ModelConfig) -> None:
    tiny_model_config.mask = MaskConfig(min_spans=0)
    with pytest.raises(ConfigError, match=r"model\.mask\.min_spans"):
        ContrastiveObjective(tiny_model_config, ContrastiveConfig(), 1, 100)


def test_the_loss_at_unmasked_frames_is_an_independent_computation(
    tiny_model_config: ModelConfig, speech: Speech
) -> None:
    """Each unmasked frame among any other frames of its row; what masked frames cost stays as it is."""
    plain, both = (make_objective(tiny_model_config, unmasked_weight=weight) for weight in (0.0, 0.5))
    batch = make_batch(both, speech, (0, 1))
    terms, of_masked = both.compute(batch, 1), plain.compute(make_batch(plain, speech, (0, 1)), 1)
    for name in ("contrastive", "right", "guessing", "code_counts", "diversity"):
        assert torch.equal(terms.stats[name], of_masked.stats[name]), name
    noise, mask = both._draw_noise(batch), batch.inputs["mask"]
    features = both.model.backbone.encode(batch.waveforms, batch.num_samples)
    context, _ = both.model.backbone.contextualise(features, mask)
    total = 0.0
    for row in range(len(mask)):
        length = int(batch.membership[0, row] == 0) * 50 + 99  # 2.0 and 3.0 s
        masked, others = ([t for t in range(length) if bool(mask[row, t]) == wanted] for wanted in (True, False))
        numbered = masked + others
        drawn = torch.cat([noise["negatives"][row, : len(masked)], noise["unmasked"][row, : len(others)]])
        quantized = both.model.quantizer(features.normed[row, numbered][None], drawn[None], 2.0)
        targets = both.model.target_projection(quantized.vectors)[0].detach().double()
        predictions = both.model.context_projection(context[row]).detach().double()
        for own, frame in enumerate(others, len(masked)):
            negatives = batch.inputs["unmasked"][row, own - len(masked)].tolist()
            assert own not in negatives and len(negatives) == 30
            codes = quantized.codes[0]
            rivals = [k for k in negatives if not torch.equal(codes[k], codes[own])]
            scores = [float(torch.cosine_similarity(predictions[frame], targets[k], 0)) / 0.1 for k in (own, *rivals)]
            total += math.log(sum(map(math.exp, scores))) - scores[0]
    assert float(terms.stats["unmasked"]) == pytest.approx(0.5 * total, rel=1e-6)
    assert float((terms.sum - of_masked.sum).detach()) == pytest.approx(0.5 * total, rel=1e-5)
    metrics = both.summarise(terms.detach(), 1)
    assert metrics["loss_unmasked"] == pytest.approx(0.5 * total / int(terms.count) / math.log(2), rel=1e-6)
    assert metrics["accuracy"] == plain.summarise(of_masked.detach(), 1)["accuracy"]
