"""The one loop of inference: utterances in batches through a model, long ones in windows, results in their order.

Batches change speed and memory, never a result (1e-5 in float32): padding is masked, or avoided where a model's group
norm would see it, and audio longer than a window always goes in the same windows (`inference/windows.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.model import ModelConfig
from speechssl.data.sampler import round_up
from speechssl.errors import DataError
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.source import FloatArray, IntArray, Source
from speechssl.inference.windows import Window, plan_windows
from speechssl.model.speech_model import as_evaluating
from speechssl.progress import Progress

R = TypeVar("R")

Forward = Callable[[AnyModel, Tensor, Tensor | None], tuple[list[Tensor], Tensor]]
"""Model, waveforms (B, N) and valid samples (B,) → tensors (B, T, …) and valid frames (B,)."""

Reduce = Callable[[Iterator[list[Tensor]]], R]
"""All frames of one utterance → its result. They come piece by piece, so that hours of audio fit in memory: each piece
has one tensor (t, …) for each that `Forward` gave."""

Split = Callable[[int, int, Iterator[list[Tensor]]], Iterable[R]]
"""Utterance k, the number of the first frame that comes, and its frames as `Reduce` has them → its results, each as
soon as it is there."""

CHUNK_BATCHES = 32
"""Utterances are sorted by length within so many batches' worth of audio: little padding, and results keep coming."""

_READ_AHEAD = 2
"""Batches that threads read while the model works (libsndfile and soxr let go of the interpreter's lock)."""


def run_model(
    model: AnyModel,
    source: Source,
    forward: Forward,
    reduce: Reduce[R],
    *,
    batch_s: float,
    window_s: float,
    description: str,
    chunk_batches: int,
    is_output: bool,
    done: Set[int] = frozenset(),
    in_order: bool = True,
) -> Iterator[tuple[int, R]]:
    """Run a model over utterances, with progress on stderr.

    Args:
        model: on whatever device; it works in evaluation mode, and is left as it is.
        source: utterances. What is shorter than one frame has no result.
        forward: one pass over a batch.
        reduce: makes an utterance's result of its frames.
        batch_s: seconds of audio, padding included, that a pass may hold; a longer utterance is a pass of its own.
        window_s: utterances up to this many seconds are one pass, longer ones go in overlapping windows.
        description: what is going on, for the progress.
        chunk_batches: results of so many batches are held until they can be given in order.
        is_output: whether `forward` gives the frames of the model's output, which a length adapter makes fewer.
        done: utterances whose results the caller has: the batches are those of a run without any, so that the others'
            results are the same to the bit.
        in_order: give results in the order of the source, rather than each as soon as it is there.

    Yields:
        Number and result of each utterance that is not done, without what the source leaves out.

    Raises:
        DataError: a file is missing, damaged or not as long as it should be, and the source leaves nothing out.
    """
    return stream_model(
        model, source, forward, lambda _, __, pieces: [reduce(pieces)],
        batch_s=batch_s, window_s=window_s, description=description, chunk_batches=chunk_batches, is_output=is_output,
        done=done, in_order=in_order,
    )  # fmt: skip


def stream_model(
    model: AnyModel,
    source: Source,
    forward: Forward,
    split: Split[R],
    *,
    batch_s: float,
    window_s: float,
    description: str,
    chunk_batches: int,
    is_output: bool,
    done: Set[int] = frozenset(),
    first_frames: Mapping[int, int] | None = None,
    in_order: bool = True,
) -> Iterator[tuple[int, R]]:
    """Run a model over utterances as `run_model` does, for any number of results each, so that none must be held.

    A long file in which damage is come to late is left out when some of its results have been given: the caller must
    drop them.

    Args:
        split: makes an utterance's results of its frames.
        first_frames: utterance → the first of its frames that is needed; windows with none of those are passed over.
    """
    long_enough = np.flatnonzero(source.lengths >= model.config.output_field)
    grid = find_grid(model.config, is_output)
    limit, window = int(batch_s * SAMPLE_RATE), round(window_s * SAMPLE_RATE)
    begun = first_frames or {}
    left = sum(int(source.lengths[index]) for index in long_enough.tolist() if index not in done)
    left -= sum(first * grid[1] for first in begun.values())

    def run() -> Iterator[tuple[int, R]]:
        with Progress(description, left / SAMPLE_RATE / 3600, "h of audio") as progress:
            loop = _Loop(as_evaluating(model), source, forward, split, window, limit, grid, done, begun, progress)
            for part in cut_chunks(source.lengths[long_enough], chunk_batches * limit):
                yield from loop.run_in_order(long_enough[part]) if in_order else loop.run(long_enough[part])

    return run()


@dataclass(frozen=True)
class _Loop(Generic[R]):
    """What `stream_model` was given, in samples."""

    model: AnyModel
    source: Source
    forward: Forward
    split: Split[R]
    window: int
    limit: int
    grid: tuple[int, int]
    done: Set[int]
    first_frames: Mapping[int, int]
    progress: Progress

    def run(self, chunk: IntArray) -> Iterator[tuple[int, R]]:
        """Yield results as they come."""
        yield from self._run_batches(chunk)
        for index in chunk.tolist():
            yield from self._run_windows(index)

    def run_in_order(self, chunk: IntArray) -> Iterator[tuple[int, R]]:
        """Yield results in the order of the source; those of long files are not held."""
        held: dict[int, list[R]] = defaultdict(list)
        for index, result in self._run_batches(chunk):
            held[index].append(result)
        for index in chunk.tolist():
            yield from ((index, result) for result in held.pop(index, ()))
            yield from self._run_windows(index)

    def _run_batches(self, chunk: IntArray) -> Iterator[tuple[int, R]]:
        lengths = self.source.lengths
        short = chunk[lengths[chunk] <= self.window]
        batches = plan_batches(short, lengths, self.limit, needs_equal_lengths(self.model))
        for batch, waveforms in read_ahead(self.source, [batch for batch in batches if not self.done >= set(batch)]):
            yield from self._run_batch(batch, waveforms)

    @torch.inference_mode()
    def _run_batch(self, batch: Sequence[int], waveforms: Sequence[FloatArray]) -> Iterator[tuple[int, R]]:
        tensors, num_frames = self.forward(self.model, *stack_waveforms(self.model, waveforms))
        fresh = [(row, index) for row, index in enumerate(batch) if index not in self.done]
        # Counted where the work is done: results in order come many at a time, and the time left would jump.
        self._advance(sum(len(waveforms[row]) for row, _ in fresh))
        counts = num_frames.tolist()
        for row, index in fresh:
            pieces = iter([[tensor[row, : counts[row]] for tensor in tensors]])
            yield from ((index, result) for result in self.split(index, 0, pieces))

    @torch.inference_mode()
    def _run_windows(self, index: int) -> Iterator[tuple[int, R]]:
        """Run over audio longer than a window: each frame comes from the window in which it stands most inside."""
        length, hop = int(self.source.lengths[index]), self.grid[1]
        if length <= self.window or index in self.done:
            return
        windows, rows = plan_windows(length, self.window, *self.grid), max(1, self.limit // self.window)
        groups = [windows[first : first + rows] for first in range(0, len(windows), rows)]
        needed = self.first_frames.get(index, 0)
        groups = [group for group in groups if group[-1].start // hop + group[-1].last > needed]
        if not groups:
            return
        first_frame = groups[0][0].start // hop + groups[0][0].first
        try:
            yield from ((index, result) for result in self.split(index, first_frame, self._iterate(index, groups)))
        except DataError as error:
            self.source.leave_out(index, str(error))

    def _iterate(self, index: int, groups: Sequence[Sequence[Window]]) -> Iterator[list[Tensor]]:
        waveforms = self.source.read_stretches(index, ((w.start, w.num_samples) for group in groups for w in group))
        for group in groups:
            tensors, _ = self.forward(self.model, *stack_waveforms(self.model, list(islice(waveforms, len(group)))))
            self._advance(self.grid[1] * sum(w.last - w.first for w in group))
            yield from ([tensor[row, w.first : w.last] for tensor in tensors] for row, w in enumerate(group))

    def _advance(self, num_samples: int) -> None:
        self.progress.advance(num_samples / SAMPLE_RATE / 3600)


def find_grid(config: ModelConfig, is_output: bool) -> tuple[int, int]:
    """Find the samples that a frame sees, and those from one to the next: of the model's output, or of its layers."""
    return (config.output_field, config.output_hop) if is_output else (config.receptive_field, config.hop_samples)


def cut_chunks(lengths: IntArray, chunk_samples: int) -> list[IntArray]:
    """Cut 0 … n - 1 into consecutive runs of about `chunk_samples` samples."""
    numbers = (np.cumsum(lengths) - lengths) // chunk_samples
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(numbers)) + 1)


def plan_batches(indices: IntArray, lengths: IntArray, batch_samples: int, equal: bool) -> list[list[int]]:
    """Group utterances of similar length, longest first, so that rows × longest stays within `batch_samples`.

    Args:
        indices: utterances to group.
        lengths: (n,) samples at 16 kHz of every utterance.
        batch_samples: most samples in a batch, padding included; a batch has one row at least.
        equal: only utterances of one length may share a batch.
    """
    batches: list[list[int]] = []
    for index in indices[np.argsort(-lengths[indices], kind="stable")].tolist():
        longest = lengths[batches[-1][0]] if batches else 0
        width = longest if equal else round_up(longest)
        fits = longest > 0 and width * (len(batches[-1]) + 1) <= batch_samples
        if fits and (not equal or lengths[index] == longest):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def needs_equal_lengths(model: AnyModel) -> bool:
    """Say whether padding would change a row: group norm and its kin over all frames, as in the published models."""
    return model.config.can_see_padding and model.config.group_norm_frames == "all"


def stack_waveforms(model: AnyModel, waveforms: Sequence[FloatArray]) -> tuple[Tensor, Tensor | None]:
    """Pad waveforms to one length and stack them, on the model's device.

    Returns:
        (B, N) float32, N a multiple of a second so that few shapes occur, and (B,) int64 valid samples. The peers'
        group norm must see an unpadded batch as unpadded: it gets N as it is, and None.
    """
    exact = needs_equal_lengths(model)
    longest = max(len(waveform) for waveform in waveforms)
    padded = torch.zeros(len(waveforms), longest if exact else round_up(longest))
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    lengths = None if exact else torch.tensor([len(waveform) for waveform in waveforms], device=model.device)
    return padded.to(model.device), lengths


def read_ahead(source: Source, batches: Sequence[list[int]]) -> Iterator[tuple[list[int], list[FloatArray]]]:
    """Yield batches with their waveforms, while threads read the next ones; without what cannot be read."""
    pool = ThreadPoolExecutor(_READ_AHEAD)
    try:
        pending: list[list[tuple[int, Future[FloatArray | None]]]] = []
        for batch in [*batches, *[[]] * _READ_AHEAD]:
            pending.append([(index, pool.submit(source.try_read, index)) for index in batch])
            ready = pending.pop(0) if len(pending) > _READ_AHEAD else []
            read = [(index, future.result()) for index, future in ready]
            whole = {index: waveform for index, waveform in read if waveform is not None}
            if whole:
                yield list(whole), list(whole.values())
    finally:
        # Ctrl-C waits for the files that are being read, not for those that would be next.
        pool.shutdown(cancel_futures=True)
