"""The context network: convolutional positions and transformer blocks, post-norm or pre-norm (§2, §4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from speechssl.config.model import ModelConfig
from speechssl.model.cpu import products as cpu_products
from speechssl.model.cpu.attention import attend
from speechssl.model.cpu.dropout import Dropout
from speechssl.model.cpu.packing import Packing
from speechssl.model.lengths import make_valid_mask
from speechssl.model.norm import LayerNorm

FEWEST_BF16_CHANNELS = 16
"""oneDNN 3.12 convolves bf16 wrongly on CPUs with AMX where a group has 2 to 15 channels and many an even kernel: the
result has the right size and nothing to do with the input. So fewer than these are convolved in float32 on a CPU."""


class PositionalConvolution(nn.Module):
    """A grouped convolution over time whose output is added to its input in place of position embeddings.

    The kernel is even, so the last of T + 1 outputs is dropped. The weight is normalised with one magnitude for
    each kernel tap (weight norm over dim 2), attached after the initialisation so that the magnitudes match it.

    Source: fairseq's `make_conv_pos`; weight N(0, √(4 / (kernel · D))), bias 0.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4.0 / (kernel * dim)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.conv = parametrizations.weight_norm(conv, dim=2)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Give what is added to `x`; padded frames must be zero."""
        if x.device.type == "cpu" and self.conv.weight.shape[1] < FEWEST_BF16_CHANNELS:
            with torch.autocast("cpu", enabled=False):
                return self._convolve(x.float())
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        # (B, D, 1, T) with channels innermost is x as it lies in memory; 2-D, since that is twice as fast on the CPU
        y = F.conv2d(
            x.transpose(1, 2)[:, :, None],
            self.conv.weight[:, :, None],
            self.conv.bias,
            padding=(0, self.conv.padding[0]),
            groups=self.conv.groups,
        )
        return F.gelu(y.squeeze(2)[..., : x.shape[1]]).transpose(1, 2)


Scope = Bool[Tensor, "B 1 1 T"] | Packing | None
"""Which frames attend to which: to keys that are True; to those of their own row of a packed batch; to all."""


class SelfAttention(nn.Module):
    """Multi-head attention with separate projections; scaled dot product, scale head_dim^-0.5."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Float[Tensor, "B T D"], scope: Scope) -> Float[Tensor, "B T D"]:
        """Attend over the keys in `scope`."""
        batch, length, dim = x.shape
        heads = (batch, length, self.num_heads, dim // self.num_heads)
        query, key, value = (part(x).view(heads).transpose(1, 2) for part in (self.query, self.key, self.value))
        if isinstance(scope, Packing):
            rows = ((query[:, :, row], key[:, :, row], value[:, :, row]) for row in scope.slices)
            y = torch.cat([self._attend(*row, None) for row in rows], 2)
        else:
            y = self._attend(query, key, value, scope)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if cpu_products.is_for(query) and (dropout or query.dtype == torch.bfloat16):
            return attend(query, key, value, key_mask, dropout)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask, dropout_p=dropout)


class TransformerBlock(nn.Module):
    """Attention and feed-forward with residuals; layer norm before (pre-norm) or after (post-norm) each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config)
        self.attention_norm = LayerNorm(config.model_dim)
        self.inner = nn.Linear(config.model_dim, config.ffn_dim)
        self.outer = nn.Linear(config.ffn_dim, config.model_dim)
        self.ffn_norm = LayerNorm(config.model_dim)
        self.dropout = Dropout(config.dropout)
        self.activation_dropout = Dropout(config.activation_dropout)

    def forward(self, x: Float[Tensor, "B T D"], scope: Scope) -> Float[Tensor, "B T D"]:
        """Transform frames; those outside `scope` are never attended to."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), scope))
            out: Tensor = x + self.dropout(self._feed_forward(self.ffn_norm(x)))
            return out
        x = self.attention_norm(x + self.dropout(self.attention(x, scope)))
        normed: Tensor = self.ffn_norm(x + self.dropout(self._feed_forward(x)))
        return normed

    def _feed_forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        if cpu_products.is_for(z):
            return cpu_products.gelu_linear(z, self.outer, self.activation_dropout.prob if self.training else 0.0)
        out: Tensor = self.outer(self.activation_dropout(F.gelu(z)))
        return out


class Transformer(nn.Module):
    """Positions, then blocks, then (pre-norm models) a final layer norm.

    Initialisation: every linear weight N(0, 0.02), biases 0.

    Attributes:
        activation_checkpointing: keep only the input of each block, and compute the block again in the backward.
        is_compiled: whether `compile_blocks` was called.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_first, self.activation_checkpointing, self.is_compiled = config.norm_first, False, False
        self.position = PositionalConvolution(config.model_dim, config.position_kernel, config.position_groups)
        self.norm = LayerNorm(config.model_dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def compile_blocks(self) -> None:
        """Compile each block on its own (`torch.compile`): one graph serves all of them."""
        self.is_compiled = True
        for block in self.blocks:
            block.compile()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        num_frames: Int[Tensor, " B"] | None,
        keep: Bool[Tensor, " L"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], list[Float[Tensor, "B T D"]]]:
        """Contextualise frames.

        Args:
            x: (B, T, D) projected (and masked) features.
            num_frames: (B,) valid frames; padded frames are set to zero before the positions and are never
                attended to; on the CPU nothing is computed for them, and they are zero in the results. None where
                nothing is padded.
            keep: (L,) on the CPU, False for blocks that LayerDrop skips in this update; None keeps all. The
                parameters of a skipped block get gradients of zero, so that every parameter takes part in every
                update on every rank.

        Returns:
            The output (after the final norm of pre-norm models), and L + 1 states: what enters the first block,
            then each block's output, none of them after the final norm.
        """
        scope: Scope = None
        if num_frames is not None:
            valid = make_valid_mask(num_frames, x.shape[1])
            x = torch.where(valid[..., None], x, 0.0)
            scope = valid[:, None, None, :]
        x = x + self.position(x)
        # A compiled block would be compiled again for the lengths of each packed batch.
        if num_frames is not None and cpu_products.is_for(x) and not self.is_compiled:
            scope = Packing(tuple(num_frames.tolist()), x.shape[1])
            x = scope.pack(x)
        x = self.dropout(x if self.norm_first else self.norm(x))
        states = [x]
        for index, block in enumerate(self.blocks):
            run = partial(checkpoint, block, use_reentrant=False) if self.activation_checkpointing else block
            x = run(x, scope) if keep is None else _keep_or_skip(block, run, (x, scope), keep[index])
            states.append(x)
        x = self.norm(x) if self.norm_first else x
        if isinstance(scope, Packing):
            return scope.unpack(x), [scope.unpack(state) for state in states]
        return x, states


def _keep_or_skip(block: nn.Module, run: Callable[..., Tensor], inputs: tuple[Tensor, Scope], keep: Tensor) -> Tensor:
    """Run a block where `keep` (scalar, on the CPU) is True; a compiled graph computes it and then chooses."""
    if torch.compiler.is_compiling():
        return torch.where(keep.to(inputs[0].device), run(*inputs), inputs[0])
    out: Tensor = run(*inputs) if bool(keep) else _Skip.apply(inputs[0], *block.parameters())
    return out


class _Skip(torch.autograd.Function):
    """Identity; the gradients of all further arguments are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))
