"""A run folder: its configuration, its environment, and whether the same command may go on in it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from speechssl.checkpoints.layout import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    RESULT,
    list_damaged,
    list_published,
    read_update,
)
from speechssl.config.objective import drop_other_objectives
from speechssl.config.training import TrainingConfig
from speechssl.durable import write_in_one_step, writing
from speechssl.errors import ConfigError, DataError, SpeechSSLError
from speechssl.parsing import parsing, read_bytes, read_json, read_yaml
from speechssl.training.schedules import is_out_of_patience

_logger = logging.getLogger("speechssl")


FREE_KEYS = frozenset((
    "out", "overwrite", "device", "data.num_workers",
    "logging.tensorboard", "logging.wandb_project", "logging.mlflow_experiment",
    "training.max_updates", "training.schedule_updates", "training.validate_every", "training.max_hours",
    "training.stop_when_late", "training.patience", "training.log_every", "training.on_collapse",
    "training.spike_sigmas", "training.max_skipped_in_row", "training.digest_every", "training.timeout_s",
    "training.sharding",
))  # fmt: skip
"""Keys that may change when a run goes on: none of them changes an update that was made. The folder may move.
`training.schedule_updates` changes those to come, and the run says how."""

SUM = "# The SHA-256 of what follows: "
"""What the first line of a configuration begins with."""

PACKAGES = ("torch", "torchaudio", "soundfile", "soxr", "numpy", "pyarrow", "safetensors", "hydra-core", "jiwer")


def open_run(folder: Path, config: Any) -> dict[str, Any] | None:
    """Say whether a command may begin in a folder, or go on with the run that it began there. Nothing is written.

    Args:
        folder: of the run.
        config: the command's configuration, a dataclass.

    Returns:
        The result, if the run is finished and nothing is left to do; otherwise None.

    Raises:
        ConfigError: the folder holds a run with other values, or a longer one, or the result of another verb; or the
            configuration that its checkpoints were made with is damaged or gone.
    """
    stored = read_stored(folder)
    checkpoints = folder / CHECKPOINTS
    if stored is None and (list_published(checkpoints) or list_damaged(checkpoints)):
        raise ConfigError(
            f"`out` must hold the {CONFIG} of its run, but {folder} has checkpoints and no {CONFIG}: nothing can be "
            "compared (put it back, or overwrite=true starts over)"
        )
    if stored is None and os.path.lexists(folder / RESULT):
        raise ConfigError(
            f"`out` must be a new place, but {folder} holds a finished result (overwrite=true replaces it)"
        )
    if stored is None:
        return None
    result = _read_result(folder)
    published = list_published(checkpoints)
    # A key that is younger than the run had its default's meaning then.
    before = _fill(stored, config)
    _check_same(before, asdict(config), folder)
    # Where a plan by minutes is late, a run that is under way may end sooner, though not before where it stands.
    is_short = config.training.stop_when_late and result is None
    least = before["training.max_updates"] if not is_short else read_update(published[-1]) if published else 0
    if config.training.max_updates < least:
        raise ConfigError(
            f"`training.max_updates` must be at least {least} for the run in {folder} to go on, but is "
            f"{config.training.max_updates}"
        )
    return result if result is not None and _is_finished(result, config.training) else None


def claim_run(folder: Path, config: Any) -> None:
    """Write down what a run is made with: from now on the folder is this run's, and no longer finished.

    Args:
        folder: of the run.
        config: the command's configuration, a dataclass.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
    text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    write_in_one_step(folder / CONFIG, f"{SUM}{_digest(text.encode())}\n{text}")
    write_in_one_step(folder / ENVIRONMENT, json.dumps(describe_environment(), indent=2) + "\n")


def read_stored(folder: Path) -> dict[str, Any] | None:
    """Read the configuration that a run began with, nested; None where there is no run.

    Raises:
        ConfigError: it is damaged.
    """
    path = folder / CONFIG
    if not os.path.lexists(path):
        return None
    check_sum(path, ConfigError)
    return drop_other_objectives(read_yaml(path, ConfigError))


def check_sum(path: Path, error: type[SpeechSSLError]) -> None:
    """Compare a configuration with the checksum in its first line; one of an earlier version has none.

    Raises:
        SpeechSSLError: of the class `error`: it is not what was written.
    """
    with parsing(str(path), "the configuration of a run", error):
        first, _, rest = read_bytes(path).partition(b"\n")
        if first.startswith(b"#") and first != f"{SUM}{_digest(rest)}".encode():
            raise ValueError("it is not what was written, its SHA-256 differs")


def describe_environment() -> dict[str, Any]:
    """Describe what a run ran on: versions, device, git revision and command line."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: find_version(name) for name in ("speechssl", *PACKAGES)},
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "num_threads": torch.get_num_threads(),
        "git_revision": _find_revision(),
        "command": sys.argv,
    }


def find_version(package: str) -> str | None:
    """Find the installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys to dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _fill(stored: dict[str, Any], config: Any) -> dict[str, Any]:
    """Give the keys that a stored configuration lacks their defaults; flat."""
    sections = {item.name: type(getattr(config, item.name))() for item in fields(config)}
    defaults = asdict(replace(type(config)(), **{name: made for name, made in sections.items() if is_dataclass(made)}))
    return {**flatten(defaults), **flatten(stored)}


def _check_same(stored: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    before, after = stored, flatten(wanted)
    # What was chosen comes before the keys that the choice brings.
    for key in sorted(before.keys() | after.keys(), key=lambda key: (not key.endswith(".name"), key)):
        if key not in FREE_KEYS and before.get(key) != after.get(key):
            raise ConfigError(
                f"`{key}` must stay {before.get(key)!r} for the run in {folder} to go on, but is {after.get(key)!r} "
                "(another out= starts a new run)"
            )
    if not isinstance(before["training.max_updates"], int):
        raise ConfigError(f"{folder / CONFIG} must have a whole number as training.max_updates, but has none")


def _read_result(folder: Path) -> dict[str, Any] | None:
    """Read the result of a run; one that is damaged is none: the run that goes on writes it again."""
    path = folder / RESULT
    if not os.path.lexists(path):
        return None
    try:
        return read_json(path)
    except DataError as error:
        _logger.warning("%s; it is made again", error)
        return None


def _is_finished(result: dict[str, Any], training: TrainingConfig) -> bool:
    """Say whether nothing is left to do: all updates are made, or validation has been no better for too long."""
    updates, best = result.get("updates"), result.get("best_update")
    is_short = isinstance(updates, int) and isinstance(best, int) and is_out_of_patience(training, updates, best)
    return updates == training.max_updates or is_short


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _find_revision() -> str | None:
    """Find the git revision of the package's checkout; None for an installed one, or without git."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
