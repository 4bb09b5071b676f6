"""Multi-head attention, and how it knows the places of frames: rotary or relative positions, or a bias of distances."""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.cpu import attention, on_cpu
from speechssl.model.cpu.packing import Packing, Scope


class SelfAttention(nn.Module):
    """Multi-head attention with separate projections.

    With `positions=relative`, the score of a query for a key has a part that depends on their distance through a
    sinusoid (Transformer-XL, arXiv 1901.02860 §3.3); with `relative_key` through a table, whose ends stand for all
    that is farther (Shaw et al., arXiv 1803.02155, with a table of keys alone). With `position_buckets`, the bias of
    their distance is added, which the query gates (WavLM, arXiv 2110.13900 §3.1).

    Initialisation: Xavier uniform for what is added to queries, N(0, 0.02) for the table.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.num_heads, self.dropout, self.positions = config.num_heads, config.attention_dropout, config.positions
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        if self.positions == "relative":
            self.place = nn.Linear(dim, dim, bias=False)
            self.content_bias, self.place_bias = (
                nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.num_heads, config.head_dim))) for _ in range(2)
            )
        if self.positions == "relative_key":
            self.num_left, num_places = config.position_left, config.position_left + 1 + config.position_right
            self.distances = nn.Parameter(nn.init.normal_(torch.empty(num_places, config.head_dim), std=0.02))
        self.gate = BiasGate(config) if config.position_buckets else None

    def forward(self, x: Float[Tensor, "B T D"], scope: Scope, places: Tensor | None = None) -> Float[Tensor, "B T D"]:
        """Attend over the keys in `scope`; `places`, of `make_places` or `RelativeBias`, say where frames are."""
        batch, length, dim = x.shape
        heads = (batch, length, self.num_heads, dim // self.num_heads)
        source = x
        if self.positions == "rotary_input" and places is not None:
            source = rotate_halves(x.reshape(heads), places).flatten(2)
        query, key, value = self.query(source).view(heads), self.key(source).view(heads), self.value(x).view(heads)
        if self.positions == "rotary" and places is not None:
            query, key = rotate(query, places), rotate(key, places)
        score = self._choose_score(x.view(heads), query, places)
        if self.positions == "relative":
            query = query + self.content_bias.to(query.dtype)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        y = attend(query, key, value, scope, self.dropout if self.training else 0.0, score)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return out

    def _choose_score(
        self, x: Float[Tensor, "B T H d"], query: Float[Tensor, "B T H d"], places: Tensor | None
    ) -> attention.Score | None:
        """Prepare what distances add to the scores of these queries, made of `x`; None where they add nothing."""
        if self.gate is not None and places is not None:
            return attention.GatedTable(self.gate(x), places)
        if self.positions == "relative" and places is not None:
            distances = self.place(places.to(self.place.weight.dtype)).view(-1, *query.shape[2:])
            biased = query + self.place_bias.to(query.dtype)
            return partial(score_distances, biased.transpose(1, 2), distances.transpose(0, 1), places.shape[0] // 2)
        if self.positions == "relative_key":
            return partial(score_distances, query.transpose(1, 2), self.distances, self.num_left)
        return None


@on_cpu(attention.attend)
def attend(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H T d"],
    value: Float[Tensor, "B H T d"],
    scope: Scope,
    dropout: float,
    score: attention.Score | None = None,
) -> Float[Tensor, "B H T d"]:
    """Compute softmax(query · keyᵀ / √d), drop out of it and weigh the values ("Attention is all you need", §3.2.1).

    Args:
        query, key, value: (B, H, T, d).
        scope: keys that may be attended to, at least one a row.
        dropout: probability of each weight to be dropped, after the softmax; 0 outside training.
        score: gives what is added before the softmax; None: nothing.
    """
    assert not isinstance(scope, Packing), "rows are packed on a CPU only"
    if score is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=scope, dropout_p=dropout)
    added = score(slice(0, query.shape[2])).to(query.dtype)
    bias = added if scope is None else added.masked_fill(~scope, float("-inf"))
    y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    # An export for all lengths would guess the layout, and not for all.
    return y.contiguous()


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
        # Heads first: with them inside, an export for all lengths could not take the products apart again.
        update, reset = self.linear(x.transpose(1, 2)).unflatten(-1, (2, 4)).sum(-1).sigmoid().unbind(-1)
        gate: Tensor = update * (reset * self.scale[..., 0] - 1.0) + 2.0
        return gate


def score_distances(
    query: Float[Tensor, "B H T d"], distances: Float[Tensor, "*H places d"], middle: int, frames: slice
) -> Float[Tensor, "B H t t"]:
    """Give query · distance / √d for the distance of each query to each key.

    Args:
        query: (B, H, T, d).
        distances: (places, d) or (H, places, d), from far to the left on; the first and the last stand for all farther.
        middle: which of them is distance 0.
        frames: t of the T frames, which are a row.
    """
    count = frames.stop - frames.start
    # For each head: an export for all lengths could not take one product of all heads apart again.
    each = distances.to(query.dtype).mT.expand(query.shape[1], -1, -1)
    scores = query[:, :, frames] @ each / math.sqrt(query.shape[-1])
    frame = torch.arange(count, device=query.device)
    places = (frame[None, :] - frame[:, None] + middle).clamp(0, distances.shape[-2] - 1)
    return scores.gather(3, places.expand(*scores.shape[:2], count, count))


def make_places(config: ModelConfig, scope: Scope, length: int, device: torch.device) -> Tensor | None:
    """Make what tells `SelfAttention` where frames are; None where it needs nothing.

    Args:
        config: `positions` and widths.
        scope: which frames are a row; the places in each row count from 0.
        length: frames T.
        device: where.
    """
    if config.positions in ("rotary", "rotary_input"):
        return make_rotation(scope, length, config.head_dim, device, is_published=config.positions == "rotary_input")
    if config.positions == "relative":
        return make_sinusoids(find_longest(scope, length), config.model_dim, device)
    return None


def find_longest(scope: Scope, length: int) -> int:
    """Find how many frames the longest row has, 1 at least, where `length` are all."""
    return max(1, *scope.num_frames) if isinstance(scope, Packing) else length


def make_rotation(
    scope: Scope, length: int, dim: int, device: torch.device, is_published: bool = False
) -> Float[Tensor, "2 T half"]:
    """Make cosine and sine of the angles: place · 10,000^(-2 i / dim) for the pairs i of a head.

    Args:
        scope: which frames are a row; the places in each row count from 0.
        length: frames T.
        dim: width of a head, even.
        device: where.
        is_published: round as the published Conformers do; far from the start of a row it shows.
    """
    rows = scope.num_frames if isinstance(scope, Packing) else (length,)
    places = torch.cat([torch.arange(count, device=device) for count in rows])
    exponents = torch.arange(0, dim, 2, device=device) / dim
    angles = places[:, None] * (1.0 / 10_000.0**exponents if is_published else 10_000.0**-exponents)
    return torch.stack([angles.cos(), angles.sin()])


def make_sinusoids(length: int, dim: int, device: torch.device) -> Float[Tensor, "places dim"]:
    """Make (2 · length - 1, dim) sine and cosine side by side of distance · 10,000^(-2 i / dim), from the left on.

    The distance of a query to a key on its left is positive.

    Source: Transformer-XL §3.3, in the order of Hugging Face's Conformers.
    """
    distances = (length - 1 - torch.arange(2 * length - 1, device=device)).float()
    steps = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * -(math.log(10_000.0) / dim))
    angles = distances[:, None] * steps
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


@on_cpu(attention.rotate)
def rotate(x: Float[Tensor, "B T H d"], rotation: Float[Tensor, "2 T half"]) -> Float[Tensor, "B T H d"]:
    """Turn neighbouring pairs of numbers by the angles of their frame (eq. 34); the result has the precision of `x`."""
    cosine, sine = rotation[:, :, None]
    first, second = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1)
    return turned.flatten(-2).to(x.dtype)


def rotate_halves(x: Float[Tensor, "B T H d"], rotation: Float[Tensor, "2 T half"]) -> Float[Tensor, "B T H d"]:
    """As `rotate`, of pairs that lie half a head apart, as GPT-NeoX and Hugging Face's Conformers have them."""
    cosine, sine = rotation[:, :, None]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)
