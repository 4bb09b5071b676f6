"""Drop-ins for a CPU: the same functions as in the network, faster, or right where torch's own are wrong in bf16.

The files of the network hold the reference of each, which reads as the paper. `@on_cpu(drop_in)` above it is the one
place where the choice between the two is made; the unit tests compare them, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def on_cpu(
    drop_in: Callable[Concatenate[Tensor, P], R], when_compiled: bool = False
) -> Callable[[Callable[Concatenate[Tensor, P], R]], Callable[Concatenate[Tensor, P], R]]:
    """Call `drop_in` in place of the decorated reference where the first argument is on the CPU.

    `inspect.unwrap` gives the reference back.

    Args:
        drop_in: of the same signature.
        when_compiled: also in a graph that is compiled or exported. What is there for speed stays out of it: the
            compiler has its own ways, and does not know these.
    """

    def decorate(reference: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
        @wraps(reference)
        def choose(x: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
            run = drop_in if is_for(x, when_compiled) else reference
            return run(x, *args, **kwargs)

        return choose

    return decorate


def is_for(x: Tensor, when_compiled: bool = False) -> bool:
    """Say whether drop-ins are for `x`: on the CPU and, unless `when_compiled`, not for a graph."""
    return x.device.type == "cpu" and (when_compiled or not torch.compiler.is_compiling())
