"""An exponential moving average of the weights, which often does better than the weights that it follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from speechssl.checkpoints.sharding import find_local, spread_like


class WeightAverage:
    """Averages the weights of a module over its updates.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the first weights, which are random, are forgotten
    within some tens of updates rather than 1 / (1 - decay). Source: TensorFlow's ExponentialMovingAverage with
    `num_updates`. The sums are in the weights' own float32.

    Args:
        module: what is trained; a parameter that two of its parts share is averaged once, one that needs no gradient
            is not.
        decay: of a late update, such as 0.999: about the mean of the last 1,000.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.averaged = {name: parameter.detach().clone() for name, parameter in self.live.items()}
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an update that was made; a skipped one is not an update."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(find_local(self.averaged.values()), find_local(self.live.values()), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights while inside, for a validation."""
        kept = {name: parameter.detach().clone() for name, parameter in self.live.items()}
        self._write(self.averaged)
        try:
            yield
        finally:
            self._write(kept)

    def collect(self) -> dict[str, Tensor]:
        """Name the averages as `collect_weights` names the weights."""
        return {self._find(name): value for name, value in self.averaged.items()}

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered beside the average itself, for the checkpoint."""
        return {"num_updates": torch.tensor(self.num_updates)}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        """Take back what `state` and `collect` returned.

        Raises:
            LookupError: something is missing.
            ValueError: a weight is of another shape.
        """
        self.num_updates = int(state["num_updates"])
        for name, value in self.averaged.items():
            stored = weights[self._find(name)]
            if stored.shape != value.shape:
                raise ValueError(f"the average of {name} is of shape {tuple(stored.shape)}, not {tuple(value.shape)}")
            value.copy_(spread_like(stored, value))

    @staticmethod
    def _find(name: str) -> str:
        """Name a parameter as `collect_weights` does: the backbone is shared with the pretraining part."""
        return name.removeprefix("pretraining.") if name.startswith("pretraining.backbone.") else name

    @torch.no_grad()
    def _write(self, weights: dict[str, Tensor]) -> None:
        torch._foreach_copy_(find_local(self.live.values()), find_local(weights[name] for name in self.live))
