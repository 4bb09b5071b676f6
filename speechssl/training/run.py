"""The one road of `pretrain` and `finetune`, from a configuration to its result.

Claim the folder → join the ranks → data and objective (`build`) → trainer → result → report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechssl.checkpoints.layout import CHECKPOINTS, REPORT, list_published, read_update
from speechssl.checkpoints.replacement import Replacement, drop_replaced, recover
from speechssl.checkpoints.snapshot import Provenance
from speechssl.checkpoints.store import CheckpointStore
from speechssl.config.knobs import check
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.data.manifest import Manifest
from speechssl.devices import check_room, resolve_precision, use_deterministic_algorithms
from speechssl.durable import write_result, writing
from speechssl.errors import ConfigError
from speechssl.model.transformer import Transformer
from speechssl.objectives.protocol import Objective
from speechssl.report.page import build_report
from speechssl.seeds import make_torch_seed
from speechssl.training.data_record import check_record, describe_data, digest_texts, write_record
from speechssl.training.distributed.ranks import Ranks, check_division, join_ranks
from speechssl.training.left_out import read_left_out
from speechssl.training.logs import RunLogs
from speechssl.training.metrics import find_last_metrics
from speechssl.training.network import Config, adopt_network
from speechssl.training.run_folder import claim_run, find_version, open_run, read_stored
from speechssl.training.schedules import describe_schedule
from speechssl.training.sources import ManifestSource, describe_plan
from speechssl.training.stop import StopFlag
from speechssl.training.trainer import Trainer

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Task:
    """What a training verb makes of its configuration.

    Attributes:
        objective: what is learned, with fresh weights or those of `init`.
        train: batches to learn from.
        valid: batches to validate on; None for none.
        learns_texts: whether updates are a function of the transcripts.
    """

    objective: Objective
    train: ManifestSource
    valid: ManifestSource | None = None
    learns_texts: bool = False

    @property
    def sources(self) -> dict[str, ManifestSource]:
        """The sources by the keys that their manifests stand behind."""
        return {"data.train": self.train} | ({} if self.valid is None else {"data.valid": self.valid})

    @property
    def manifests(self) -> dict[str, Manifest]:
        """The manifests by their keys."""
        return {key: source.manifest for key, source in self.sources.items()}


def run_training(config: Config, build: Callable[[Config, Ranks, bool], Task]) -> dict[str, Any]:
    """Train, or go on where an earlier run of the same configuration stopped. The caller holds the run folder.

    Args:
        config: of the verb.
        build: makes the task, given also the ranks, and whether the run goes on from a checkpoint.

    Returns:
        The result; only rank 0 writes it, and the report.
    """
    with join_ranks(config.device) as ranks:
        check_division(ranks, config.training)
        config, folder = adopt_network(config), Path(config.out)
        result = _find_result(config, folder) if ranks.is_main else {}
        # One rank decides: another may see the folder of a network drive later.
        if ranks.find_max(int(ranks.is_main and result is not None)):
            key = "max_updates" if (result or {}).get("updates") == config.training.max_updates else "patience"
            _logger.info("%s is finished; raise training.%s to go on", folder, key)
            return result or {}
        # Nothing is written until the trainer is made: what is refused on the way leaves the folder as it was.
        planned = ranks.find_max(_plan_schedule(config, folder) if ranks.is_main else 0)
        config = replace(config, training=replace(config.training, schedule_updates=planned))
        goes_on = bool(ranks.find_max(int(ranks.is_main and _goes_on(config, folder))))
        check_room(config.model, ranks.device)
        _check_batch_norm(config, ranks)
        precision = choose_precision(config, ranks)
        seed_weights(config.seed)
        task = build(config, ranks, goes_on)
        _logger.info(describe_plan(task.train, config.training, "data.train"))
        return train(config, folder, task, ranks, precision, goes_on)


def _find_result(config: PretrainConfig | FinetuneConfig, folder: Path) -> dict[str, Any] | None:
    """Return the result of the finished run that a folder holds; None where something is left to do.

    Raises:
        ConfigError: it holds a run with other values, or the result of another verb; or with overwrite=true what the
            new run starts from.
    """
    recover(folder)
    if not config.overwrite:
        result = open_run(folder, config)
        if result is not None and not (folder / REPORT).exists():
            # Killed, or a disk was full, after the result was written.
            build_report([folder], folder / REPORT)
        return result
    for key, value in config.checkpoints_read.items():
        path = Path(value).resolve()
        is_ours = path == folder.resolve() or path.is_relative_to((folder / CHECKPOINTS).resolve())
        if value and is_ours and Path(value).exists():
            raise ConfigError(f"`{key}` must be no part of {folder}, which overwrite=true replaces, but is {value}")
    return None


def _goes_on(config: PretrainConfig | FinetuneConfig, folder: Path) -> bool:
    """Say whether a run has checkpoints to go on from: then it needs nothing that it began with but its data."""
    return not config.overwrite and bool(list_published(folder / CHECKPOINTS))


def _plan_schedule(config: PretrainConfig | FinetuneConfig, folder: Path) -> int:
    """Find the updates that the schedule is laid over: those that the run began with, unless the command says others.

    What is new, or behind the end, is said.
    """
    stored = None if config.overwrite else read_stored(folder)
    before = (stored or {}).get("training", {})
    # A run of before this key had one schedule over what it had planned last.
    begun = before.get("schedule_updates") or before.get("max_updates") or config.training.planned_updates
    training = replace(config.training, schedule_updates=config.training.schedule_updates or begun)
    published = list_published(folder / CHECKPOINTS) if stored else []
    done = read_update(published[-1]) if published else 0
    for line in describe_schedule(training, begun if published else training.planned_updates, done):
        _logger.warning(line)
    return training.planned_updates


@contextmanager
def _claim(config: PretrainConfig | FinetuneConfig, folder: Path, trainer: Trainer) -> Iterator[None]:
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


def _check_batch_norm(config: Config, ranks: Ranks) -> None:
    """Check that what batch norm remembers is that of one process, which computes each forward once."""
    training = config.training
    can = ranks.is_alone and not training.activation_checkpointing and not training.ema_decay
    key, others = (
        ("position_norm", "weight or layer") if config.model.has_position_batch_norm else ("block_norm", "layer")
    )
    must = f"{others} with several processes, training.activation_checkpointing or training.ema_decay"
    check(can or not config.model.has_batch_norm, f"model.{key}", must, getattr(config.model, key))


def choose_precision(config: PretrainConfig | FinetuneConfig, ranks: Ranks) -> str:
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


def train(
    config: PretrainConfig | FinetuneConfig,
    folder: Path,
    task: Task,
    ranks: Ranks,
    precision: str,
    goes_on: bool,
) -> dict[str, Any]:
    """Train to the end, write the result and the report, and return the result."""
    training, objective, main = config.training, task.objective, ranks.is_main
    set_up_blocks(objective.module, training.activation_checkpointing, training.compile)
    record = describe_data(task.manifests, task.learns_texts) if main else None
    if record is not None and goes_on:
        check_record(folder, record, read_left_out(folder))
    stop = StopFlag(training.max_hours, since=ranks.began, when_late=training.stop_when_late)
    # Several processes agree to stop between updates, and none ends alone.
    hooks: dict[str, Any] = {"must_stop": lambda: ranks.is_alone and stop.is_requested}
    sources = [replace(each, make_collate=objective.make_collate, **hooks) for each in task.sources.values()]
    sizes = {key: len(manifest) for key, manifest in task.manifests.items()}
    trainer = Trainer(
        objective=objective,
        config=training,
        source=sources[0],
        ranks=ranks,
        precision=precision,
        seed=config.seed,
        validate=sources[1].validate if len(sources) > 1 else None,
        store=CheckpointStore(folder, training.keep_checkpoints, find_provenance(task, precision)),
        logs=RunLogs(folder if main else None, config.logging, asdict(config), sizes),
        stop=stop,
    )
    deterministic = use_deterministic_algorithms(training.deterministic)
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
        **({"ended_by": "training.patience"} if progress.update < training.max_updates else {}),
        "parameters": sum(parameter.numel() for parameter in objective.module.parameters()),
        "damaged_checkpoints": progress.damaged_checkpoints,
        "num_left_out": len(read_left_out(folder)),
        "train": find_last_metrics(folder, "train"),
        "valid": find_last_metrics(folder, "valid"),
    }
    if main:
        write_result(folder, result)
        build_report([folder], folder / REPORT)
    return result


def find_provenance(task: Task, precision: str) -> Provenance:
    """Gather what the updates of a run are a function of, beside its configuration."""
    data = {key: manifest.digest for key, manifest in task.manifests.items()}
    if task.learns_texts:
        data |= {f"{key} (transcripts)": digest_texts(manifest) for key, manifest in task.manifests.items()}
    return Provenance(precision, data, {name: find_version(name) for name in ("speechssl", "torch")})
