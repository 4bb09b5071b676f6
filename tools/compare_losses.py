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
from inspect import unwrap
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.bench.jobs import TrainingJob, build_job
from speechssl.bench.meter import Stopwatch
from speechssl.cli.compose import compose
from speechssl.model import feature_encoder, layers, transformer
from speechssl.model.cpu.dropout import draw_kept
from speechssl.model.cpu.packing import Packing, Scope

TOLERANCES = {"float32": 1e-5, "bf16": 2e-2}
"""Largest relative difference of a loss. In float32 the orders of sums differ, and updates carry that on."""


def drop_plainly(x: Tensor, prob: float) -> Tensor:
    """As `drop`: multiply by the mask that the package would draw."""
    if not prob:
        return x
    kept = draw_kept(x.shape, prob)
    return x * kept.mask.to(x.dtype) * kept.scale


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, scope: Scope, dropout: float) -> Tensor:
    """As `attend`, by the formula."""
    if isinstance(scope, Packing):
        rows = ((query[:, :, row], key[:, :, row], value[:, :, row]) for row in scope.slices)
        return torch.cat([attend_plainly(*row, None, dropout) for row in rows], 2)
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if scope is not None:
        scores = scores.masked_fill(~scope, float("-inf"))
    weights = torch.softmax(scores, -1)
    return drop_plainly(weights.flatten(0, 1), dropout).view(weights.shape).to(value.dtype) @ value


def feed_plainly(z: Tensor, linear: nn.Linear, dropout: float) -> Tensor:
    """As `gelu_linear`, by torch's own operations."""
    return F.linear(drop_plainly(F.gelu(z), dropout), linear.weight, linear.bias)


def keep_or_discard(
    block: nn.Module, run: Callable[..., Tensor], inputs: tuple[Tensor, Tensor | None], keep: Tensor
) -> Tensor:
    """Compute every block, and discard what LayerDrop skips; the draws in there are given back."""
    with torch.random.fork_rng(devices=[], enabled=not bool(keep)):
        y = run(*inputs)
    return torch.where(keep, y, inputs[0])


PLAIN: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "convolutions as products, group norm folded, GELU recomputed": (
        feature_encoder,
        "convolve",
        unwrap(feature_encoder.convolve),
    ),
    "feed-forward with GELU recomputed": (transformer, "gelu_linear", feed_plainly),
    "attention with dropout, or in bf16": (transformer, "attend", attend_plainly),
    "dropout": (layers, "drop", drop_plainly),
    "skipped blocks": (transformer, "_keep_or_skip", keep_or_discard),
}
"""What stands for each optimisation: where it is, its name, and the plain function."""


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
