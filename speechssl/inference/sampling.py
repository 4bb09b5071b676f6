"""A seeded sample of frames, of all layers at once, and the same moments of another model and of log-mel bands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.model import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES
from speechssl.data.segments import Segments
from speechssl.inference.batches import CHUNK_BATCHES, read_ahead, stream_model
from speechssl.inference.embedder import Embedder
from speechssl.inference.source import FloatArray, IntArray, Source
from speechssl.model.log_mel import compute_log_mel
from speechssl.progress import track
from speechssl.seeds import make_rng


@dataclass(frozen=True)
class Plan:
    """Frames to look at.

    Attributes:
        frames: for each utterance its chosen frames, rising; none where it is too short.
        counts: (n,) frames of each utterance, in all.
        hop: samples at 16 kHz from one frame to the next.
    """

    frames: list[IntArray]
    counts: IntArray
    hop: int


@dataclass(frozen=True)
class Sample:
    """States of some utterances.

    Attributes:
        frames: of each utterance, by its number, (L + 1, f, D) float32: the frames that the plan chose.
        means: of each utterance (L + 1, D) float32: the mean of all its frames.
    """

    frames: dict[int, FloatArray]
    means: dict[int, FloatArray]

    def stack(self, kept: list[int]) -> list[FloatArray]:
        """Give the frames of utterances, layer by layer: L + 1 arrays (F, D)."""
        parts = [self.frames[index] for index in kept]
        return [np.concatenate([part[layer] for part in parts]) for layer in range(len(parts[0]))]


def plan_frames(source: Source, embedder: Embedder, num_frames: int, seed: int) -> Plan:
    """Draw frames by lot, each of all utterances with the same chance; all where there are no more.

    Args:
        source: utterances; those that are shorter than a frame are left out.
        embedder: of all layers of the model whose frames count.
        num_frames: to draw.
        seed: of the draw.
    """
    config = embedder.model.config
    source.leave_out_short(config.output_field)
    counts = np.where(source.lengths < config.output_field, 0, config.count_frames(source.lengths)).astype(np.int64)
    total = int(counts.sum())
    chosen = np.arange(total)
    if total > num_frames:
        chosen = np.sort(make_rng(seed, "frames").choice(total, num_frames, replace=False))
    starts = np.cumsum(counts) - counts
    bounds = np.searchsorted(chosen, np.append(starts, total))
    frames = [chosen[bounds[k] : bounds[k + 1]] - starts[k] for k in range(len(counts))]
    return Plan(frames, counts, config.hop_samples)


def sample_states(embedder: Embedder, source: Source, plan: Plan) -> Sample:
    """Run a model over utterances, and keep the frames of a plan and the mean of each utterance.

    A model with another frame rate than the plan's gives the frames that stand at the same share of the utterance.

    Args:
        embedder: of all layers.
        source: what the plan was made for.
        plan: which frames.
    """
    config = embedder.model.config
    source.leave_out_short(config.output_field)
    own = config.count_frames(source.lengths)

    def split(index: int, first: int, pieces: Iterator[list[Tensor]]) -> Iterator[tuple[FloatArray, FloatArray]]:
        assert first == 0, "frames come from the first"
        places = plan.frames[index] * int(own[index]) // max(int(plan.counts[index]), 1)
        kept, total = [], torch.zeros((), dtype=torch.float64)
        for piece in pieces:
            states = torch.stack(piece)
            inside = places[(places >= first) & (places < first + states.shape[1])]
            kept.append(states[:, torch.from_numpy(inside - first)].float().cpu().numpy())
            total, first = total.to(states.device) + states.sum(1, dtype=torch.float64), first + states.shape[1]
        yield np.concatenate(kept, axis=1), (total / first).float().cpu().numpy()

    frames, means = {}, {}
    for index, (chosen, mean) in stream_model(
        embedder.model, source, embedder.forward, split,
        batch_s=embedder.batch_s, window_s=embedder.window_s, chunk_batches=CHUNK_BATCHES, description="states",
        is_output=False,
    ):  # fmt: skip
        frames[index], means[index] = chosen, mean
    return Sample(frames, means)


def label_frames(segments: Segments, plan: Plan, ids: Sequence[str], kept: Sequence[int]) -> list[str | None]:
    """Give the label of the segment that the middle of each frame lies in; None where there is none.

    Args:
        segments: of utterances by their ids, from the beginning of each.
        plan: which frames.
        ids: of all utterances.
        kept: numbers of the utterances whose frames count.
    """
    labels: list[str | None] = []
    for index in kept:
        times, names = segments.find(ids[index])
        middles = (plan.frames[index] * plan.hop + MEL_WINDOW_SAMPLES / 2) / SAMPLE_RATE
        if not len(times):
            labels += [None] * len(middles)
            continue
        rows = np.searchsorted(times[:, 0], middles, side="right") - 1
        inside = (rows >= 0) & (middles < times[rows, 1])
        labels += [names[row] or None if is_inside else None for row, is_inside in zip(rows, inside, strict=True)]
    return labels


def sample_log_mel(source: Source, plan: Plan) -> Sample:
    """Compute 80 log-mel bands of the 25 ms that each frame of a plan begins with, as a sample of one layer."""
    frames, means = {}, {}
    wanted = np.flatnonzero(plan.counts).tolist()
    read = read_ahead(source, [[index] for index in wanted])
    for (index,), (waveform,) in track(read, "log-mel", len(wanted), "utterances"):
        padded = np.pad(waveform, (0, max(0, MEL_WINDOW_SAMPLES - len(waveform))))
        bands = compute_log_mel(padded).T
        places = np.minimum(plan.frames[index] * plan.hop // MEL_HOP_SAMPLES, len(bands) - 1)
        frames[index], means[index] = bands[None, places], bands.mean(0)[None]
    return Sample(frames, means)
