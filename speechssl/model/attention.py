"""Multi-head attention; where the network has them with rotary positions or a bias of distances.

Rotary positions are those of RoFormer (arXiv 2104.09864), the gated bias that of WavLM (arXiv 2110.13900 §3.1).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.cpu import attention, on_cpu
from speechssl.model.cpu.packing import Packing, Scope

Bias = tuple[Float[Tensor, "B H T"], Float[Tensor, "H S S"]]
"""What is added to the scores of a query i and a key j: `gate[:, :, i] * table[:, i, j]`; S: frames of the longest."""


class SelfAttention(nn.Module):
    """Multi-head attention with separate projections, and a gate where there is a bias of distances."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.gate = BiasGate(config) if config.position_buckets else None

    def forward(self, x: Float[Tensor, "B T D"], scope: Scope, places: Tensor | None = None) -> Float[Tensor, "B T D"]:
        """Attend over the keys in `scope`.

        Args:
            x: frames.
            scope: which of them attend to which.
            places: what the network knows of the frames' places: the table of `RelativeBias` where there is a gate,
                else what `make_rotation` makes.
        """
        batch, length, dim = x.shape
        heads = (batch, length, self.num_heads, dim // self.num_heads)
        query, key, value = (part(x).view(heads) for part in (self.query, self.key, self.value))
        bias = None
        if self.gate is not None:
            assert places is not None, "a gate has a table"
            bias = self.gate(x.view(heads)), places
        elif places is not None:
            query, key = rotate(query, places), rotate(key, places)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        y = attend(query, key, value, scope, self.dropout if self.training else 0.0, bias)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return out


@on_cpu(attention.attend)
def attend(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H T d"],
    value: Float[Tensor, "B H T d"],
    scope: Scope,
    dropout: float,
    bias: Bias | None = None,
) -> Float[Tensor, "B H T d"]:
    """Compute softmax(query · keyᵀ / √d), drop out of it and weigh the values ("Attention is all you need", §3.2.1).

    Args:
        query, key, value: (B, H, T, d).
        scope: keys that may be attended to, at least one a row.
        dropout: probability of each weight to be dropped, after the softmax; 0 outside training.
        bias: what is added to the scores before the softmax.
    """
    assert not isinstance(scope, Packing), "rows are packed on a CPU only"
    mask = scope
    if bias is not None:
        gate, table = bias
        mask = (gate[..., None] * table).to(query.dtype)
        mask = mask if scope is None else mask.masked_fill(~scope, float("-inf"))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


class RelativeBias(nn.Module):
    """A learnt number for each head and each group of distances from a query to a key, the same in all blocks.

    Groups are single distances up to a quarter of `position_buckets`, grow from there with the logarithm up to
    `position_max_distance`, and are others for keys before the query than for those after it.

    Initialisation: Xavier normal.

    Source: WavLM (arXiv 2110.13900) eq. 5, and its authors' code, whose rounding this is.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_distance = config.position_max_distance
        self.weight = nn.Parameter(torch.empty(config.position_buckets, config.num_heads))
        nn.init.xavier_normal_(self.weight)

    def forward(self, length: int) -> Float[Tensor, "H S S"]:
        """Make the table of all pairs (query, key) of a row of so many frames, in the precision of products."""
        device, count = self.weight.device, len(self.weight)
        places = torch.arange(length, device=device)
        table = F.embedding(find_buckets(places - places[:, None], count, self.max_distance), self.weight)
        table = table.permute(2, 0, 1).contiguous()
        # Once here, and not in every block.
        is_lower = torch.is_autocast_enabled(device.type)
        return table.to(torch.get_autocast_dtype(device.type)) if is_lower else table


def find_buckets(distance: Int[Tensor, "*any"], count: int, max_distance: int) -> Int[Tensor, "*any"]:
    """Find the group of each distance from a query to a key, of `count` groups (see `RelativeBias`)."""
    half = count // 2
    exact = half // 2
    far = distance.abs()
    growth = torch.log(far.clamp(min=exact) / exact) / math.log(max_distance / exact) * (half - exact)
    grown = (exact + growth.long()).clamp(max=half - 1)
    return torch.where(far < exact, far, grown) + half * (distance > 0)


class BiasGate(nn.Module):
    """How much a frame, as a query, listens to distances: a factor on its bias in each head.

    Source: WavLM eq. 6 to 8. Initialisation: scale 1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Each of the two gates is the sum of four outputs.
        self.linear = nn.Linear(config.head_dim, 8)
        self.scale = nn.Parameter(torch.ones(1, config.num_heads, 1, 1))

    def forward(self, x: Float[Tensor, "B T H d"]) -> Float[Tensor, "B H T"]:
        """Gate by each head's part of what the attention gets."""
        update, reset = self.linear(x).unflatten(-1, (2, 4)).sum(-1).sigmoid().transpose(1, 2).unbind(-1)
        gate: Tensor = update * (reset * self.scale[..., 0] - 1.0) + 2.0
        return gate


def make_rotation(scope: Scope, length: int, dim: int, device: torch.device) -> Float[Tensor, "2 T half"]:
    """Make cosine and sine of the angles: place · 10,000^(-2 i / dim) for the pairs i of a head.

    Args:
        scope: which frames are a row; the places in each row count from 0.
        length: frames T.
        dim: width of a head, even.
        device: where.
    """
    rows = scope.num_frames if isinstance(scope, Packing) else (length,)
    places = torch.cat([torch.arange(count, device=device) for count in rows])
    angles = places[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2, device=device) / dim)
    return torch.stack([angles.cos(), angles.sin()])


@on_cpu(attention.rotate)
def rotate(x: Float[Tensor, "B T H d"], rotation: Float[Tensor, "2 T half"]) -> Float[Tensor, "B T H d"]:
    """Turn neighbouring pairs of numbers by the angles of their frame (eq. 34); the result has the precision of `x`."""
    cosine, sine = rotation[:, :, None]
    first, second = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1)
    return turned.flatten(-2).to(x.dtype)
