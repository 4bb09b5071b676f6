"""Weights & Biases and MLflow behind the writer protocol, against modules that record what they are told."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from speechssl.checkpoints.layout import TRACKERS
from speechssl.checkpoints.snapshot import Progress
from speechssl.config.training import LoggingConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.errors import ConfigError
from speechssl.training.logs import RunLogs
from speechssl.training.metrics import JsonLinesWriter

WANDB = """
calls = []
class Run:
    def log(self, values, step): calls.append(("log", step, values))
    def finish(self): calls.append(("finish",))
def init(**keys):
    calls.append(("init", keys))
    return Run()
"""

MLFLOW = """
from types import SimpleNamespace
calls, experiments = [], {}
class entities:
    Metric = staticmethod(lambda key, value, timestamp, step: (key, value, step))
    Param = staticmethod(lambda key, value: (key, value))
class MlflowClient:
    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=experiments[name]) if name in experiments else None
    def create_experiment(self, name):
        experiments[name] = str(len(experiments))
        return experiments[name]
    def create_run(self, experiment_id, run_name):
        calls.append(("create_run", experiment_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(calls)}"))
    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        calls.append(("log_batch", run_id, list(metrics), list(params)))
    def update_run(self, run_id, status): calls.append(("update_run", run_id, status))
    def set_terminated(self, run_id): calls.append(("set_terminated", run_id))
"""

CONFIG = LoggingConfig(tensorboard=False, wandb_project="speech", mlflow_experiment="speech")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    import mlflow
    import wandb

    return wandb, mlflow


def log(folder: Path, first: int, last: int) -> None:
    """Make the updates from `first` to `last`, with a validation after every fourth."""
    logs = RunLogs(folder, CONFIG, asdict(PretrainConfig(out="x")))
    with logs.opened(Progress(first - 1)):
        for update in range(first, last + 1):
            for split in ("train", "valid") if update % 4 == 0 else ("train",):
                logs.write({"update": update, "split": split, "loss": 5.0 / update, "hard_perplexity": [3.0, 4.0]})


def test_a_run_that_goes_on_is_the_same_run_and_nothing_is_sent_twice(fakes: tuple[Any, Any], tmp_path: Path) -> None:
    wandb, mlflow = fakes
    run = tmp_path / "base"
    run.mkdir()
    log(run, 1, 9)
    log(run, 6, 8)  # from the checkpoint of update 5, and interrupted before it came to new updates
    log(run, 6, 12)
    inits = [call[1] for call in wandb.calls if call[0] == "init"]
    assert len({keys["id"] for keys in inits}) == 1
    assert all(keys["resume"] == "allow" and keys["name"] == "base" for keys in inits)
    assert inits[0]["config"]["model"]["num_layers"] == 12
    sent = [(step, next(iter(values)).partition("/")[0]) for kind, step, values in
            [call for call in wandb.calls if call[0] == "log"]]  # fmt: skip
    assert sent == [(u, s) for u in range(1, 13) for s in (("train", "valid") if u % 4 == 0 else ("train",))]
    assert wandb.calls[-1] == ("finish",)
    batches = [call for call in mlflow.calls if call[0] == "log_batch" and call[2]]
    assert [call[2][0][2] for call in batches] == [step for step, _ in sent]
    assert batches[0][2] == [
        ("train/loss", 5.0, 1), ("train/hard_perplexity_0", 3.0, 1), ("train/hard_perplexity_1", 4.0, 1)
    ]  # fmt: skip
    assert len([call for call in mlflow.calls if call[0] == "create_run"]) == 1
    assert len({call[1] for call in mlflow.calls if call[0] != "create_run"}) == 1
    params = dict(pair for call in mlflow.calls if call[0] == "log_batch" for pair in call[3])
    assert params["model.num_layers"] == "12"
    assert json.loads((run / TRACKERS).read_text())["sent"] == {"train": 9, "valid": 8}


def test_a_run_in_another_folder_is_another_run(fakes: tuple[Any, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        log(tmp_path / name, 1, 2)
    assert len({call[1]["id"] for call in fakes[0].calls if call[0] == "init"}) == 2
    assert len(fakes[1].experiments) == 1


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        @staticmethod
        def find_spec(wanted: str, *_: object) -> None:
            if wanted in ("wandb", "mlflow"):
                raise ModuleNotFoundError(name=wanted)

    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    for name, key in (("wandb", "wandb_project"), ("mlflow", "mlflow_experiment")):
        monkeypatch.delitem(sys.modules, name, raising=False)
        logs = RunLogs(tmp_path, LoggingConfig(tensorboard=False, **{key: "speech"}))
        sentence = rf"`logging.{key}` must be empty .*pip install 'speechssl\[{name}\]'"
        with pytest.raises(ConfigError, match=sentence), logs.opened(Progress()):
            pass


def test_nothing_is_imported_or_written_unless_asked_for(tmp_path: Path) -> None:
    logs = RunLogs(tmp_path, LoggingConfig(tensorboard=False))
    with logs.opened(Progress()):
        assert [type(writer) for writer in logs.writers] == [JsonLinesWriter]
    RunLogs().write({"update": 1, "split": "train", "loss": 1.0})
    assert list(tmp_path.iterdir()) == []
