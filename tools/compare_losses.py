#!/usr/bin/env python
"""Compare the losses of a pretraining before and after every optimisation of the CPU path.

    python tools/compare_losses.py                       # tiny, 20 updates, float32 and bf16
    python tools/compare_losses.py model=base updates=3

Everyone starts from the same weights, batches, masks, negatives and dropout draws, and makes every update by itself:
what is printed is how far the losses come apart, relative, over all updates. "Plain" is the code as it was before:
torch's convolutions, norms, GELU, attention and dropout, and blocks that LayerDrop skips computed and discarded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.bench.jobs import TrainingJob, build_job
from speechssl.bench.meter import Stopwatch
from speechssl.cli.compose import compose
from speechssl.model import transformer
from speechssl.model.cpu import products as cpu_products
from speechssl.model.cpu.dropout import Dropout, draw_kept
from speechssl.model.feature_encoder import FeatureEncoder

TOLERANCES = {"float32": 1e-5, "bf16": 2e-2}
"""Largest relative difference of a loss. In float32 the orders of sums differ, and updates carry that on."""


def drop_plainly(x: Tensor, prob: float) -> Tensor:
    """Multiply by the mask that the package would draw."""
    kept = draw_kept(x.shape, prob)
    return x * kept.mask.to(x.dtype) * kept.scale


def forward_dropout(module: Dropout, x: Tensor) -> Tensor:
    """As `Dropout.forward`, by torch's own operations."""
    return drop_plainly(x, module.prob) if module.training and module.prob else x


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, dropout: float) -> Tensor:
    """As `attend`, by the formula."""
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask, float("-inf"))
    weights = torch.softmax(scores, -1)
    if dropout:
        kept = draw_kept(weights.flatten(0, 1).shape, dropout)
        weights = weights * kept.mask.view(weights.shape) * kept.scale
    return weights.to(value.dtype) @ value


def feed_plainly(z: Tensor, linear: nn.Linear, dropout: float) -> Tensor:
    """As `gelu_linear`, by torch's own operations."""
    x = F.gelu(z)
    return F.linear(drop_plainly(x, dropout) if dropout else x, linear.weight, linear.bias)


def keep_or_discard(
    block: nn.Module, run: Callable[..., Tensor], inputs: tuple[Tensor, Tensor | None], keep: Tensor
) -> Tensor:
    """Compute every block, and discard what LayerDrop skips; the draws in there are given back."""
    with torch.random.fork_rng(devices=[], enabled=not bool(keep)):
        y = run(*inputs)
    return torch.where(keep, y, inputs[0])


PLAIN: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "convolutions as products, group norm folded, GELU recomputed": (
        FeatureEncoder,
        "_choose_path",
        lambda encoder, *_: encoder._convolve,
    ),
    "feed-forward with GELU recomputed": (cpu_products, "gelu_linear", feed_plainly),
    "attention with dropout, or in bf16": (transformer, "attend", attend_plainly),
    "dropout": (Dropout, "forward", forward_dropout),
    "skipped blocks": (transformer, "_keep_or_skip", keep_or_discard),
}


def compute_losses(words: Sequence[str], updates: int, precision: str, optimised: Sequence[str]) -> list[float]:
    """Train with the optimisations named, everything else plain, and return the loss of each update."""
    config = compose("bench", ["pretrain", *words])
    with ExitStack() as stack:
        for name, (owner, attribute, plain) in PLAIN.items():
            if name not in optimised:
                stack.enter_context(patch.object(owner, attribute, plain))
        job = build_job(config, (torch.device("cpu"), precision))
        assert isinstance(job, TrainingJob), f"a training, not {type(job)}"
        losses = []
        for _ in range(updates):
            job.run_step(Stopwatch(torch.device("cpu")))
            losses.append(float(job.metrics["loss"]))  # type: ignore[arg-type]
    return losses


def main(argv: Sequence[str]) -> int:
    """Print a table; 1 where a difference is larger than its tolerance."""
    updates = next((int(word.partition("=")[2]) for word in argv if word.startswith("updates=")), 20)
    words = ["model=tiny", "batch=4", "seconds=5", *(word for word in argv if not word.startswith("updates="))]
    failed = False
    print(f"{updates} updates, {' '.join(words)}\n")
    print("| precision | optimised | largest relative difference of a loss | tolerance |")
    print("| --- | --- | ---: | ---: |")
    for precision, tolerance in TOLERANCES.items():
        plain = compute_losses(words, updates, precision, ())
        for names in [*((name,) for name in PLAIN), tuple(PLAIN)]:
            losses = compute_losses(words, updates, precision, names)
            worst = max(abs(new - old) / old for new, old in zip(losses, plain, strict=True))
            failed |= not worst <= tolerance
            label = names[0] if len(names) == 1 else "all of them"
            print(f"| {precision} | {label} | {worst:.1e} | {tolerance:.0e} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
