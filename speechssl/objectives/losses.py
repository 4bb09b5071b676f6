"""The losses as pure functions. Each returns a sum; whoever calls divides once, by a count of the whole update."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from speechssl.model.lengths import make_valid_mask

NATS_TO_BITS = 1.0 / math.log(2.0)


def compute_contrastive_loss(
    logits: Float[Tensor, "B M K1"], valid: Bool[Tensor, "B M"]
) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Sum the cross-entropy of picking the target (class 0) among its negatives.

    Args:
        logits: (B, M, 1 + K) float32; -inf for removed negatives.
        valid: (B, M) which entries are masked frames.

    Returns:
        (B,) nats, summed over each row's masked frames; (B,) masked frames that were right: the target is the
        largest logit and not also the smallest (all logits equal is wrong; all negatives removed is right).

    Source: wav2vec 2.0 eq. 3; accuracy as fairseq's wav2vec criterion.
    """
    loss = torch.logsumexp(logits.float(), dim=-1) - logits[..., 0].float()
    right = (logits.argmax(-1) == 0) & (logits.argmin(-1) != 0)
    return torch.where(valid, loss, 0.0).sum(1), (right & valid).sum(1)


def compute_perplexity(probs: Float[Tensor, "*rest V"]) -> Float[Tensor, "*rest"]:
    """Exponential of the entropy of each distribution, with the reference's 1e-7 inside the logarithm."""
    return torch.exp(-(probs * torch.log(probs + 1e-7)).sum(-1))


def compute_entropy(counts: Float[Tensor, " V"]) -> float:
    """Entropy, in bits, of codes that came so often."""
    shares = counts / counts.sum().clamp(min=1)
    return float(torch.special.entr(shares).sum()) * NATS_TO_BITS


def average_by_sub_batch(
    values: Float[Tensor, "B M G V"], valid: Bool[Tensor, "B M"], membership: Float[Tensor, "S B"]
) -> Float[Tensor, "S G V"]:
    """Average per-frame distributions over the masked frames of each sub-batch.

    Args:
        values: (B, M, G, V).
        valid: (B, M) which entries count.
        membership: (S, B), 1 where row b belongs to sub-batch s, else 0.
    """
    rows = torch.where(valid[..., None, None], values, 0.0).sum(1)
    counts = membership @ valid.sum(1).to(values.dtype)
    sums = torch.einsum("sb,bgv->sgv", membership, rows)
    return sums / counts.clamp(min=1)[:, None, None]


def compute_diversity_loss(mean_probs: Float[Tensor, "S G V"]) -> Float[Tensor, " S"]:
    """Share of the codes that go unused, by the perplexity of the mean soft choice of each sub-batch.

    Args:
        mean_probs: (S, G, V) from `average_by_sub_batch`.

    Returns:
        (S,) `(G·V - Σ_g perplexity) / (G·V)`, between 0 and (V - 1) / V.

    Source: wav2vec 2.0 eq. 4 in the form of its footnote 2, which the released models were trained with.
    """
    num_codes = mean_probs.shape[1] * mean_probs.shape[2]
    return (num_codes - compute_perplexity(mean_probs).sum(-1)) / num_codes


def compute_feature_penalty(
    squares: Float[Tensor, " B"],
    num_frames: Int[Tensor, " B"],
    num_channels: int,
    num_masked: Int[Tensor, " B"],
    membership: Float[Tensor, "S B"],
) -> Float[Tensor, ""]:
    """Sum the mean squared feature of each sub-batch, times its number of masked frames.

    Args:
        squares: (B,) squared outputs of the feature encoder, summed over each row's valid frames and channels.
        num_frames: (B,) those frames.
        num_channels: C.
        num_masked: (B,) masked frames.
        membership: (S, B), 1 where row b belongs to sub-batch s, else 0.

    Source: fairseq's wav2vec criterion (`features_pen`); not in the paper.
    """
    # Products with `membership` are sums, which bf16 would round.
    with torch.autocast(squares.device.type, enabled=False):
        mean_squares = (membership @ squares) / ((membership @ num_frames.float()) * num_channels)
        return (mean_squares * (membership @ num_masked.float())).sum()


def compute_ctc_loss(
    logits: Float[Tensor, "B T V"],
    num_frames: Int[Tensor, " B"],
    labels: Int[Tensor, "B U"],
    num_labels: Int[Tensor, " B"],
    blank: int = 0,
) -> Float[Tensor, ""]:
    """Sum the CTC loss over utterances, in nats; an utterance whose labels do not fit its frames counts as 0.

    Args:
        logits: (B, T, V); log-softmax is taken in float32.
        num_frames: (B,) valid frames.
        labels: (B, U) label indices, any value beyond `num_labels`.
        num_labels: (B,) labels of each utterance.
        blank: index of the blank.

    Source: Graves et al. 2006; reduction and zeroed infinities as fairseq's CTC criterion.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    nats, _ = _align(log_probs, labels, num_frames, num_labels, blank)
    return torch.where(torch.isinf(nats), 0.0, nats).sum()


def compute_consistency_loss(
    first: Float[Tensor, "B T V"], second: Float[Tensor, "B T V"], num_frames: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Sum how far two views of each utterance are apart: half the sum of both divergences at each frame, in nats.

    Each view learns from the other, which is held fixed: ½ (KL(sg(q) ‖ p) + KL(sg(p) ‖ q)).

    Args:
        first, second: (B, T, V) logits of the two views; log-softmax is taken in float32.
        num_frames: (B,) valid frames.

    Source: CR-CTC, arXiv 2410.05101; sum and halves as in icefall.
    """
    p, q = (F.log_softmax(logits.float(), dim=-1) for logits in (first, second))
    both = F.kl_div(p, q.detach(), reduction="none", log_target=True)
    both = both + F.kl_div(q, p.detach(), reduction="none", log_target=True)
    return 0.5 * torch.where(make_valid_mask(num_frames, p.shape[1])[..., None], both, 0.0).sum()


@torch.library.custom_op(
    "speechssl::ctc_align",
    mutates_args=(),
    schema="(Tensor log_probs, Tensor labels, Tensor num_frames, Tensor num_labels, int blank) -> (Tensor, Tensor)",
)
def _align(
    log_probs: Tensor, labels: Tensor, num_frames: Tensor, num_labels: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """Sum over the paths of each utterance: nats (B,), and the forward variables (B, T, 2U + 1) for the gradient.

    This is what `F.ctc_loss` calls, but for the shape of the second result, which depends there on the values of
    `num_labels`: no compiler can know it, and a graph would break. Here it goes by the labels' padded length.
    """
    nats, alpha = torch._ctc_loss(log_probs, labels, num_frames, num_labels, blank, True)
    return nats, F.pad(alpha, (0, 2 * labels.shape[1] + 1 - alpha.shape[2]))


@_align.register_fake
def _make_shapes(
    log_probs: Tensor, labels: Tensor, num_frames: Tensor, num_labels: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    length, batch, _ = log_probs.shape
    return log_probs.new_empty(batch), log_probs.new_empty(batch, length, 2 * labels.shape[1] + 1)


@torch.library.custom_op(
    "speechssl::ctc_align_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor log_probs, Tensor labels, Tensor num_frames, Tensor num_labels, Tensor nats, "
    "Tensor alpha, int blank) -> Tensor",
)
def _align_backward(
    gradient: Tensor,
    log_probs: Tensor,
    labels: Tensor,
    num_frames: Tensor,
    num_labels: Tensor,
    nats: Tensor,
    alpha: Tensor,
    blank: int,
) -> Tensor:
    """Gradient (T, B, V) of the log probabilities; zero where an utterance has no path."""
    alpha = alpha[..., : 2 * int(num_labels.max()) + 1].contiguous()
    inputs = (log_probs, labels, num_frames, num_labels, nats, alpha)
    result: Tensor = torch.ops.aten._ctc_loss_backward(gradient, *inputs, blank, True)
    return result


@_align_backward.register_fake
def _make_gradient_shape(gradient: Tensor, log_probs: Tensor, *others: Any) -> Tensor:
    return log_probs.new_empty(log_probs.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.blank = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
    return _align_backward(gradient, *ctx.saved_tensors, ctx.blank), None, None, None, None


_align.register_autograd(_differentiate, setup_context=_keep_for_backward)
