"""The curves of a run for others to draw: TensorBoard, Weights & Biases and MLflow, imported only when asked for."""

from __future__ import annotations

import errno
import importlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from speechssl.checkpoints.layout import TRACKERS
from speechssl.durable import Appender, write_in_one_step, writing
from speechssl.errors import ConfigError
from speechssl.parsing import parsing, read_json
from speechssl.training.metrics import read_metrics
from speechssl.training.run_folder import flatten

TRACKER_KEYS = {"wandb": "logging.wandb_project", "mlflow": "logging.mlflow_experiment"}
"""Package of a tracker → the key that asks for it."""

PARAMS_A_CALL = 100
"""Most parameters that MLflow's server takes at once."""


class MetricsWriter(Protocol):
    """Where metrics go."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record with `update` and `split`."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class TensorBoardWriter:
    """`tensorboard/` of a run folder: one file a process, written at once and by this thread.

    Torch's own writer works in a thread, whose traceback on a full disk nobody can catch.

    Args:
        folder: of the run.
        update: the update that the run goes on from; later points are hidden.

    Raises:
        ConfigError: it cannot be written, or `tensorboard` is a link.
    """

    def __init__(self, folder: Path, update: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = Event, Summary
        place = folder / "tensorboard"
        with writing(place):
            if place.is_symlink():
                raise OSError(errno.ELOOP, "it is a link", str(place))
            place.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.file = Appender(place / name, is_new=True)
        self.records = RecordWriter(self.file)
        for event in (Event(file_version="brain.Event:2"), Event(step=update + 1, session_log=SessionLog(status=1))):
            self._add(event)

    def write(self, record: dict[str, Any]) -> None:
        """Add each number of a record.

        Raises:
            ConfigError: it cannot be written.
        """
        named = name_numbers(record)
        values = [self.summary.Value(tag=tag, simple_value=value) for tag, value in named.items()]
        self._add(self.event(step=record["update"], summary=self.summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())


def name_numbers(record: dict[str, Any]) -> dict[str, float]:
    """Name each number of a record `<split>/<name>`, as trackers want them; those of a list with their index behind."""
    named: dict[str, float] = {}
    for name, value in record.items():
        if name in ("update", "split"):
            continue
        tag = f"{record['split']}/{name}"
        named |= {f"{tag}_{k}": item for k, item in enumerate(value)} if isinstance(value, list) else {tag: value}
    return named


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

    def find_id(self, tracker: str, make: Callable[[], str]) -> str:
        """Return the id that the run has with a tracker; a new run is given one, which is remembered on disk."""
        if tracker not in self.ids:
            self.ids[tracker] = make()
            self.save()
        return self.ids[tracker]

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
        self.ledger = ledger
        run_id = ledger.find_id("wandb", lambda: uuid.uuid4().hex[:16])
        self.run = import_tracker("wandb").init(
            project=project, name=folder.resolve().name, id=run_id, resume="allow", dir=str(folder), config=run
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
        mlflow = import_tracker("mlflow")
        self.ledger, self.entities, self.client = ledger, mlflow.entities, mlflow.MlflowClient()
        self.run_id = ledger.find_id("mlflow", lambda: self._create(experiment, folder.resolve().name, run))
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


def import_tracker(name: str) -> ModuleType:
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
            f"`{TRACKER_KEYS[name]}` must be empty where {name} is not installed (pip install 'speechssl[{name}]'), "
            "but is set"
        ) from error
