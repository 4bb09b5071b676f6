"""The fixed plan of overlapping windows that defines the frames of long audio.

A plan depends on the length of the audio and on nothing else, so that the result is the same whatever the batch, the
memory or an interruption. All windows are equally long, and each frame comes from the window in which it stands
furthest from an edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from speechssl.model.lengths import HOP_SAMPLES

_MARGIN_SHARE = 6
"""A frame has at least a sixth of the window on either side (5 s of 30 s), but at the ends of the audio."""


@dataclass(frozen=True)
class Window:
    """One pass over a stretch of long audio.

    Attributes:
        start: first sample, at 16 kHz; a multiple of the hop, so that frames of all windows are on one grid.
        num_samples: how many; the same in every window of a plan.
        first: first of the window's own frames that is kept.
        last: first of the window's own frames, after `first`, that is not kept any more.
    """

    start: int
    num_samples: int
    first: int
    last: int


def plan_windows(
    num_samples: int, window_samples: int, receptive_samples: int = 400, hop_samples: int = HOP_SAMPLES
) -> list[Window]:
    """Plan the windows of an utterance.

    Args:
        num_samples: length of the audio at 16 kHz, at least `receptive_samples`.
        window_samples: most samples of a window; audio up to that long is one window.
        receptive_samples: what one frame sees.
        hop_samples: from one frame to the next.

    Returns:
        Windows from the start to the end. Their kept frames, put together, are as many as a single pass gives; the
        last window is moved back to end with the audio.
    """
    assert receptive_samples <= min(num_samples, window_samples), (num_samples, window_samples, receptive_samples)
    total = (num_samples - receptive_samples) // hop_samples + 1
    if num_samples <= window_samples:
        return [Window(0, num_samples, 0, total)]
    length = (window_samples - receptive_samples) // hop_samples + 1
    step = max(1, length - 2 * (length // _MARGIN_SHARE))
    starts = [*range(0, max(total - length, 0), step), max(total - length, 0)]
    middles = [(left + length + right) // 2 for left, right in pairwise(starts)]
    samples = (min(length, total) - 1) * hop_samples + receptive_samples
    edges = zip(starts, [0, *middles], [*middles, total], strict=True)
    return [Window(start * hop_samples, samples, first - start, last - start) for start, first, last in edges]
