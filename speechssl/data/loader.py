"""From a plan to batches: what one forward gets, and the loader whose workers make it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, get_worker_info

from speechssl.data.dataset import Example, LeftOut, ReadOptions, make_stand_in, read_sub_batch
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import ForwardPlan, UpdatePlanner, round_up
from speechssl.data.workers import describe_no_room, receive
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.processes import signal_at_parents_end

Collate = Callable[[Sequence[Example], int, int], dict[str, list[np.ndarray]]]
"""`collate(examples, seed, number)`: what an objective draws for the rows of sub-batch `number`, one array a row."""


def collate_nothing(examples: Sequence[Example], seed: int, number: int) -> dict[str, list[np.ndarray]]:
    """Draw nothing, for what takes audio alone."""
    return {}


@dataclass
class Batch:
    """What one forward gets: one or more sub-batches, stacked.

    Attributes:
        waveforms: (B, N) float32 at 16 kHz, zero-padded.
        num_samples: (B,) int64 valid samples; None where nothing is padded.
        ids: utterance of each row.
        plan: which sub-batches of which update these are.
        membership: (S, B) float32, 1 where a row belongs to a sub-batch.
        inputs: what the objective's collate made, padded and stacked: (B, …) each.
        sizes: for each sub-batch its `first` row, its `rows`, and the longest of each of the objective's arrays.
        left_out: utterances of the plan that cannot be read, and so are no rows.
    """

    waveforms: Tensor
    num_samples: Tensor | None
    ids: list[str]
    plan: ForwardPlan
    membership: Tensor
    inputs: dict[str, Tensor]
    sizes: list[dict[str, int]]
    left_out: list[LeftOut] = field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device."""
        return self._change(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy the tensors to page-locked memory; torch's loader leaves an object without this method as it is."""
        return self._change(Tensor.pin_memory)

    def share_memory(self) -> Batch:
        """Move the tensors to memory that other processes see; raises RuntimeError where there is no room."""
        return self._change(Tensor.share_memory_)

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
        """Samples of audio in the batch, padding not counted; 0 where the batch is not counted."""
        if not self.plan.is_counted:
            return 0
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


Part = tuple[list[Example], dict[str, list[np.ndarray]]]
"""The examples of a sub-batch, and what the objective drew for them."""


def stack(plan: ForwardPlan, parts: Sequence[Part]) -> Batch:
    """Stack sub-batches into one batch.

    Args:
        plan: of the forward.
        parts: for each sub-batch its examples and what the objective drew for them.
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
    """Makes the batch of a forward plan: a pure function of the plan and the files, whichever worker runs it.

    An utterance that cannot be read is left out, and named in the batch. Any other mistake of the user is handed over
    rather than raised: the loader would wrap what a worker raises into a traceback, and lose its one sentence.
    """

    def __init__(self, manifest: Manifest, options: ReadOptions, collate: Collate) -> None:
        self.manifest, self.options, self.collate = manifest, options, collate

    def __getitem__(self, plan: ForwardPlan) -> Batch | SpeechSSLError:
        try:
            batch = self._make(plan)
        except SpeechSSLError as error:
            return error
        worker = get_worker_info()
        if worker is None:
            return batch
        try:
            # What fails later, as the batch is sent, torch prints and forgets, and everybody waits for ever.
            return batch.share_memory()
        except RuntimeError as error:
            return ConfigError(describe_no_room(worker.num_workers, str(error)))

    def _make(self, plan: ForwardPlan) -> Batch:
        left_out: list[LeftOut] = []
        read = [(part, read_sub_batch(self.manifest, part, self.options, left_out)) for part in plan.sub_batches]
        if not plan.is_counted:
            left_out = []  # another rank's, which says so
        kept = [(part, examples) for part, examples in read if examples]
        if kept:
            plan = replace(plan, sub_batches=tuple(part for part, _ in kept))
        else:
            # The forward is made all the same, since other ranks may wait for it, and adds nothing.
            plan = replace(plan, sub_batches=plan.sub_batches[:1], is_counted=False)
            kept = [(plan.sub_batches[0], [make_stand_in(self.manifest, plan.sub_batches[0])])]
        made = [(examples, self.collate(examples, self.options.seed, part.number)) for part, examples in kept]
        return replace(stack(plan, made), left_out=left_out)


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


FEWEST_CHOSEN, MOST_CHOSEN = 1, 2
"""What `data.num_workers=-1` comes to: with none, a tenth of a step of `small` on two cores and a third with `tiny`
went by in reading (2026-11-30); one worker took nearly all of it."""


def choose_workers(num_workers: int, is_on_gpu: bool) -> int:
    """Choose the number of loader processes: the one given, or for -1 by the cores to spare.

    On a CPU the threads that train want their cores for themselves, and the other processes of a run theirs.

    Args:
        num_workers: `data.num_workers`.
        is_on_gpu: whether the model is on one; its threads then leave the cores alone.
    """
    if num_workers >= 0:
        return num_workers
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    spare = cores // processes - (0 if is_on_gpu else torch.get_num_threads())
    return max(FEWEST_CHOSEN, min(MOST_CHOSEN, spare))


def iterate_updates(
    manifest: Manifest,
    planner: UpdatePlanner,
    options: ReadOptions,
    collate: Collate,
    updates: tuple[int, int],
    num_workers: int,
    pin_memory: bool = False,
    must_stop: Callable[[], bool] = lambda: False,
) -> Generator[list[Batch], None, None]:
    """Yield the batches of each update from the first to the last, both included.

    The batches are the same with any number of workers, and from any first update.

    Args:
        manifest: utterances.
        planner: which sub-batches each update holds.
        options: how utterances are read.
        collate: the objective's part of the work.
        updates: first and last update.
        num_workers: loader processes; 0 works in this one, -1 is chosen.
        pin_memory: for copies to a GPU.
        must_stop: asked while workers are waited for; where it says so, nothing more comes.
    """
    plans = (plan for update in range(updates[0], updates[1] + 1) for plan in planner.plan_update(update))
    batches: list[Batch] = []
    for batch in iterate_plans(manifest, plans, options, collate, num_workers, pin_memory, must_stop):
        batches.append(batch)
        if batch.plan.is_last:
            yield batches
            batches = []


def iterate_plans(
    manifest: Manifest,
    plans: Iterable[ForwardPlan],
    options: ReadOptions,
    collate: Collate,
    num_workers: int,
    pin_memory: bool = False,
    must_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Yield the batch of each forward plan, in order; arguments as in `iterate_updates`.

    Raises:
        ConfigError, DataError: the workers cannot work, or have died; as `receive`.
    """
    # Workers inherit this process, with what Arrow keeps of tables that are gone.
    pa.default_memory_pool().release_unused()
    num_workers = choose_workers(num_workers, pin_memory)
    loader = DataLoader(
        _ForwardDataset(manifest, options, collate),
        batch_size=None,
        sampler=plans,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_set_up_worker if num_workers else None,
        prefetch_factor=4 if num_workers else None,
    )
    for batch in receive(loader, must_stop) if num_workers else loader:
        if isinstance(batch, SpeechSSLError):
            raise batch
        yield batch
