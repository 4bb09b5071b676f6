"""From a plan to batches: what one forward gets, and the loader whose workers make it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from speechssl.data.dataset import Example, ReadOptions, read_sub_batch
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import ForwardPlan, SubBatch, UpdatePlanner, round_up
from speechssl.errors import SpeechSSLError
from speechssl.processes import signal_at_parents_end

Prepare = Callable[[Sequence[Example], int, int], dict[str, list[np.ndarray]]]
"""`prepare(examples, seed, number)`: what an objective draws for the rows of sub-batch `number`, one array a row."""


@dataclass
class Batch:
    """What one forward gets: one or more sub-batches, stacked.

    Attributes:
        waveforms: (B, N) float32 at 16 kHz, zero-padded.
        num_samples: (B,) int64 valid samples; None where nothing is padded.
        ids: utterance of each row.
        plan: which sub-batches of which update these are.
        membership: (S, B) float32, 1 where a row belongs to a sub-batch.
        inputs: what the objective's `prepare` made, padded and stacked: (B, …) each.
        sizes: for each sub-batch its `first` row, its `rows`, and the longest of each of the objective's arrays.
    """

    waveforms: Tensor
    num_samples: Tensor | None
    ids: list[str]
    plan: ForwardPlan
    membership: Tensor
    inputs: dict[str, Tensor]
    sizes: list[dict[str, int]]

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device."""
        return self._change(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy the tensors to page-locked memory; torch's loader leaves an object without this method as it is."""
        return self._change(Tensor.pin_memory)

    def _change(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            waveforms=change(self.waveforms),
            num_samples=None if self.num_samples is None else change(self.num_samples),
            membership=change(self.membership),
            inputs={name: change(value) for name, value in self.inputs.items()},
        )

    @property
    def valid_samples(self) -> int:
        """Samples of audio in the batch, padding not counted."""
        return self.waveforms.numel() if self.num_samples is None else int(self.num_samples.sum())

    @property
    def audio_s(self) -> float:
        """Seconds of audio in the batch, padding not counted."""
        return self.valid_samples / 16_000


def pad_stack(arrays: Sequence[np.ndarray]) -> Tensor:
    """Pad arrays with zeros at the end of every dimension to a common shape, and stack them."""
    shape = np.max([array.shape for array in arrays], axis=0)
    out = np.zeros((len(arrays), *shape), dtype=arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return torch.from_numpy(out)


def collate(plan: ForwardPlan, parts: Sequence[tuple[list[Example], dict[str, list[np.ndarray]]]]) -> Batch:
    """Stack sub-batches into one batch.

    Args:
        plan: of the forward.
        parts: for each sub-batch its examples and what the objective prepared for them.
    """
    examples = [example for rows, _ in parts for example in rows]
    lengths = np.array([len(example.waveform) for example in examples], dtype=np.int64)
    waveforms = pad_stack([example.waveform for example in examples])
    if not plan.sub_batches[0].crop_samples:
        waveforms = F.pad(waveforms, (0, round_up(waveforms.shape[1]) - waveforms.shape[1]))
    unpadded = bool((lengths == waveforms.shape[1]).all())
    inputs = {name: pad_stack([row for _, made in parts for row in made[name]]) for name in parts[0][1]}
    counts = [len(rows) for rows, _ in parts]
    membership = torch.zeros(len(parts), len(examples))
    sizes, first = [], 0
    for index, (count, (_, made)) in enumerate(zip(counts, parts, strict=True)):
        membership[index, first : first + count] = 1.0
        sizes.append({"first": first, "rows": count, **{k: max(len(row) for row in v) for k, v in made.items()}})
        first += count
    return Batch(
        waveforms=waveforms,
        num_samples=None if unpadded else torch.from_numpy(lengths),
        ids=[example.id for example in examples],
        plan=plan,
        membership=membership,
        inputs=inputs,
        sizes=sizes,
    )


class _ForwardDataset(Dataset[Batch | SpeechSSLError]):
    """Makes the batch of a forward plan: a pure function of the plan, whichever worker runs it.

    A user's mistake, such as a file that holds NaN, is handed over rather than raised: the loader would wrap what a
    worker raises into a traceback, and lose its one sentence.
    """

    def __init__(self, manifest: Manifest, options: ReadOptions, prepare: Prepare) -> None:
        self.manifest, self.options, self.prepare = manifest, options, prepare

    def __getitem__(self, plan: ForwardPlan) -> Batch | SpeechSSLError:
        try:
            parts = [self._make(sub_batch) for sub_batch in plan.sub_batches]
        except SpeechSSLError as error:
            return error
        return collate(plan, parts)

    def _make(self, sub_batch: SubBatch) -> tuple[list[Example], dict[str, list[np.ndarray]]]:
        examples = read_sub_batch(self.manifest, sub_batch, self.options)
        return examples, self.prepare(examples, self.options.seed, sub_batch.number)


def _plan_updates(planner: UpdatePlanner, first: int, last: int) -> Iterator[ForwardPlan]:
    for update in range(first, last + 1):
        yield from planner.plan_update(update)


class _PlanSampler(Sampler[ForwardPlan]):
    """Hands the loader one forward plan after another."""

    def __init__(self, plans: Iterable[ForwardPlan]) -> None:
        self.plans = plans

    def __iter__(self) -> Iterator[ForwardPlan]:
        return iter(self.plans)


def _set_up_worker(_: int) -> None:
    """Give each worker one thread, since the cores belong to the model, and leave signals to the main process.

    A signal to the process group reaches the workers too; one that died of it would take the run down unsaved. But a
    worker ends with its main process at once, even if that is killed: it holds a copy of its sockets, and the other
    processes of a run would wait on them as if it were there.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal_at_parents_end(signal.SIGKILL)


def iterate_updates(
    manifest: Manifest,
    planner: UpdatePlanner,
    options: ReadOptions,
    prepare: Prepare,
    updates: tuple[int, int],
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[list[Batch]]:
    """Yield the batches of each update from the first to the last, both included.

    The batches are the same with any number of workers, and from any first update.

    Args:
        manifest: utterances.
        planner: which sub-batches each update holds.
        options: how utterances are read.
        prepare: the objective's part of the work.
        updates: first and last update.
        num_workers: loader processes; 0 works in this one.
        pin_memory: for copies to a GPU.
    """
    plans = _plan_updates(planner, *updates)
    batches: list[Batch] = []
    for batch in iterate_plans(manifest, plans, options, prepare, num_workers, pin_memory):
        batches.append(batch)
        if batch.plan.is_last:
            yield batches
            batches = []


def iterate_plans(
    manifest: Manifest,
    plans: Iterable[ForwardPlan],
    options: ReadOptions,
    prepare: Prepare,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the batch of each forward plan, in order; arguments as in `iterate_updates`.

    Raises:
        DataError: an utterance cannot be read, or holds NaN; it is named.
    """
    # Workers inherit this process, with what Arrow keeps of tables that are gone.
    pa.default_memory_pool().release_unused()
    loader = DataLoader(
        _ForwardDataset(manifest, options, prepare),
        batch_size=None,
        sampler=_PlanSampler(plans),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_set_up_worker if num_workers else None,
        prefetch_factor=4 if num_workers else None,
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, SpeechSSLError):
                raise batch
            yield batch
    finally:
        # A worker ignores SIGTERM. While the traceback of a crash keeps the iterator, only this ends its workers, for
        # which the process would wait forever.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
