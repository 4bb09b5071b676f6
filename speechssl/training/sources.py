"""Where the trainer's batches come from: a manifest, the plan of its sub-batches, and the loader."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.data import SelectionConfig
from speechssl.config.model import ModelConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.data.augment import count_at_speed
from speechssl.data.dataset import ReadOptions
from speechssl.data.loader import Batch, Collate, collate_nothing, iterate_plans, iterate_updates
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.data.sampler import PlanConfig, UpdatePlanner
from speechssl.errors import DataError
from speechssl.model.masking import compute_min_frames
from speechssl.training.distributed.ranks import Ranks

_logger = logging.getLogger("speechssl")

NAMED = 5
"""How many of the utterances that are left out are named."""


@dataclass(frozen=True)
class ManifestSource:
    """Batches of the utterances of a manifest.

    Attributes:
        manifest: utterances, already selected.
        planner: which sub-batches each update holds.
        options: how utterances are read.
        num_workers: loader processes.
        pin_memory: for copies to a GPU.
        must_stop: asked while workers are waited for; where it says so, nothing more comes.
        make_collate: makes what the objective does in the workers, each time that they begin.
    """

    manifest: Manifest
    planner: UpdatePlanner
    options: ReadOptions
    num_workers: int
    pin_memory: bool
    must_stop: Callable[[], bool] = lambda: False
    make_collate: Callable[[], Collate] = lambda: collate_nothing

    def __call__(self, first: int, last: int) -> Generator[list[Batch], None, None]:
        """Yield the batches of each update from `first` to `last`, both included."""
        return iterate_updates(
            self.manifest,
            self.planner,
            self.options,
            self.make_collate(),
            (first, last),
            self.num_workers,
            self.pin_memory,
            self.must_stop,
        )

    def validate(self) -> Iterator[Batch]:
        """Yield the batches of one pass over all utterances; the same ones every time."""
        plans = self.planner.plan_epoch_once()
        return iterate_plans(
            self.manifest, plans, self.options, self.make_collate(), self.num_workers, self.pin_memory, self.must_stop
        )

    def listen(self, seconds: float) -> Iterator[Batch]:
        """Yield the batches of the first so many seconds of training: a random sample, whatever the number of ranks."""
        alone = UpdatePlanner(self.manifest.num_samples_16k, replace(self.planner.config, rank=0, num_ranks=1))
        update_s = alone.config.sub_batch_samples * alone.config.sub_batches_per_update / SAMPLE_RATE
        last = math.ceil(min(seconds / update_s, alone.updates_per_epoch))
        batches = chain.from_iterable(replace(self, planner=alone)(1, last))
        return (batch for batch in batches if batch.plan.is_counted)


def select_utterances(
    paths: Sequence[str], key: str, config: SelectionConfig, seed: int, is_training: bool
) -> Manifest:
    """Load manifests and apply `data.where` and, for training, `data.limit_s`.

    Raises:
        DataError: no manifest, an unreadable one, or nothing left.
    """
    manifest = load_manifests(paths, key).filter_where(config.where)
    if is_training:
        manifest = manifest.limit_to(config.limit_s, seed)
    if len(manifest) == 0:
        raise DataError(f"`{key}` must hold utterances, but no row of {', '.join(paths)} has {config.where}")
    return manifest


def leave_out(manifest: Manifest, reasons: Mapping[str, npt.NDArray[np.bool_]], key: str) -> Manifest:
    """Leave some utterances of a manifest out; count and name them.

    Args:
        manifest: utterances.
        reasons: (len(manifest),) which ones are what, such as "shorter than 2 s"; the first reason of each counts.
        key: names the manifest in messages.

    Raises:
        DataError: none would stay.
    """
    keep, parts = np.ones(len(manifest), dtype=bool), []
    for reason, is_so in reasons.items():
        rows = np.flatnonzero(keep & is_so)
        keep[rows] = False
        names = ", ".join(manifest[int(row)].id for row in rows[:NAMED])
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        parts += [f"{len(rows)} {reason}: {names}{more}"] if len(rows) else []
    if keep.all():
        return manifest
    message = f"{np.count_nonzero(~keep)} of {len(manifest)} utterances cannot be used: {'; '.join(parts)}"
    if not keep.any():
        raise DataError(f"`{key}` must hold usable utterances, but {message}")
    _logger.warning("%s: left out, %s", key, message)
    return manifest.select(np.flatnonzero(keep))


def build_source(
    manifest: Manifest,
    seed: int,
    network: ModelConfig,
    training: TrainingConfig,
    data: SelectionConfig,
    *,
    max_s: float = 0.0,
    ascending_epochs: int = 0,
    speeds: Sequence[float] = (),
    is_training: bool = True,
    ranks: Ranks,
) -> ManifestSource:
    """Plan the sub-batches of a manifest.

    Args:
        manifest: utterances.
        seed: of the plan and of the crops.
        network: says how waveforms are normalised.
        training: sizes of update, sub-batch and forward.
        data: number of workers, and where decoded audio is kept.
        max_s: longest crop; 0 takes whole utterances.
        ascending_epochs: first epochs in which short utterances come first.
        speeds: factors of speed perturbation.
        is_training: False for a validation set: fixed order, speed 1.
        ranks: the processes that share the sub-batches out.
    """
    config = PlanConfig(
        seed=seed,
        sub_batch_samples=round(training.sub_batch_s * SAMPLE_RATE),
        sub_batches_per_update=training.sub_batches_per_update,
        forward_samples=round(training.forward_s * SAMPLE_RATE),
        max_samples=round(max_s * SAMPLE_RATE),
        ascending_epochs=ascending_epochs,
        speeds=tuple(speeds) if is_training else (),
        shuffled=is_training,
        rank=ranks.rank,
        num_ranks=ranks.size,
    )
    planner = UpdatePlanner(manifest.num_samples_16k, config)
    options = ReadOptions(seed, network.normalize_waveform, data.cache_dir, is_training, network.waveform_epsilon)
    return ManifestSource(manifest, planner, options, data.num_workers, ranks.device.type == "cuda")


def describe_plan(source: ManifestSource, training: TrainingConfig, name: str) -> str:
    """Say in one line what an update and an epoch are."""
    planner, num_ranks = source.planner, source.planner.config.num_ranks
    number = planner.config.sub_batches_per_update
    epochs = training.max_updates / planner.updates_per_epoch
    listed = "/".join(f"{speed:g}" for speed in planner.config.speeds)
    played = f" at speed {listed}" if listed else ""
    shared = f" shared by {num_ranks} processes" if num_ranks > 1 else ""
    return (
        f"{name}: {len(source.manifest)} utterances, {source.manifest.total_s / 3600:.2f} h{played}; "
        f"{number} sub-batch{'es' if number > 1 else ''} of {training.sub_batch_s:g} s an update{shared}, "
        f"{planner.updates_per_epoch:.1f} updates an epoch, {training.max_updates} updates are {epochs:.1f} epochs"
    )


def select_long_enough(manifest: Manifest, config: PretrainConfig, key: str) -> Manifest:
    """Leave out utterances shorter than `data.min_s`, or with too few frames for the mask's least spans.

    In training there must be frames enough at the fastest speed; `data.min_s` is the length at speed 1.

    Raises:
        DataError: none is long enough.
    """
    samples = manifest.num_samples_16k
    shortest = count_at_speed(samples, config.data.fastest if key == "data.train" else 1.0)
    frames = config.model.count_frames(shortest)
    reasons = {
        f"shorter than data.min_s={config.data.min_s:g} s": samples < config.data.min_s * SAMPLE_RATE,
        "too short to mask": np.asarray(frames < compute_min_frames(config.model.mask)),
    }
    return leave_out(manifest, reasons, key)
