"""Small weights beside frozen ones: low-rank differences (LoRA), and adapters after blocks (MMS)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.adaptation import LoRAConfig
from speechssl.model.attention import SelfAttention
from speechssl.model.layers import LayerNorm


class Adapter(nn.Module):
    """Layer norm, a narrow layer with ReLU, and a layer back, added to a block's output (MMS, arXiv 2305.13516 §5.3).

    A new one changes nothing: its last layer is zero (`Transformer`).
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm, self.down, self.up = LayerNorm(dim), nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Change each frame on its own."""
        changed: Tensor = x + self.up(F.relu(self.down(self.norm(x))))
        return changed


class LoRALinear(nn.Linear):
    """A linear layer and a learned difference: x · Wᵀ + b + α / r · x · Aᵀ · Bᵀ (arXiv 2106.09685 §4.1).

    Initialisation: A as `nn.Linear` draws its weight, B zero, so that nothing changes at first.

    Args:
        linear: whose weight W and bias b it takes over.
        rank: r.
        alpha: α.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.lora_up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, input: Float[Tensor, "*rest C"]) -> Float[Tensor, "*rest O"]:
        """Transform `input` (…, C)."""
        difference = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return torch.add(super().forward(input), difference, alpha=self.scale)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Give the same as one linear layer, its weight computed in float64."""
        merged = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        difference = self.scale * (self.lora_up.double() @ self.lora_down.double())
        merged.weight = nn.Parameter((self.weight.double() + difference).to(self.weight.dtype))
        merged.bias = self.bias
        return merged


def add_lora(module: nn.Module, config: LoRAConfig) -> None:
    """Give the attention in a module its differences."""
    for part in module.modules():
        if isinstance(part, SelfAttention):
            for name in config.projections:
                setattr(part, name, LoRALinear(getattr(part, name), config.rank, config.alpha))


def merge_lora(module: nn.Module) -> None:
    """Put every difference in a module into the weight beside it."""
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, LoRALinear):
                setattr(parent, name, part.merge())
