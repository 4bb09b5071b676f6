"""CTC for transcripts with missing, extra and wrong words: omni-temporal classification (arXiv 2309.15796).

A star stands for any labels. Before each word and after the last one, stars may come that the transcript does not have
(words that it misses), and one may come in place of a word (a wrong or extra one). Without stars this is CTC.

As in the paper, penalties keep stars away at first. There a star has the mean probability of all labels but the blank,
which is their sum at a price of log(V - 1) nats a frame, and a reward for each star between words makes good for that.
Here the price of a frame is what is chosen: letters at 25 frames a second leave hardly a blank between two stars.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from speechssl.model.lengths import make_valid_mask

INF = math.inf


class _Graph(NamedTuple):
    """What may follow what. Node u (0 to U) is where u labels have been passed; each tensor is (B, U + 1).

    Attributes:
        loop: 0 where a star may come between words, -inf inside of words.
        bypass: log-weight of a star in place of the word that ends at a node; -inf where none ends.
        start: node at which the word that ends at a node starts.
        end: node at which the word that starts at a node ends; any where none starts.
        bypass_out: `bypass` of `end`; -inf where none starts.
        repeat: -inf where the label before a node is also the one before that, else 0.
        num_labels: (B,) the last node of each row.
        num_frames: (B,).
    """

    loop: Tensor
    bypass: Tensor
    start: Tensor
    end: Tensor
    bypass_out: Tensor
    repeat: Tensor
    num_labels: Tensor
    num_frames: Tensor


def compute_tolerant_ctc_loss(
    logits: Float[Tensor, "B T V"],
    num_frames: Int[Tensor, " B"],
    labels: Int[Tensor, "B U"],
    num_labels: Int[Tensor, " B"],
    ends_word: Bool[Tensor, "B U"],
    star_penalty: float,
    word_penalty: float,
    blank: int = 0,
) -> Float[Tensor, ""]:
    """Sum the loss over utterances, in nats; an utterance whose labels do not fit its frames counts as 0.

    Args:
        logits: (B, T, V); log-softmax is taken in float32 or wider.
        num_frames: (B,) valid frames.
        labels: (B, U) label indices, any value beyond `num_labels`.
        num_labels: (B,) labels of each utterance.
        ends_word: (B, U) which labels are the last of a word, such as its boundary; the last of all always is.
        star_penalty: nats for each frame of a star, on top of those of saying any label there.
        word_penalty: nats for each word that a star replaces.
        blank: index of the blank.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = F.log_softmax(wide, dim=-1).transpose(0, 1)
    others = torch.cat([log_probs[..., :blank], log_probs[..., blank + 1 :]], dim=-1)
    star = others.logsumexp(-1) - star_penalty
    valid = make_valid_mask(num_labels, labels.shape[1])
    labels = torch.where(valid, labels, blank)
    spelt = log_probs.gather(2, labels.expand(len(log_probs), -1, -1))
    last = torch.arange(labels.shape[1], device=labels.device) == num_labels[:, None] - 1
    graph = _build_graph(labels, ends_word & valid | last, word_penalty, num_labels, num_frames, wide.dtype)
    nats: Tensor = _Paths.apply(log_probs[..., blank], spelt, star, graph)
    return torch.where(torch.isinf(nats), 0.0, nats).sum()


def _build_graph(
    labels: Tensor,
    ends_word: Tensor,
    word_penalty: float,
    num_labels: Tensor,
    num_frames: Tensor,
    dtype: torch.dtype,
) -> _Graph:
    """Lay out the nodes of each row; words end where `ends_word` (B, U) says."""
    width = labels.shape[1] + 1
    ends = F.pad(ends_word, (1, 0))
    is_between = ends.clone()
    is_between[:, 0] = True
    nodes = torch.arange(width, device=labels.device).expand_as(ends)
    start = F.pad(torch.where(is_between, nodes, 0).cummax(1).values[:, :-1], (1, 0))
    later = torch.where(ends, nodes, width).flip(1).cummin(1).values.flip(1)
    end = F.pad(later[:, 1:], (0, 1), value=width)
    has_word = is_between & (end < width)
    zeros = torch.zeros(ends.shape, dtype=dtype, device=labels.device)
    return _Graph(
        loop=zeros.masked_fill(~is_between, -INF),
        bypass=(zeros - word_penalty).masked_fill(~ends, -INF),
        start=start,
        end=end.clamp(max=width - 1),
        bypass_out=(zeros - word_penalty).masked_fill(~has_word, -INF),
        repeat=zeros.masked_fill(F.pad(labels[:, 1:] == labels[:, :-1], (2, 0)), -INF),
        num_labels=num_labels,
        num_frames=num_frames,
    )


class _Paths(torch.autograd.Function):
    """Nats (B,) of all paths from the log-probabilities (T, B) of blank and star and (T, B, U) of the labels.

    A state is a node and what was said last there: the blank, the label before the node, or a star. A star of either
    kind goes on alike. As all symbols in CTC, two stars in a row need a blank between.
    """

    @staticmethod
    def forward(ctx: Any, blank: Tensor, spelt: Tensor, star: Tensor, graph: _Graph) -> Tensor:
        spelt = F.pad(spelt, (1, 0), value=-INF)
        said = torch.stack([blank[..., None].expand_as(spelt), spelt, star[..., None].expand_as(spelt)], 2)
        before = torch.full_like(said[0], -INF)
        before[:, 0, 0] = 0.0  # node 0, as if after a blank
        alpha = torch.empty_like(said)
        for frame in range(len(said)):
            before = alpha[frame] = said[frame] + _come_from(before, graph)
        rows = torch.arange(len(graph.num_labels), device=blank.device)
        at_end = alpha[(graph.num_frames - 1).clamp(min=0), rows, :, graph.num_labels]
        nats = torch.where(graph.num_frames > 0, -at_end.logsumexp(-1), INF)
        ctx.graph = graph
        ctx.save_for_backward(said, alpha, nats)
        return nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        said, alpha, nats = ctx.saved_tensors
        graph: _Graph = ctx.graph
        at_end = torch.full_like(said[0], -INF)
        nodes = torch.arange(said.shape[-1], device=said.device)
        at_end = at_end.masked_fill((nodes == graph.num_labels[:, None])[:, None], 0.0)
        # How likely each state is in each frame, in the place of `alpha`.
        shares = torch.empty_like(alpha)
        beta = torch.full_like(at_end, -INF)
        for frame in range(len(said) - 1, -1, -1):
            if frame + 1 < len(said):
                beta = _go_to(said[frame + 1] + beta, graph)
            beta = torch.where((graph.num_frames == frame + 1)[:, None, None], at_end, beta)
            shares[frame] = alpha[frame] + beta
        has_path = torch.isfinite(nats)[:, None, None]
        shares = torch.where(has_path, (shares + nats[:, None, None]).exp(), 0.0)
        shares = -gradient[:, None, None] * shares
        return shares[:, :, 0].sum(-1), shares[:, :, 1, 1:], shares[:, :, 2].sum(-1), None


def _come_from(before: Tensor, graph: _Graph) -> Tensor:
    """Sum over what each state (B, 3, U + 1) may come from, without what is said in it."""
    blank, label, star = before.unbind(1)
    no_star = torch.logaddexp(blank, label)
    no_label = torch.logaddexp(blank, star)
    into_label = torch.logaddexp(_shift(no_label), _shift(label) + graph.repeat)
    into_star = torch.logaddexp(no_star + graph.loop, no_star.gather(1, graph.start) + graph.bypass)
    return torch.stack(
        [torch.logaddexp(no_star, star), torch.logaddexp(label, into_label), torch.logaddexp(star, into_star)], 1
    )


def _go_to(after: Tensor, graph: _Graph) -> Tensor:
    """Sum over what each state (B, 3, U + 1) may go to: the same steps, from the other end."""
    blank, label, star = after.unbind(1)
    next_label = F.pad(label[:, 1:], (0, 1), value=-INF)
    next_other = F.pad((label + graph.repeat)[:, 1:], (0, 1), value=-INF)
    out_star = torch.logaddexp(star + graph.loop, star.gather(1, graph.end) + graph.bypass_out)
    blank_or_star = torch.logaddexp(blank, out_star)
    return torch.stack(
        [
            torch.logaddexp(blank_or_star, next_label),
            torch.logaddexp(torch.logaddexp(label, blank_or_star), next_other),
            torch.logaddexp(torch.logaddexp(blank, star), next_label),
        ],
        1,
    )


def _shift(x: Tensor) -> Tensor:
    return F.pad(x[:, :-1], (1, 0), value=-INF)
