"""Attention with dropout on the CPU, where torch's has no fast path for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechssl.model.dropout import Kept, draw_kept


def attend_with_dropout(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H T d"],
    value: Float[Tensor, "B H T d"],
    key_mask: Bool[Tensor, "B 1 1 T"] | None,
    dropout: float,
) -> Float[Tensor, "B H T d"]:
    """Compute softmax(query · key^T / √d), drop out of it and weigh the values.

    Args:
        query, key, value: (B, H, T, d).
        key_mask: (B, 1, 1, T), True on keys that may be attended to, at least one a row; None: all.
        dropout: probability of each weight to be dropped, after the softmax.

    Source: as `F.scaled_dot_product_attention`, whose mask of float32 draws takes most of its time on the CPU.
    """
    batch, heads, length, dim = query.shape
    kept = draw_kept((batch * heads, length, length), dropout)
    flat = [x.reshape(batch * heads, length, dim) for x in (query, key, value)]
    bias = None if key_mask is None else _make_bias(key_mask, heads)
    out: Tensor = _Attention.apply(*flat, bias, kept)
    return out.view(query.shape)


def _make_bias(key_mask: Tensor, heads: int) -> Tensor:
    """Make (B · H, 1, T): 0 where a key may be attended to, else -inf."""
    bias = torch.zeros(key_mask.shape).masked_fill_(~key_mask, float("-inf"))
    return bias.expand(-1, heads, -1, -1).reshape(-1, 1, key_mask.shape[-1])


class _Attention(torch.autograd.Function):
    """Keeps one byte a weight; the weights themselves are computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, kept: Kept) -> Tensor:
        query = query * (1.0 / math.sqrt(query.shape[-1]))
        ctx.save_for_backward(query, key, value, bias, kept.mask)
        ctx.scale = kept.scale
        weights = torch.where(kept.mask, _compute_weights(query, key, bias), 0.0)
        return torch.bmm(weights, value).mul_(kept.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, mask = ctx.saved_tensors
        grad, weights = grads[0] * ctx.scale, _compute_weights(query, key, bias)
        grad_value = torch.bmm(torch.where(mask, weights, 0.0).transpose(1, 2), grad)
        grad_weights = torch.where(mask, torch.bmm(grad, value.transpose(1, 2)), 0.0)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_query = torch.bmm(grad_scores, key).mul_(1.0 / math.sqrt(query.shape[-1]))
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
        return grad_query, grad_key, grad_value, None, None


def _compute_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Take the softmax of (B · H, T, T) scores, in float32."""
    scores = torch.bmm(query, key.transpose(1, 2)).float()
    if bias is not None:
        scores += bias
    return torch.softmax(scores, -1).to(query.dtype)
