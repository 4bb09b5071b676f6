"""What `pretrain` and `finetune` share: the run folder, the trainer's setup, the result and the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechssl.checkpoints.layout import REPORT, SKIPPED
from speechssl.checkpoints.provenance import Provenance
from speechssl.checkpoints.replacement import Replacement, drop_replaced, recover
from speechssl.checkpoints.rotation import list_published
from speechssl.checkpoints.store import CheckpointStore
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.data.loader import Batch
from speechssl.devices import resolve_precision, use_deterministic_algorithms
from speechssl.durable import write_result, writing
from speechssl.errors import ConfigError
from speechssl.model.transformer import Transformer
from speechssl.objectives.protocol import Objective
from speechssl.report.page import build_report
from speechssl.seeds import make_torch_seed
from speechssl.training.data_record import check_record, describe_data, digest_texts, write_record
from speechssl.training.distributed.ranks import Ranks, check_division
from speechssl.training.left_out import LeftOutTable, read_left_out
from speechssl.training.metrics import JsonLinesWriter, find_last_metrics
from speechssl.training.run_folder import claim_run, find_version, open_run, read_stored
from speechssl.training.schedules import describe_schedule
from speechssl.training.setup import Setup
from speechssl.training.sources import ManifestSource
from speechssl.training.stop import StopFlag
from speechssl.training.trackers import open_writers
from speechssl.training.trainer import Trainer

_logger = logging.getLogger("speechssl")

TrainingVerbConfig = PretrainConfig | FinetuneConfig


def open_folder(config: TrainingVerbConfig, ranks: Ranks) -> tuple[Path, dict[str, Any] | None]:
    """Check `out`, or return the result of the finished run that it holds; rank 0 does so for all.

    Nothing is written yet: what is refused later leaves the folder as it was.

    Returns:
        The folder, and the result if there is nothing left to do (an empty one on the other ranks).

    Raises:
        ConfigError: `out` holds a run with other values, or the result of another verb; or with overwrite=true what
            the new run starts from.
    """
    check_division(ranks, config.training)
    folder = Path(config.out)
    result = _open(config, folder) if ranks.is_main else {}
    is_finished = ranks.find_max(int(ranks.is_main and result is not None))
    if not is_finished:
        planned = _plan_schedule(config, folder) if ranks.is_main else 0
        config.training.schedule_updates = ranks.find_max(planned)
    return folder, result if is_finished else None


def _plan_schedule(config: TrainingVerbConfig, folder: Path) -> int:
    """Find the updates that the schedule is laid over: those that the run began with, unless the command says others.

    What is new, or behind the end, is said.
    """
    training = config.training
    stored = (None if config.overwrite else read_stored(folder)) or {}
    before = stored.get("training", {})
    # A run of before this key had one schedule over what it had planned last.
    begun = before.get("schedule_updates") or before.get("max_updates") or training.planned_updates
    training = replace(training, schedule_updates=training.schedule_updates or begun)
    published = list_published(folder / "checkpoints") if stored else []
    done = int(published[-1].name.removeprefix("update-")) if published else 0
    for line in describe_schedule(training, begun if published else training.planned_updates, done):
        _logger.warning(line)
    return training.planned_updates


def _open(config: TrainingVerbConfig, folder: Path) -> dict[str, Any] | None:
    recover(folder)
    if not config.overwrite:
        result = open_run(folder, config)
        if result is not None and not (folder / REPORT).exists():
            # Killed, or a disk was full, after the result was written.
            build_report([folder], folder / REPORT)
        return result
    for key, value in config.checkpoints_read.items():
        path = Path(value).resolve()
        is_ours = path == folder.resolve() or path.is_relative_to((folder / "checkpoints").resolve())
        if value and is_ours and Path(value).exists():
            raise ConfigError(f"`{key}` must be no part of {folder}, which overwrite=true replaces, but is {value}")
    return None


def goes_on(config: TrainingVerbConfig, folder: Path) -> bool:
    """Say whether a run has checkpoints to go on from: then it needs nothing that it began with but its data."""
    return not config.overwrite and bool(list_published(folder / "checkpoints"))


@contextmanager
def _claim(config: TrainingVerbConfig, folder: Path, trainer: Trainer) -> Iterator[None]:
    """Make the folder this run's while inside, once every rank has got so far; rank 0 does so for all.

    A run that ends without having made an update, because it was refused or stopped, leaves the folder as it was.
    """
    ranks = trainer.ranks
    ranks.wait_for_all()
    with ExitStack() as on_failure:
        if ranks.is_main:
            replacement = Replacement(folder, config.overwrite)
            on_failure.callback(lambda: None if trainer.has_moved else replacement.undo())
            with writing(folder):
                replacement.begin()
                claim_run(folder, config)
        ranks.wait_for_all()
        yield
        on_failure.pop_all()
    if ranks.is_main:
        drop_replaced(folder)


def choose_precision(config: TrainingVerbConfig, ranks: Ranks) -> str:
    """Choose the precision, and say on what the run computes."""
    # One process decides for all: `auto` is measured.
    precision = ranks.broadcast(resolve_precision(config.precision, ranks.device))
    processes = f"{ranks.size} processes, " if ranks.size > 1 else ""
    threads = torch.get_num_threads()
    _logger.info("%sdevice %s, precision %s, %d threads", processes, ranks.device, precision, threads)
    return precision


def seed_weights(seed: int) -> None:
    """Seed what fresh weights are drawn from."""
    torch.manual_seed(make_torch_seed(seed, "weights"))


def set_up_blocks(module: nn.Module, activation_checkpointing: bool, compile: bool) -> None:
    """Say how the transformer blocks of a model are computed; see the keys of these names."""
    for part in module.modules():
        if isinstance(part, Transformer):
            part.activation_checkpointing = activation_checkpointing
            if compile:
                part.compile_blocks()


def find_provenance(
    precision: str, source: ManifestSource, valid: ManifestSource | None, with_texts: bool = False
) -> Provenance:
    """Gather what the updates of a run are a function of, beside its configuration."""
    sets = {"data.train": source.manifest} | ({} if valid is None else {"data.valid": valid.manifest})
    data = {key: manifest.digest for key, manifest in sets.items()}
    if with_texts:
        # An entry of its own: checkpoints of before have none, and still go on.
        data |= {f"{key} (transcripts)": digest_texts(manifest) for key, manifest in sets.items()}
    return Provenance(precision, data, {name: find_version(name) for name in ("speechssl", "torch")})


def train(
    config: TrainingVerbConfig,
    folder: Path,
    objective: Objective,
    source: ManifestSource,
    valid: ManifestSource | None,
    ranks: Ranks,
    precision: str,
) -> dict[str, Any]:
    """Train to the end, write the result and the report, and return the result; only rank 0 writes."""
    set_up_blocks(objective.module, config.training.activation_checkpointing, config.training.compile)
    stop = StopFlag(config.training.max_hours, since=ranks.began)
    sets = {"data.train": source} if valid is None else {"data.train": source, "data.valid": valid}
    sizes = {key: len(each.manifest) for key, each in sets.items()}
    with_texts = isinstance(config, FinetuneConfig)
    provenance = find_provenance(precision, source, valid, with_texts)
    record = describe_data({key: each.manifest for key, each in sets.items()}, with_texts) if ranks.is_main else None
    if record is not None and goes_on(config, folder):
        check_record(folder, record, read_left_out(folder))
    # Several processes agree to stop between updates, and none ends alone.
    source, *rest = (replace(each, must_stop=lambda: ranks.is_alone and stop.is_requested) for each in sets.values())
    validate: Callable[[], Iterator[Batch]] | None = rest[0].validate if rest else None
    setup = Setup(
        objective=objective,
        config=config.training,
        source=source,
        ranks=ranks,
        precision=precision,
        seed=config.seed,
        validate=validate,
        store=CheckpointStore(folder, config.training.keep_checkpoints, provenance),
        open_writers=lambda progress: open_writers(folder, progress, config.logging, asdict(config)),
        open_skipped=lambda progress: JsonLinesWriter(folder, progress.update, name=SKIPPED),
        open_left_out=lambda: LeftOutTable(folder, sizes),
        stop=stop,
    )
    trainer = Trainer(setup)
    deterministic = use_deterministic_algorithms(config.training.deterministic)
    with stop.listen(), deterministic, _claim(config, folder, trainer):
        if record is not None:
            write_record(folder, record)
        trainer.run()
    progress = trainer.progress
    result: dict[str, Any] = {
        "out": str(folder),
        "updates": progress.update,
        "hours_seen": progress.audio_s / 3600,
        "best_update": progress.best_update or progress.update,
        "parameters": sum(parameter.numel() for parameter in objective.module.parameters()),
        "damaged_checkpoints": progress.damaged_checkpoints,
        "num_left_out": len(read_left_out(folder)),
        "train": find_last_metrics(folder, "train"),
        "valid": find_last_metrics(folder, "valid"),
    }
    if ranks.is_main:
        write_result(folder, result)
        build_report([folder], folder / REPORT)
    return result
