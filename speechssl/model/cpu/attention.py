"""Attention on the CPU where torch's own is slow: with dropout, and in bf16.

The scores of a few heads at a time stay in the cache, in buffers that are used again: a tensor of all scores would be
fresh memory in every block. docs/speed.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from speechssl.model.cpu.dropout import Kept, draw_kept
from speechssl.model.cpu.packing import Packing, Scope
from speechssl.model.cpu.precision import widen

_PART_BYTES = 4 << 20
"""Memory of the scores that are made at a time, one matrix at least."""


@dataclass(frozen=True)
class GatedTable:
    """What a table has for each pair of frames, times a factor of each query: added here without being made whole.

    Attributes:
        gate: (B, H, T), of each query.
        table: (H, S, S), of each query (first) for each key; places count from the start of a row, the longest has S.
    """

    gate: Tensor
    table: Tensor

    def __call__(self, frames: slice) -> Float[Tensor, "B H t t"]:
        """Give the scores of the frames of a row."""
        row = self.cut(frames)
        return row.gate[..., None] * row.table

    def cut(self, frames: slice) -> GatedTable:
        """Give what is of the frames of a row."""
        count = frames.stop - frames.start
        return GatedTable(self.gate[:, :, frames], self.table[:, :count, :count])


Score = Callable[[slice], Float[Tensor, "B H t t"]]
"""Gives what is added to the scores of the frames of a row, of each query (first) for each key."""


def attend(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H T d"],
    value: Float[Tensor, "B H T d"],
    scope: Scope,
    dropout: float,
    score: Score | None = None,
) -> Float[Tensor, "B H T d"]:
    """As the transformer's `attend`.

    torch's own draws its mask of dropout in float32, which takes most of its time, and multiplies bf16 no faster than
    float32; without dropout and in float32 it is the fastest. A `GatedTable` is added here, since torch's own wants it
    whole in memory; every other score gets its gradient from torch's own alone.
    """
    if score is not None and not isinstance(score, GatedTable):
        return _attend_scored(query, key, value, scope, dropout, score)
    if isinstance(scope, Packing):
        rows = [(query[:, :, row], key[:, :, row], value[:, :, row]) for row in scope.slices]
        scores = [None if score is None else score.cut(row) for row in scope.slices]
        return torch.cat([attend(*row, None, dropout, own) for row, own in zip(rows, scores, strict=True)], 2)
    if not dropout and query.dtype != torch.bfloat16 and score is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=scope)
    batch, heads, length, dim = query.shape
    kept = draw_kept((batch * heads, length, length), dropout) if dropout else None
    flat = [x.reshape(batch * heads, length, dim) for x in (query, key, value)]
    padding, gate, table = None if scope is None else _make_bias(scope, heads), None, None
    if score is not None:
        gate = score.gate.to(query.dtype).reshape(batch * heads, length, 1)
        table = score.table.to(query.dtype).expand(batch, -1, -1, -1).flatten(0, 1)
    out: Tensor = _Attention.apply(*flat, padding, gate, table, kept)
    return out.view(query.shape)


def _attend_scored(query: Tensor, key: Tensor, value: Tensor, scope: Scope, dropout: float, score: Score) -> Tensor:
    """Attend with something added to the scores, one packed row after the other."""
    rows = scope.slices if isinstance(scope, Packing) else [slice(0, query.shape[2])]
    out = []
    for row in rows:
        bias = score(row).to(query.dtype)
        if isinstance(scope, Tensor):
            bias = bias.masked_fill(~scope, float("-inf"))
        parts = (query[:, :, row], key[:, :, row], value[:, :, row])
        out.append(F.scaled_dot_product_attention(*parts, attn_mask=bias, dropout_p=dropout))
    return torch.cat(out, 2)


def rotate(x: Float[Tensor, "B T H d"], rotation: Float[Tensor, "2 T half"]) -> Float[Tensor, "B T H d"]:
    """As `rotate` of the attention, with pairs as complex numbers: a quarter of the passes over memory."""
    pairs = torch.view_as_complex(widen(x).reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    turned: Tensor = pairs * torch.complex(rotation[0], rotation[1])[:, None]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def _make_bias(key_mask: Tensor, heads: int) -> Tensor:
    """Make (B · H, 1, T): 0 where a key may be attended to, else -inf."""
    bias = torch.zeros(key_mask.shape).masked_fill_(~key_mask, float("-inf"))
    return bias.expand(-1, heads, -1, -1).reshape(-1, 1, key_mask.shape[-1])


@dataclass(frozen=True)
class _Inputs:
    """What goes into attention: query (already scaled), key and value (B · H, T, d), and what changes the scores.

    Attributes:
        padding: (B · H, 1, T) 0 or -inf.
        gate, table: (B · H, T, 1) and (B · H, T, T), whose product is added to the scores.
        mask: of dropout.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    padding: Tensor | None
    gate: Tensor | None
    table: Tensor | None
    mask: Tensor | None

    def cut(self, num_buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield matrices that are worked on together, each time with the same buffers for (·, T, T) numbers."""
        count, length, _ = self.query.shape
        # A row shorter than a frame has a length of 0: no bytes, and one part for all of its empty matrices.
        num_bytes = max(1, length * length * self.query.element_size())
        size = max(1, min(count, _PART_BYTES // num_bytes))
        buffers = [self.query.new_empty(size, length, length) for _ in range(num_buffers)]
        for first in range(0, count, size):
            part = slice(first, min(first + size, count))
            yield part, [buffer[: part.stop - first] for buffer in buffers]

    def weigh(self, part: slice, scores: Tensor, weights: Tensor) -> None:
        """Write softmax of the scores to `weights`; it is computed in float32 whatever their precision."""
        torch.bmm(self.query[part], self.key[part].transpose(1, 2), out=scores)
        if self.gate is not None and self.table is not None:
            scores.addcmul_(self.gate[part], self.table[part])
        if self.padding is not None:
            scores += self.padding[part]
        torch.softmax(scores, -1, out=weights)

    def drop(self, part: slice, x: Tensor) -> Tensor:
        """Zero in place what dropout drops."""
        return x if self.mask is None else x.mul_(self.mask[part])


class _Attention(torch.autograd.Function):
    """Keeps what went in, and one byte a weight for dropout; the weights are computed again in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        gate: Tensor | None,
        table: Tensor | None,
        kept: Kept | None,
    ) -> Tensor:
        mask, ctx.scale = (None, 1.0) if kept is None else (kept.mask, kept.scale)
        inputs = _Inputs(query * (1.0 / math.sqrt(query.shape[-1])), key, value, padding, gate, table, mask)
        ctx.save_for_backward(inputs.query, key, value, padding, gate, table, mask)
        out = torch.empty_like(value)
        for part, (scores, weights) in inputs.cut(2):
            inputs.weigh(part, scores, weights)
            torch.bmm(inputs.drop(part, weights), value[part], out=out[part])
        return out if kept is None else out.mul_(kept.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _Inputs(*ctx.saved_tensors)
        query, key, value = inputs.query, inputs.key, inputs.value
        grad = (grads[0] if ctx.scale == 1.0 else grads[0] * ctx.scale).contiguous()
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        to_gate, to_table = (None if x is None else torch.empty_like(x) for x in (inputs.gate, inputs.table))
        for part, (scores, weights, kept) in inputs.cut(3):
            inputs.weigh(part, scores, weights)
            torch.bmm(inputs.drop(part, kept.copy_(weights)).transpose(1, 2), grad[part], out=to_value[part])
            torch.bmm(grad[part], value[part].transpose(1, 2), out=kept)
            inputs.drop(part, kept)
            torch.ops.aten._softmax_backward_data.out(kept, weights, -1, weights.dtype, grad_input=scores)
            torch.bmm(scores, key[part], out=to_query[part])
            torch.bmm(scores.transpose(1, 2), query[part], out=to_key[part])
            if inputs.gate is not None and inputs.table is not None and to_gate is not None and to_table is not None:
                torch.sum(torch.mul(scores, inputs.table[part], out=kept), -1, keepdim=True, out=to_gate[part])
                torch.mul(scores, inputs.gate[part], out=to_table[part])
        to_query.mul_(1.0 / math.sqrt(query.shape[-1]))
        return to_query, to_key, to_value, None, to_gate, to_table, None
