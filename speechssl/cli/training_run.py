"""What `pretrain` and `finetune` share: the run folder, the trainer's setup, the result and the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechssl.cli.output import check_writable, write_result
from speechssl.config import FinetuneConfig, PretrainConfig
from speechssl.data.loader import Batch
from speechssl.errors import ConfigError
from speechssl.model.transformer import Transformer
from speechssl.objectives.protocol import Objective, make_torch_seed
from speechssl.report.page import build_report
from speechssl.training.checkpoint import CheckpointStore
from speechssl.training.devices import resolve_precision
from speechssl.training.distributed import Ranks, check_division
from speechssl.training.metrics import JsonLinesWriter, MetricsWriter, TensorBoardWriter
from speechssl.training.run_folder import CONFIG, open_run
from speechssl.training.sources import ManifestSource
from speechssl.training.stop import StopFlag
from speechssl.training.trainer import Setup, Trainer

_logger = logging.getLogger("speechssl")

TrainingVerbConfig = PretrainConfig | FinetuneConfig


def open_folder(config: TrainingVerbConfig, ranks: Ranks) -> tuple[Path, dict[str, Any] | None]:
    """Open `out`, or return the result of the finished run that it holds; rank 0 does so for all.

    Returns:
        The folder, and the result if there is nothing left to do (an empty one on the other ranks).

    Raises:
        ConfigError: `out` cannot be written, or holds something else or a run with other values.
    """
    check_division(ranks, config.training)
    folder = Path(config.out)
    result = _open(config, folder) if ranks.is_main else {}
    is_finished = ranks.find_max(int(ranks.is_main and result is not None))
    return folder, result if is_finished else None


def _open(config: TrainingVerbConfig, folder: Path) -> dict[str, Any] | None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"`out` must be a folder, but {folder} is a file")
    if config.overwrite and (folder / CONFIG).exists():
        remove_run(folder)
    check_writable(folder)
    return open_run(folder, config)


def remove_run(folder: Path) -> None:
    """Remove what a run wrote, and nothing else that lies in its folder."""
    import shutil

    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "result.json", "report.html"):
        (folder / name).unlink(missing_ok=True)


def choose_precision(config: TrainingVerbConfig, ranks: Ranks) -> str:
    """Choose the precision, and say on what the run computes."""
    precision = resolve_precision(config.precision, ranks.device)
    processes = f"{ranks.size} processes, " if ranks.size > 1 else ""
    threads = torch.get_num_threads()
    _logger.info("%sdevice %s, precision %s, %d threads", processes, ranks.device, precision, threads)
    return precision


def seed_weights(seed: int) -> None:
    """Seed what fresh weights are drawn from."""
    torch.manual_seed(make_torch_seed(seed, "weights"))


def set_activation_checkpointing(module: nn.Module, is_on: bool) -> None:
    """Set it in every transformer of a model."""
    for part in module.modules():
        if isinstance(part, Transformer):
            part.activation_checkpointing = is_on


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
    set_activation_checkpointing(objective.module, config.training.activation_checkpointing)
    stop = StopFlag(config.training.max_hours)
    validate: Callable[[], Iterator[Batch]] | None = None if valid is None else valid.validate
    setup = Setup(
        objective=objective,
        config=config.training,
        source=source,
        ranks=ranks,
        precision=precision,
        seed=config.seed,
        validate=validate,
        store=CheckpointStore(folder, config.training.keep_checkpoints),
        open_writers=lambda update: open_writers(folder, update) if ranks.is_main else (),
        stop=stop,
    )
    trainer = Trainer(setup)
    with stop.listen():
        last = trainer.run()
    progress = trainer.progress
    result: dict[str, Any] = {
        "out": str(folder),
        "updates": progress.update,
        "hours_seen": progress.audio_s / 3600,
        "best_update": progress.best_update or progress.update,
        "parameters": sum(parameter.numel() for parameter in objective.module.parameters()),
        "train": last.get("train"),
        "valid": last.get("valid"),
    }
    if ranks.is_main:
        write_result(folder, result)
        build_report([folder], folder / "report.html")
    return result


def open_writers(folder: Path, update: int) -> tuple[MetricsWriter, ...]:
    """Open what a run logs to, for a run that goes on from `update`."""
    return JsonLinesWriter(folder, update), TensorBoardWriter(folder, update)
