"""Frames to vectors: of an utterance, or of each of its segments, while the frames come piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.inference.source import FloatArray, IntArray


@dataclass
class Pool:
    """Takes in the frames of one utterance, piece by piece, and gives one vector (or all frames).

    Attributes:
        pooling: `mean`, `max`, `statistics` (mean and population standard deviation side by side) or `frames`.
    """

    pooling: str
    count: int = 0
    total: Tensor | None = None
    squares: Tensor | None = None
    pieces: list[FloatArray] = field(default_factory=list)

    def add(self, frames: Tensor) -> None:
        """Take in (T, D) frames."""
        if self.pooling == "frames":
            self.pieces.append(frames.float().cpu().numpy())
            return
        if self.pooling == "max":
            peak = frames.max(0).values.double()
            self.total = peak if self.total is None else torch.maximum(self.total, peak)
            return
        self.count += len(frames)
        total = frames.sum(0, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        if self.pooling == "statistics":
            squares = frames.double().square().sum(0)
            self.squares = squares if self.squares is None else self.squares + squares

    def finish(self) -> FloatArray:
        """Give (1, D'), or (T, D) for `frames`: float32."""
        if self.pooling == "frames":
            return np.concatenate(self.pieces)
        assert self.total is not None, "no frames"
        pooled = self.total if self.pooling == "max" else self.total / self.count
        if self.squares is not None:
            deviation = (self.squares / self.count - pooled.square()).clamp(min=0).sqrt()
            pooled = torch.cat([pooled, deviation])
        return pooled.float().cpu().numpy()[None]


def find_frames(times: npt.NDArray[np.float64], num_frames: int, grid: tuple[int, int]) -> IntArray:
    """Find the frames of segments: those whose middle lies in one; of one that is shorter the next there is.

    Args:
        times: (S, 2) start and end, s, sorted by start.
        num_frames: of the utterance.
        grid: samples that a frame sees, and from one to the next.

    Returns:
        (S, 2) the first frame of each, and the first behind it; the former do not decrease.
    """
    seen, hop = grid
    # Rounded first: 0.02 s is frame 1 of a grid of 20 ms, whatever a float makes of it.
    edges = np.ceil(np.round((times * SAMPLE_RATE - seen / 2) / hop, 6)).astype(np.int64)
    first = np.clip(edges[:, 0], 0, num_frames - 1)
    return np.stack([first, np.clip(edges[:, 1], first + 1, num_frames)], axis=1)


def pool_segments(
    pieces: Iterator[list[Tensor]], at: int, bounds: IntArray, pooling: str
) -> Iterator[list[FloatArray]]:
    """Pool the frames of segments, which may overlap, holding no more than those that are open.

    Args:
        pieces: consecutive frames, (t, D) for each layer.
        at: number of the first of them.
        bounds: (S, 2) as `find_frames` gives them.
        pooling: as `Pool`.

    Yields:
        One array (rows, D') a layer of each segment, in their order.
    """
    opened, closed = 0, 0
    pools: dict[int, list[Pool]] = {}
    for piece in pieces:
        end = at + len(piece[0])
        while opened < len(bounds) and bounds[opened, 0] < end:
            pools[opened] = [Pool(pooling) for _ in piece]
            opened += 1
        parts = [
            (pool, frames[max(first - at, 0) : max(last - at, 0)])
            for (first, last), layers in ((bounds[number].tolist(), layers) for number, layers in pools.items())
            for pool, frames in zip(layers, piece, strict=True)
        ]
        for pool, frames in parts:
            # One that has ended waits for an earlier one.
            if len(frames):
                pool.add(frames)
        while closed in pools and bounds[closed, 1] <= end:
            yield [pool.finish() for pool in pools.pop(closed)]
            closed += 1
        at = end


def normalise_rows(vectors: FloatArray) -> FloatArray:
    """Divide each vector (..., D) by its length; one of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: FloatArray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
