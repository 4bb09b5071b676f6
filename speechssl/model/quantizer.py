"""The Gumbel product quantizer: features to one entry from each of G codebooks (§3.2, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import QuantizerConfig


@dataclass
class Quantized:
    """What the quantizer gives.

    Attributes:
        vectors: (B, M, codevector_dim), the chosen entries of all codebooks side by side.
        codes: (B, M, G) int64, the chosen entry of each codebook.
        soft_probs: (B, M, G, V) float32, softmax of the logits without noise and temperature: the diversity term.
    """

    vectors: Tensor
    codes: Tensor
    soft_probs: Tensor


class GumbelQuantizer(nn.Module):
    """Chooses codes by argmax of logits plus noise; the gradient is that of the soft choice (straight through).

    Args:
        config: codebooks, codes and vector size.
        input_dim: channels C of the features.

    Initialisation: codebook U[0, 1), logit weights N(0, 1), bias 0.
    """

    def __init__(self, config: QuantizerConfig, input_dim: int) -> None:
        super().__init__()
        self.num_groups, self.num_codes = config.num_groups, config.num_codes
        self.logits = nn.Linear(input_dim, config.num_groups * config.num_codes)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        size = config.codevector_dim // config.num_groups
        self.codebook = nn.Parameter(torch.rand(config.num_groups, config.num_codes, size))

    def forward(
        self,
        features: Float[Tensor, "B M C"],
        noise: Float[Tensor, "B M G V"] | None = None,
        temperature: float = 1.0,
    ) -> Quantized:
        """Quantize frames.

        Args:
            features: (B, M, C) normalised, unmasked features.
            noise: (B, M, G, V) Gumbel noise; None (evaluation) chooses the largest logit.
            temperature: of the soft choice whose gradient is used; only with `noise`.

        Returns:
            Vectors, codes and soft probabilities. Frames do not influence each other.
        """
        batch, length, _ = features.shape
        logits = self.logits(features).float().view(batch, length, self.num_groups, self.num_codes)
        scores = logits if noise is None else logits + noise
        codes = scores.argmax(-1)
        choice = F.one_hot(codes, self.num_codes).to(logits.dtype)
        if noise is not None:
            soft = F.softmax(scores / temperature, dim=-1)
            choice = choice - soft.detach() + soft
        vectors = torch.einsum("bmgv,gvd->bmgd", choice, self.codebook.float()).flatten(2)
        return Quantized(vectors, codes, F.softmax(logits, dim=-1))

    def lookup(self, codes: Int[Tensor, "B M G"]) -> Float[Tensor, "B M E"]:
        """Read the entries of given codes, all codebooks side by side."""
        parts = [F.embedding(codes[..., group], self.codebook[group]) for group in range(self.num_groups)]
        return torch.cat(parts, dim=-1)


def sample_gumbel_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw standard Gumbel noise in float32 on `device` from `generator` (which lives there)."""
    uniform = torch.rand(shape, generator=generator, device=device)
    tiny = torch.finfo(torch.float32).tiny
    exponential = (-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny)
    return -torch.log(exponential)
