"""Experiment trackers behind the one writer protocol: Weights & Biases and MLflow, imported only when asked for."""

from __future__ import annotations

import importlib
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from speechssl.checkpoints.layout import TRACKERS
from speechssl.checkpoints.state import Progress
from speechssl.config.training import LoggingConfig
from speechssl.durable import write_in_one_step
from speechssl.errors import ConfigError
from speechssl.parsing import parsing, read_json
from speechssl.training.metrics import JsonLinesWriter, MetricsWriter, TensorBoardWriter, name_numbers, read_metrics
from speechssl.training.run_folder import flatten

"""File of a run folder: the id that the run has with each tracker, and what has been sent to them."""

TRACKER_KEYS = {"wandb": "logging.wandb_project", "mlflow": "logging.mlflow_experiment"}
"""Package of a tracker → the key that asks for it."""

PARAMS_A_CALL = 100
"""Most parameters that MLflow's server takes at once."""


def open_writers(
    folder: Path, progress: Progress, config: LoggingConfig, run: dict[str, Any]
) -> Sequence[MetricsWriter]:
    """Open all writers of a run.

    Args:
        folder: of the run.
        progress: where the run goes on from.
        config: which there are.
        run: the run's configuration, which the trackers show.

    Raises:
        ConfigError: the package of a tracker is not installed.
    """
    for name, value in (("wandb", config.wandb_project), ("mlflow", config.mlflow_experiment)):
        if value:
            # Before anything is opened that would have to be closed again.
            import_tracker(name, TRACKER_KEYS[name])
    ledger = open_ledger(folder) if config.wandb_project or config.mlflow_experiment else Ledger(folder / TRACKERS)
    writers: list[MetricsWriter] = [JsonLinesWriter(folder, progress.update, progress.validated_update)]
    if config.tensorboard:
        writers.append(TensorBoardWriter(folder, progress.update))
    if config.wandb_project:
        writers.append(WandbWriter(folder, config.wandb_project, run, ledger))
    if config.mlflow_experiment:
        writers.append(MlflowWriter(folder, config.mlflow_experiment, run, ledger))
    return writers


@dataclass
class Ledger:
    """What trackers, which cannot be cut back to a checkpoint as files can, have been told.

    A resumed run makes its updates again to the bit, so what was sent once needs no sending again.

    Attributes:
        path: the file.
        ids: tracker → id of the run there.
        sent: split → last update that was sent.
    """

    path: Path
    ids: dict[str, str] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)

    def find_id(self, tracker: str) -> str:
        """Return the id that the run has with a tracker, or an empty string."""
        return self.ids.get(tracker, "")

    def keep_id(self, tracker: str, run_id: str) -> None:
        """Remember the id of the run, on disk too."""
        self.ids[tracker] = run_id
        self.save()

    def is_new(self, record: dict[str, Any]) -> bool:
        """Say whether a record was not sent by this run before it was interrupted."""
        return int(record["update"]) > self.sent.get(record["split"], -1)

    def save(self) -> None:
        """Write the file in one step."""
        write_in_one_step(self.path, json.dumps({"ids": self.ids, "sent": self.sent}, indent=2) + "\n")


def open_ledger(folder: Path) -> Ledger:
    """Read the ledger of a run folder, and take in what its metrics.jsonl holds, before that is cut back.

    Raises:
        DataError: it does not read. Without it the trackers would be told everything twice, as another run.
    """
    path = folder / TRACKERS
    if not path.exists():
        return Ledger(path)
    stored = read_json(path)
    with parsing(str(path), "what trackers have been told"):
        ids = {str(name): str(value) for name, value in stored["ids"].items()}
        ledger = Ledger(path, ids, {str(split): int(update) for split, update in stored["sent"].items()})
    for record in read_metrics(folder):
        split = record.get("split", "train")
        ledger.sent[split] = max(ledger.sent.get(split, -1), record["update"])
    ledger.save()
    return ledger


class WandbWriter:
    """A run of Weights & Biases; offline with WANDB_MODE=offline, as that package has it.

    Args:
        folder: of the run; its name is the run's.
        project: that it belongs to.
        run: configuration.
        ledger: what was sent before.
    """

    def __init__(self, folder: Path, project: str, run: dict[str, Any], ledger: Ledger) -> None:
        wandb = import_tracker("wandb", TRACKER_KEYS["wandb"])
        self.ledger = ledger
        if not ledger.find_id("wandb"):
            ledger.keep_id("wandb", uuid.uuid4().hex[:16])
        self.run = wandb.init(
            project=project,
            name=folder.resolve().name,
            id=ledger.find_id("wandb"),
            resume="allow",
            dir=str(folder),
            config=run,
        )

    def write(self, record: dict[str, Any]) -> None:
        """Log the numbers of a record at its update."""
        if self.ledger.is_new(record):
            self.run.log(name_numbers(record), step=record["update"])

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


class MlflowWriter:
    """A run of MLflow.

    Args:
        folder: of the run; its name is the run's.
        experiment: that it belongs to; made if there is none.
        run: configuration, as MLflow's parameters.
        ledger: what was sent before.
    """

    def __init__(self, folder: Path, experiment: str, run: dict[str, Any], ledger: Ledger) -> None:
        mlflow = import_tracker("mlflow", TRACKER_KEYS["mlflow"])
        self.ledger, self.entities, self.client = ledger, mlflow.entities, mlflow.MlflowClient()
        if not ledger.find_id("mlflow"):
            ledger.keep_id("mlflow", self._create(experiment, folder.resolve().name, run))
        self.run_id = ledger.find_id("mlflow")
        self.client.update_run(self.run_id, status="RUNNING")

    def write(self, record: dict[str, Any]) -> None:
        """Log the numbers of a record at its update, in one call."""
        if not self.ledger.is_new(record):
            return
        now, step = round(1000 * time.time()), record["update"]
        metrics = [self.entities.Metric(k, float(v), now, step) for k, v in name_numbers(record).items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as ended; one that goes on is marked as running again."""
        self.client.set_terminated(self.run_id)

    def _create(self, name: str, run_name: str, run: dict[str, Any]) -> str:
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        run_id: str = self.client.create_run(experiment, run_name=run_name).info.run_id
        params = [self.entities.Param(key, str(value)) for key, value in flatten(run).items()]
        for first in range(0, len(params), PARAMS_A_CALL):
            self.client.log_batch(run_id, params=params[first : first + PARAMS_A_CALL])
        return run_id


def import_tracker(name: str, key: str) -> ModuleType:
    """Import the package of a tracker; its extra has the same name.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigError(
            f"`{key}` must be empty where {name} is not installed (pip install 'speechssl[{name}]'), but is set"
        ) from error
