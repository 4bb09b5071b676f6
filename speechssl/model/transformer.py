"""The context network: positions, then transformer blocks, post-norm or pre-norm (§2, §4.2), or Conformer blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from inspect import unwrap
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from speechssl.config.model import ModelConfig
from speechssl.model.adaptation import Adapter
from speechssl.model.attention import RelativeBias, SelfAttention, find_longest, make_places
from speechssl.model.conformer import BatchNorm, ConformerBlock
from speechssl.model.cpu import on_cpu, packing, precision, products
from speechssl.model.cpu.packing import Run, Scope
from speechssl.model.cpu.precision import widen
from speechssl.model.layers import Dropout, LayerNorm, drop
from speechssl.model.lengths import make_valid_mask

Adjust = Callable[[int, Tensor], Tensor]
"""Changes frames (B, T, D) between two blocks, each frame for itself: rows may be packed."""


def learning(is_learning: bool) -> AbstractContextManager[None]:
    """Put around what gets a gradient only if `is_learning`."""
    return nullcontext() if is_learning else torch.no_grad()


class PositionalConvolution(nn.Module):
    """Grouped convolutions over time whose output is added to their input in place of position embeddings.

    One, whose weight is normalised with one magnitude for each kernel tap (weight norm over dim 2, attached after the
    initialisation so that the magnitudes match it) or which sees its input after a batch norm; or several, each with a
    layer norm without weights behind it. Of an even kernel's T + 1 outputs the last is dropped.

    Args:
        config: `position_*`, and `group_norm_frames`: with `valid` no convolution sees more than zeros beyond a row's
            end, and batch norm takes its statistics over valid frames.

    Source: fairseq's `make_conv_pos` and `make_conv_block`; weight N(0, √(4 / (kernel · D))), bias 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sees_padding = config.group_norm_frames == "all"
        convs = [self._make(config) for _ in range(config.position_depth)]
        self.norm = BatchNorm(config.model_dim) if config.position_norm == "batch" else None
        self.conv, self.convs = None, nn.ModuleList()
        match config.position_norm:
            case "weight":
                self.conv = parametrizations.weight_norm(convs[0], dim=2)
            case "batch":
                self.conv = convs[0]
            case _:
                self.convs.extend(convs)

    @staticmethod
    def _make(config: ModelConfig) -> nn.Conv1d:
        dim, kernel = config.model_dim, config.position_kernel
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=config.position_groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4.0 / (kernel * dim)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return conv

    def forward(self, x: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B T D"]:
        """Give what is added to `x`; padded frames must be zero, and are False in `valid` where there are any."""
        if self.sees_padding:
            valid = None
        if self.norm is not None:
            x = _clear(self.norm(x, None if valid is None else valid[:, None, None]), valid)
        if self.conv is not None:
            return F.gelu(_convolve(x, self.conv)).transpose(1, 2)
        for number, conv in enumerate(self.convs):
            y = widen(_convolve(x if number == 0 else _clear(x, valid), conv).transpose(1, 2))
            x = F.gelu(F.layer_norm(y, y.shape[-1:]).to(x.dtype))
        return x


def _convolve(x: Float[Tensor, "B T D"], conv: nn.Module) -> Float[Tensor, "B D T"]:
    # (B, D, 1, T) with channels innermost is x as it lies in memory; 2-D, since that is twice as fast on a CPU.
    image, weight = x.transpose(1, 2)[:, :, None], conv.weight[:, :, None]  # type: ignore[index]
    y = grouped_convolution(image, weight, conv.bias, conv.padding[0], conv.groups)  # type: ignore[arg-type, index]
    return y.squeeze(2)[..., : x.shape[1]]


def _clear(x: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B T D"]:
    """Set padded frames to zero."""
    return x if valid is None else torch.where(valid[..., None], x, 0.0)


@on_cpu(precision.grouped_convolution, when_compiled=True)
def grouped_convolution(
    x: Float[Tensor, "B D 1 T"], weight: Float[Tensor, "D I 1 k"], bias: Tensor | None, padding: int, groups: int
) -> Float[Tensor, "B D 1 T2"]:
    """Convolve over the last dimension, padded by `padding` on both sides; a group has I channels."""
    return F.conv2d(x, weight, bias, padding=(0, padding), groups=groups)


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
        self.activation_dropout = config.activation_dropout
        self.adapter = Adapter(config.model_dim, config.adapter_dim) if config.adapter_dim else nn.Identity()

    def forward(self, x: Float[Tensor, "B T D"], scope: Scope, places: Tensor | None = None) -> Float[Tensor, "B T D"]:
        """Transform frames; those outside `scope` are never attended to. `places` are those of `SelfAttention`."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), scope, places))
            out: Tensor = self.adapter(x + self.dropout(self._feed_forward(self.ffn_norm(x))))
            return out
        x = self.attention_norm(x + self.dropout(self.attention(x, scope, places)))
        normed: Tensor = self.adapter(self.ffn_norm(x + self.dropout(self._feed_forward(x))))
        return normed

    def _feed_forward(self, x: Tensor) -> Tensor:
        return gelu_linear(self.inner(x), self.outer, self.activation_dropout if self.training else 0.0)


@on_cpu(products.gelu_linear)
def gelu_linear(z: Float[Tensor, "*rest C"], linear: nn.Linear, dropout: float) -> Float[Tensor, "*rest O"]:
    """Apply GELU, dropout and a linear layer to `z` (…, C); `dropout` is 0 outside training."""
    out: Tensor = linear(drop(F.gelu(z), dropout))
    return out


class Transformer(nn.Module):
    """Positions, then blocks, then (pre-norm models with `final_norm`) a final layer norm.

    Initialisation: every linear weight N(0, 0.02), but for the last of an adapter, which is 0, as biases are.

    Args:
        config: which blocks, how many, and how they know the places of frames.

    Attributes:
        activation_checkpointing: keep only the input of each block, and compute the block again in the backward.
        is_compiled: whether `compile_blocks` was called.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_first, self.activation_checkpointing, self.is_compiled = config.norm_first, False, False
        self.config = config
        self.position = PositionalConvolution(config) if config.positions == "convolutional" else None
        self.relative_bias = RelativeBias(config) if config.position_buckets else None
        self.norm = LayerNorm(config.model_dim) if config.final_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        make_block = ConformerBlock if config.block == "conformer" else TransformerBlock
        self.blocks = nn.ModuleList(make_block(config) for _ in range(config.num_layers))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.blocks.modules():
            if isinstance(module, Adapter):
                nn.init.zeros_(module.up.weight)

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
        num_frozen: int = -1,
        adjust: Adjust | None = None,
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
            num_frozen: the positions and so many first blocks get no gradient, and no backward is spent on them;
                above L neither does the final norm. -1: all learn.
            adjust: `adjust(n, x)` gives what block n + 1 gets of the output of block n; None: the output.

        Returns:
            The output (after the final norm of pre-norm models), and L + 1 states: what enters the first block,
            then each block's output, none of them after the final norm.
        """
        valid = None if num_frames is None else make_valid_mask(num_frames, x.shape[1])
        x = _clear(x, valid)
        if self.position is not None:
            with learning(num_frozen < 0):
                x = x + self.position(x, valid)
        # Blocks that are compiled would be compiled again for the lengths of each packed batch.
        run = unwrap(run_rows) if self.is_compiled else run_rows
        return run(x, num_frames, partial(self._run_blocks, keep, num_frozen, adjust))

    def _run_blocks(
        self, keep: Tensor | None, num_frozen: int, adjust: Adjust | None, x: Tensor, scope: Scope
    ) -> tuple[Tensor, list[Tensor]]:
        with learning(num_frozen < 0):
            x = self.dropout(x if self.norm_first else self.norm(x))
            places = self._make_places(scope, x)
        states = [x]
        for index, block in enumerate(self.blocks):
            run = partial(checkpoint, block, use_reentrant=False) if self.activation_checkpointing else block
            with learning(index >= num_frozen):
                # The first block needs no adjusting: nothing has looked at the frames yet.
                x = x if adjust is None or index == 0 else adjust(index, x)
                inputs = (x, scope, places)
                x = run(*inputs) if keep is None else _keep_or_skip(block, run, inputs, keep[index])
            states.append(x)
        with learning(num_frozen <= len(self.blocks)):
            return (self.norm(x) if self.norm_first else x), states

    def _make_places(self, scope: Scope, x: Tensor) -> Tensor | None:
        """Make what the blocks are told of the frames' places, for all of them at once."""
        if self.relative_bias is None:
            return make_places(self.config, scope, x.shape[1], x.device)
        table: Tensor = self.relative_bias(find_longest(scope, x.shape[1]))
        return table


@on_cpu(packing.run_rows)
def run_rows(
    x: Float[Tensor, "B T D"], num_frames: Int[Tensor, " B"] | None, run: Run
) -> tuple[Float[Tensor, "B T D"], list[Float[Tensor, "B T D"]]]:
    """Run blocks over padded rows, whose padding is never attended to.

    Args:
        x: (B, T, D).
        num_frames: (B,) valid frames; None where nothing is padded.
        run: the blocks.
    """
    return run(x, None if num_frames is None else make_valid_mask(num_frames, x.shape[1])[:, None, None, :])


def _keep_or_skip(
    block: nn.Module, run: Callable[..., Tensor], inputs: tuple[Tensor, Scope, Tensor | None], keep: Tensor
) -> Tensor:
    """Run a block where `keep` (scalar, on the CPU) is True; a compiled graph computes it and then chooses."""
    if torch.compiler.is_compiling():
        return torch.where(keep.to(inputs[0].device), run(*inputs), inputs[0])
    out: Tensor = run(*inputs) if bool(keep) else _Skip.apply(inputs[0], *_list_trained(inputs[2], *block.parameters()))
    return out


def _list_trained(*parts: Tensor | None) -> list[Tensor]:
    return [part for part in parts if part is not None and part.requires_grad]


class _Skip(torch.autograd.Function):
    """Identity; the gradients of all further arguments are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))
