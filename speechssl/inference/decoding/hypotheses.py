"""What goes into a search, and the list that comes out of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

FloatArray = npt.NDArray[np.float64]


class Hypothesis(NamedTuple):
    """What may have been said, with its scores in nats.

    Attributes:
        text: words with spaces between them.
        total: what the search ranks by, as the top of this file has it.
        acoustic: ln P(text | audio), the blank's penalty taken off.
        lm: ln P(words, end) of the language model, not yet weighted; 0 without one.
        num_unknown: words that the language model does not know.
    """

    text: str = ""
    total: float = 0.0
    acoustic: float = 0.0
    lm: float = 0.0
    num_unknown: int = 0


def find_log_probs(logits: Tensor) -> FloatArray:
    """Take the log-softmax over the last axis, in float64: texts are the same wherever they are searched for."""
    log_probs: FloatArray = logits.double().log_softmax(-1).cpu().numpy()
    assert not np.isnan(log_probs).any(), "logits with NaN"
    return log_probs
