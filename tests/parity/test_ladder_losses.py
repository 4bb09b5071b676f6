"""The upper rungs of the parity ladder: quantizer, losses and gradients, with the same masks, negatives and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is the peer of this test")

from speechssl.config.model import MaskConfig, ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.model.masking import sample_masks, sample_negatives
from speechssl.model.pretraining import PretrainingOutput, find_masked
from speechssl.objectives.losses import (
    average_by_sub_batch,
    compute_contrastive_loss,
    compute_ctc_loss,
    compute_diversity_loss,
)
from tests.parity.hf_weights import rename
from tests.parity.ladder import (
    LENGTHS,
    NORMS,
    NUM_NEGATIVES,
    Inputs,
    build_ctc_pair,
    build_pretraining_pair,
    draw_inputs,
    make_rung_config,
)

BAR, LOSS_BAR, GRADIENT_BAR, PART_BAR = 1e-5, 1e-6, 1e-5, 3e-5
"""Values absolute; losses, the norm of the whole gradient and those of its parts relative. What seven convolutions with
layer norms make of float32's rounding came to 1.1e-5 for their part alone."""

PERPLEXITY_BAR = 2e-5
"""fairseq and we take log(p + 1e-7), transformers xlogy: the perplexities differ by up to 2e-5 relative."""

TEMPERATURE = 1.5

PARTS = ("encoder", "feature_norm", "projection", "mask_embedding", "position", "blocks", "norm", "quantizer", "heads")


@dataclass
class Draws:
    """What is drawn at random, in the shape of each side."""

    mask: Tensor
    negatives: Tensor
    noise: Tensor
    negatives_there: Tensor
    noise_there: Tensor


def draw(config: ModelConfig, batch: Inputs) -> Draws:
    """Draw masks, negatives and noise; rows may have different numbers of masked frames."""
    rng = np.random.default_rng(2)
    length, rows = max(batch.num_frames), len(batch.num_frames)
    masks = sample_masks(batch.num_frames, MaskConfig(), rng)
    mask = torch.from_numpy(np.stack([np.pad(row, (0, length - len(row))) for row in masks]))
    largest = int(mask.sum(1).max())
    negatives = torch.zeros(rows, largest, NUM_NEGATIVES, dtype=torch.long)
    there = torch.zeros(rows, length, NUM_NEGATIVES, dtype=torch.long)
    positions, _ = find_masked(mask, largest)
    for row in range(rows):
        count = int(mask[row].sum())
        drawn = torch.from_numpy(sample_negatives(count, NUM_NEGATIVES, rng))
        negatives[row, :count] = drawn
        # Theirs are indices into all frames of the batch, ours into the row's masked ones.
        there[row, positions[row, :count]] = positions[row][drawn] + row * length
    groups, codes = config.quantizer.num_groups, config.quantizer.num_codes
    noise = -torch.log(-torch.log(torch.rand(rows, length, groups, codes)))
    picked = noise.gather(1, positions[:, :, None, None].expand(-1, -1, groups, codes))
    return Draws(mask, negatives, picked, there, noise)


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], list[Tensor]]:
    """Put noise into their Gumbel softmax, and note the codes that it chooses."""

    def put(noise: Tensor) -> list[Tensor]:
        chosen: list[Tensor] = []

        def choose(logits: Tensor, tau: float, hard: bool) -> Tensor:
            assert hard
            scores = logits + noise.view_as(logits)
            soft = torch.softmax(scores / tau, dim=-1)
            chosen.append(scores.argmax(-1).view(noise.shape[:-1]))
            choice = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft.dtype)
            return choice - soft.detach() + soft

        monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", choose)
        return chosen

    return put


def measure_relative(found: Tensor | float, wanted: Tensor | float) -> float:
    return abs(float(found) - float(wanted)) / abs(float(wanted))


def sum_squares(gradients: dict[str, Tensor | None]) -> dict[str, float]:
    """Add up squared gradients by part of the network."""
    total = dict.fromkeys(PARTS, 0.0)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        words = name.removeprefix("pretraining.").removeprefix("backbone.").removeprefix("transformer.").split(".")
        part = words[0] if words[0] in PARTS else "heads"
        total[part] += float(gradient.double().square().sum())
    return total


def compare_gradients(ours: nn.Module, theirs: nn.Module, config: ModelConfig) -> None:
    """Compare the norm of the gradient of each part, and of the whole."""
    mine = sum_squares({name: value.grad for name, value in ours.named_parameters()})
    renamed = rename({name: value.grad for name, value in theirs.named_parameters()}, config)  # type: ignore[misc]
    there = sum_squares(dict(renamed))
    for part, value in mine.items():
        if value == there[part] == 0:
            # A recogniser has no quantizer.
            assert part == "quantizer"
            continue
        assert measure_relative(value**0.5, there[part] ** 0.5) <= PART_BAR, part
    assert measure_relative(sum(mine.values()) ** 0.5, sum(there.values()) ** 0.5) <= GRADIENT_BAR


def test_pretraining_in_training_mode(inject: Callable[[Tensor], list[Tensor]]) -> None:
    """Quantizer, targets, predictions, both losses and all gradients, in this order: each stands on the one before."""
    for norms, lengths in product(NORMS, LENGTHS):
        config = make_rung_config(norms)
        ours, theirs = build_pretraining_pair(config)
        batch = draw_inputs(config, LENGTHS[lengths])
        draws = draw(config, batch)
        chosen = inject(draws.noise_there)
        theirs.train().set_gumbel_temperature(TEMPERATURE)
        expected = theirs(
            batch.waveforms,
            attention_mask=batch.attention_mask,
            mask_time_indices=draws.mask,
            sampled_negative_indices=draws.negatives_there,
        )
        output = ours.train()(batch.waveforms, batch.num_samples, draws.mask, draws.negatives, draws.noise, TEMPERATURE)
        compare_heads(ours, output, expected, draws, chosen[0])
        loss, _ = compute_contrastive_loss(output.logits, output.valid)
        assert measure_relative(loss.sum().detach(), expected.contrastive_loss.detach()) <= LOSS_BAR, "contrastive loss"
        diversity = compute_diversity(output)
        difference = measure_relative(diversity.detach(), expected.diversity_loss.detach())
        assert difference <= PERPLEXITY_BAR, "diversity loss"
        total = loss.sum() + ContrastiveConfig().diversity_weight * diversity
        assert measure_relative(total.detach(), expected.loss.detach()) <= LOSS_BAR, "loss"
        expected.loss.backward()
        total.backward()
        compare_gradients(ours, theirs, config)


def compute_diversity(output: PretrainingOutput) -> Tensor:
    """Diversity of the whole batch as one sub-batch, times its masked frames."""
    probs = average_by_sub_batch(output.soft_probs, output.valid, torch.ones(1, len(output.valid)))
    return compute_diversity_loss(probs).sum() * output.valid.sum()


def compare_heads(ours: nn.Module, output: PretrainingOutput, expected: Any, draws: Draws, chosen: Tensor) -> None:
    """Compare what the masked frames become: codes exactly, projections within the bar."""
    positions, valid = find_masked(draws.mask, draws.negatives.shape[1])
    rows = torch.arange(len(positions))[:, None]
    assert torch.equal(output.codes[valid], chosen[rows, positions][valid]), "codes"
    predictions = expected.projected_states[rows, positions][valid]
    torch.testing.assert_close(output.context[valid], predictions, atol=BAR, rtol=0, msg="predictions")
    targets = ours.target_projection(ours.quantizer.lookup(output.codes))[valid]
    there = expected.projected_quantized_states[rows, positions][valid]
    torch.testing.assert_close(targets, there, atol=BAR, rtol=0, msg="targets")


def test_contrastive_loss_in_evaluation_mode() -> None:
    """Without noise. Their diversity term is that of hard choices there, ours of the softmax: not compared."""
    for norms, lengths in product(NORMS, LENGTHS):
        config = make_rung_config(norms)
        ours, theirs = build_pretraining_pair(config)
        batch = draw_inputs(config, LENGTHS[lengths])
        draws = draw(config, batch)
        with torch.no_grad():
            expected = theirs(
                batch.waveforms,
                attention_mask=batch.attention_mask,
                mask_time_indices=draws.mask,
                sampled_negative_indices=draws.negatives_there,
            )
            output = ours(batch.waveforms, batch.num_samples, draws.mask, draws.negatives, None, 1.0)
            loss, _ = compute_contrastive_loss(output.logits, output.valid)
        assert measure_relative(loss.sum(), expected.contrastive_loss) <= LOSS_BAR, (norms, lengths)


def test_recognition_in_training_mode() -> None:
    """CTC loss with masked frames; then all gradients from the same gradient of the logits.

    Not in one step: the posteriors of CTC are exponentials of sums of hundreds in float32, so that logits which differ
    by 1e-6 have gradients that differ by 1e-5.
    """
    for norms, lengths in product(NORMS, LENGTHS):
        config = make_rung_config(norms)
        ours, theirs = build_ctc_pair(config)
        batch = draw_inputs(config, LENGTHS[lengths])
        mask = draw(config, batch).mask
        labels, num_labels = draw_labels(len(mask))
        frames = torch.tensor(batch.num_frames)
        # Their recogniser takes no masks: the same steps, one after the other.
        backbone = theirs.train().wav2vec2
        hidden = backbone(
            batch.waveforms, attention_mask=batch.attention_mask, mask_time_indices=mask
        ).last_hidden_state
        there = theirs.lm_head(hidden)
        context, _ = ours.train().backbone.contextualise(ours.backbone.encode(batch.waveforms, batch.num_samples), mask)
        assert ours.head is not None
        logits = ours.head(context)
        loss = compute_ctc_loss(logits, frames, labels, num_labels)
        assert measure_relative(loss.detach(), compute_theirs(there, frames, labels, num_labels).detach()) <= LOSS_BAR
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        logits.backward(gradient)  # type: ignore[no-untyped-call]
        there.backward(gradient)
        compare_gradients(ours, theirs, config)


def test_the_gradient_of_the_logits_is_torchs() -> None:
    labels, num_labels = draw_labels(3)
    frames = torch.tensor([60, 41, 8])
    logits = torch.randn(3, 60, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (ours,) = torch.autograd.grad(compute_ctc_loss(logits, frames, labels, num_labels), logits)
    (wanted,) = torch.autograd.grad(compute_theirs(logits, frames, labels, num_labels), logits)
    assert torch.equal(ours, wanted)
    assert not wanted[2, 8:].any(), "padding has no gradient"


def draw_labels(rows: int) -> tuple[Tensor, Tensor]:
    """Draw the labels (B, 9) and their numbers of up to three rows."""
    labels = torch.from_numpy(np.random.default_rng(5).integers(4, 32, (rows, 9)))
    return labels, torch.tensor([9, 5, 7][:rows])


def compute_theirs(logits: Tensor, frames: Tensor, labels: Tensor, num_labels: Tensor) -> Tensor:
    """Compute the loss as `transformers` does: labels side by side, without padding."""
    flat = labels[torch.arange(labels.shape[1]) < num_labels[:, None]]
    log_probs = torch.nn.functional.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)
    return torch.nn.functional.ctc_loss(log_probs, flat, frames, num_labels, reduction="sum", zero_infinity=True)


def test_their_own_ctc_loss_is_ours() -> None:
    """Without masks, `transformers` computes the loss itself."""
    config = make_rung_config("layer, pre")
    ours, theirs = build_ctc_pair(config)
    batch = draw_inputs(config, LENGTHS["padded"])
    labels = torch.from_numpy(np.random.default_rng(5).integers(4, 32, (3, 9)))
    with torch.no_grad():
        expected = theirs(batch.waveforms, attention_mask=batch.attention_mask, labels=labels).loss
        logits, num_frames = ours.logits(batch.waveforms, batch.num_samples)
        loss = compute_ctc_loss(logits, num_frames, labels, torch.full((3,), 9))
    assert measure_relative(loss, expected) <= LOSS_BAR
