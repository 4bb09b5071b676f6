"""Multi-head attention, with rotary positions where the network has them (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.cpu import attention, on_cpu
from speechssl.model.cpu.packing import Packing, Scope


class SelfAttention(nn.Module):
    """Multi-head attention with separate projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "B T D"], scope: Scope, rotation: Float[Tensor, "2 T half"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Attend over the keys in `scope`; queries and keys are turned by `rotation`, of `make_rotation`."""
        batch, length, dim = x.shape
        heads = (batch, length, self.num_heads, dim // self.num_heads)
        query, key, value = (part(x).view(heads) for part in (self.query, self.key, self.value))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        y = attend(query, key, value, scope, self.dropout if self.training else 0.0)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return out


@on_cpu(attention.attend)
def attend(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H T d"],
    value: Float[Tensor, "B H T d"],
    scope: Scope,
    dropout: float,
) -> Float[Tensor, "B H T d"]:
    """Compute softmax(query · keyᵀ / √d), drop out of it and weigh the values ("Attention is all you need", §3.2.1).

    Args:
        query, key, value: (B, H, T, d).
        scope: keys that may be attended to, at least one a row.
        dropout: probability of each weight to be dropped, after the softmax; 0 outside training.
    """
    assert not isinstance(scope, Packing), "rows are packed on a CPU only"
    return F.scaled_dot_product_attention(query, key, value, attn_mask=scope, dropout_p=dropout)


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
