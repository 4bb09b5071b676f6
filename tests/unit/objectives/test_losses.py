"""The losses, each against a case that can be computed by hand or an independent implementation."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.objectives.losses import (
    average_by_sub_batch,
    compute_contrastive_loss,
    compute_ctc_loss,
    compute_diversity_loss,
    compute_feature_penalty,
    compute_perplexity,
)


def test_contrastive_loss_is_cross_entropy_over_valid_frames() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    loss, _ = compute_contrastive_loss(logits, valid)
    entropy = torch.nn.functional.cross_entropy(logits[valid], torch.zeros(3, dtype=torch.long), reduction="sum")
    torch.testing.assert_close(loss.sum(), entropy)


def test_chance_is_log2_101() -> None:
    loss, right = compute_contrastive_loss(torch.zeros(1, 4, 101), torch.ones(1, 4, dtype=torch.bool))
    assert float(loss.sum()) / 4 / math.log(2) == pytest.approx(6.6582, abs=1e-4)
    assert int(right.sum()) == 0


def test_all_negatives_removed_counts_as_right_and_has_a_gradient() -> None:
    logits = torch.full((1, 1, 4), float("-inf"))
    logits[..., 0] = 3.0
    logits.requires_grad_()
    loss, right = compute_contrastive_loss(logits, torch.ones(1, 1, dtype=torch.bool))
    loss.sum().backward()
    assert float(loss.detach()) == 0.0
    assert int(right) == 1
    assert torch.isfinite(logits.grad).all()


def test_perplexity_spans_one_to_all() -> None:
    uniform, single = torch.full((8,), 1 / 8), torch.nn.functional.one_hot(torch.tensor(2), 8).float()
    assert float(compute_perplexity(uniform)) == pytest.approx(8.0, rel=1e-5)
    assert float(compute_perplexity(single)) == pytest.approx(1.0, rel=1e-5)


def test_diversity_at_collapse_is_the_references_value() -> None:
    """0.1 · 638 / 640 nats, 0.14382 bits, for two codebooks of 320 codes."""
    probs = torch.zeros(1, 2, 320)
    probs[..., 0] = 1.0
    assert 0.1 * float(compute_diversity_loss(probs)) / math.log(2) == pytest.approx(0.14382, abs=1e-4)


def test_average_is_taken_within_each_sub_batch() -> None:
    probs = torch.softmax(torch.randn(3, 4, 2, 5), dim=-1)
    valid = torch.tensor([[True] * 4, [True, False, False, False], [True, True, False, False]])
    membership = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    means = average_by_sub_batch(probs, valid, membership)
    torch.testing.assert_close(means[0], torch.cat([probs[0], probs[1, :1]]).mean(0))
    torch.testing.assert_close(means[1], probs[2, :2].mean(0))


def test_the_feature_penalty_is_not_rounded_in_bf16() -> None:
    """2,100 masked frames, and as many as bf16 has no number for."""
    sums = (torch.full((21,), 3.7), torch.full((21,), 199), 5, torch.full((21,), 100), torch.ones(1, 21))
    with torch.autocast("cpu", torch.bfloat16):
        found = compute_feature_penalty(*sums)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(3.7 / (199 * 5) * 2_100, rel=1e-6)


def test_ctc_sums_over_utterances_and_zeroes_the_impossible() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 4)
    labels, lengths = torch.tensor([[1, 2, 0], [3, 3, 3]]), torch.tensor([2, 3])
    both = compute_ctc_loss(logits, torch.tensor([6, 6]), labels, lengths)
    first = compute_ctc_loss(logits[:1], torch.tensor([6]), labels[:1], lengths[:1])
    second = compute_ctc_loss(logits[1:], torch.tensor([6]), labels[1:], lengths[1:])
    torch.testing.assert_close(both, first + second)
    assert float(compute_ctc_loss(logits[1:], torch.tensor([4]), labels[1:], lengths[1:])) == 0.0


def test_ctc_by_hand() -> None:
    """Two frames, one label: the paths are label-label, label-blank, blank-label."""
    probs = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]])
    loss = compute_ctc_loss(probs.log(), torch.tensor([2]), torch.tensor([[1]]), torch.tensor([1]))
    assert float(loss) == pytest.approx(-math.log(0.3 * 0.6 + 0.3 * 0.1 + 0.5 * 0.6), rel=1e-5)


@pytest.mark.parametrize("num_labels", [[4, 1, 0, 4], [2, 1, 0, 2]])
def test_ctc_is_bitwise_that_of_torch_with_its_gradient(num_labels: list[int]) -> None:
    """Labels padded further than the longest row, rows of different length, and one that no path fits."""
    torch.manual_seed(1)
    labels, lengths = torch.randint(1, 5, (4, 5)), torch.tensor(num_labels)
    labels[3] = 2
    num_frames = torch.tensor([9, 8, 7, 2])
    ours, theirs = (torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    found = compute_ctc_loss(ours, num_frames, labels, lengths)
    log_probs = theirs.log_softmax(-1).transpose(0, 1)
    expected = torch.nn.functional.ctc_loss(log_probs, labels, num_frames, lengths, reduction="sum", zero_infinity=True)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    (0.3 * found).backward()
    (0.3 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=0, rtol=0)
    assert ours.grad is not None
    assert not ours.grad[3].any()
