"""Judges each update before the weights move: one whose numbers cannot be right is skipped, and too many stop the run.

A pure function of the losses and gradient norms so far, which are the same on every rank, so that all ranks decide
alike without asking each other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median

import torch
from torch import Tensor

from speechssl.data.loader import Batch
from speechssl.errors import NumericalError
from speechssl.objectives.protocol import LossTerms

WINDOW, LEAST = 128, 64
"""Accepted updates that say what is usual, and how many of them there must be (OLMo-core's figures)."""

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

LEAST_SIGMA = 0.2
"""Sigma of the logarithm is at least this: a curve that is nearly constant makes no spike of its next digit."""

TINY = 1e-12
"""What a value of 0 counts as, which has no logarithm."""

RATE, RATE_FROM = 1e-3, 1_000
"""More than this share of the updates skipped stops a run that has made so many."""

NAMED = 20
"""How many utterances of a skipped update a message names; `skipped.jsonl` has all."""


class NumericalGuard:
    """Says which updates are skipped, counts them, and stops a run that has too many.

    Non-finite values are always skipped. A spike is a loss or a gradient norm whose logarithm is above median +
    `spike_sigmas` · sigma of the last 128 accepted updates, sigma being the median absolute deviation in units of a
    standard deviation. Logarithms, since gradient norms scatter by factors: in healthy runs the norm itself has been
    27 of its sigmas above the median, its logarithm 6 at most. Medians, and only of what was accepted, so that one bad
    value never decides about the updates after it (a mean with one NaN would skip all of the next 128: OLMo-core
    issue 424).

    Args:
        spike_sigmas: as above; 0 takes no value for a spike.
        max_in_row: so many skipped updates in a row stop the run.
        restart_at: updates from which more parameters learn than before: what was usual ends there.
    """

    def __init__(self, spike_sigmas: float = 0.0, max_in_row: int = 5, restart_at: Collection[int] = ()) -> None:
        self.spike_sigmas, self.max_in_row, self.restart_at = spike_sigmas, max_in_row, restart_at
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.skipped = 0
        self.in_row = 0

    def judge(self, update: int, loss: float, norm: float) -> str:
        """Take in one update, before its optimizer step.

        Args:
            update: its number.
            loss: of the whole update, over all ranks.
            norm: of the gradient of the whole update, before clipping.

        Returns:
            Why it must be skipped; an empty string where it may be made.
        """
        if update in self.restart_at:
            self.losses, self.norms = [], []
        reason = self._find_reason("loss", loss, self.losses) or self._find_reason("grad_norm", norm, self.norms)
        if reason:
            self.skipped, self.in_row = self.skipped + 1, self.in_row + 1
            return reason
        self.in_row = 0
        self.losses = [*self.losses, loss][-WINDOW:]
        self.norms = [*self.norms, norm][-WINDOW:]
        return ""

    def check_count(self, update: int, reason: str, ids: Sequence[str]) -> None:
        """Stop the run where too many updates have been skipped; the weights are those of the last one that was made.

        Args:
            update: the one that was just skipped.
            reason: why.
            ids: its utterances.

        Raises:
            NumericalError: `max_in_row` in a row, or 0.1 % of more than 1,000 updates.
        """
        is_frequent = update > RATE_FROM and self.skipped > max(RATE * update, self.max_in_row)
        if self.in_row < self.max_in_row and not is_frequent:
            return
        how = f"the last {self.in_row} were" if self.in_row >= self.max_in_row else f"{self.skipped} of them were"
        raise NumericalError(
            f"`training.lr` must be one that training survives, but of the updates up to {update} {how} skipped, the "
            f"last because {reason}, with the utterances {name_utterances(ids)}: look at these in skipped.jsonl, "
            "lower training.lr, or set training.clip_norm; training.spike_sigmas=0 lets spikes pass; the checkpoints "
            "so far are whole"
        )

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered, for the checkpoint."""
        window = torch.tensor([self.losses, self.norms], dtype=torch.float64)
        return {"window": window, "counts": torch.tensor([self.skipped, self.in_row])}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned.

        Raises:
            LookupError, ValueError: something is missing, or of another shape.
        """
        self.losses, self.norms = state["window"].tolist()
        self.skipped, self.in_row = state["counts"].tolist()

    def _find_reason(self, name: str, value: float, usual: list[float]) -> str:
        if not math.isfinite(value):
            return f"{name} is {value}"
        if self.spike_sigmas == 0 or len(usual) < LEAST:
            return ""
        limit = compute_limit(usual, self.spike_sigmas)
        return f"{name} is {value:.4g}, a spike above {limit:.4g}" if value > limit else ""


def compute_limit(usual: Sequence[float], sigmas: float) -> float:
    """Compute the largest value that is no spike beside usual ones: median + `sigmas` robust sigmas, in logarithms."""
    logs = [math.log(max(value, TINY)) for value in usual]
    middle = median(logs)
    spread = MAD_TO_SIGMA * median(abs(value - middle) for value in logs)
    return math.exp(middle + sigmas * max(spread, LEAST_SIGMA))


def find_broken(parts: Sequence[LossTerms], batches: Sequence[Batch]) -> list[str]:
    """List the utterances of the forwards of this process whose own loss is not finite."""
    broken = [b for part, b in zip(parts, batches, strict=True) if not math.isfinite(float(part.sum))]
    return [utterance for batch in broken for utterance in batch.ids]


def name_utterances(ids: Sequence[str]) -> str:
    """Name the first utterances, and say how many more there are."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more
