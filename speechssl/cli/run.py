"""From a request to its result: compose, hand the typed configuration to the verb, return the dict of its JSON line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from speechssl.cli.words import Request
from speechssl.durable import REFUSALS, writing
from speechssl.errors import CheckpointError, ConfigError
from speechssl.training.lock import hold_folder, remove_unused
from speechssl.verbs.output import check_writable, removing_unused

_logger = logging.getLogger("speechssl")

TRAINING_VERBS = ("pretrain", "finetune")
"""Verbs whose folder belongs to one run, which goes on where it was stopped."""


def run_request(request: Request) -> dict[str, Any]:
    """Compose the configuration of one request, run its verb, and return the dict of its JSON line.

    Whatever a verb writes with, and wherever it writes: a disk that is full, read-only or over a quota is one sentence.
    """
    config = build_config(request)
    place = Path(getattr(config, "out", "") or ".")
    with writing(place, only=REFUSALS):
        return _run(request, config)


def _run(request: Request, config: Any) -> dict[str, Any]:
    # Held before torch is imported, which takes seconds: a second run in the folder is refused at once.
    is_run = request.verb in TRAINING_VERBS and find_rank() == 0
    with removing_unused(), hold_out(config.out) if is_run else nullcontext():
        module = import_module(f"speechssl.verbs.{request.verb}")
        result: dict[str, Any] = module.run(config)
    return result


def find_rank() -> int:
    """Find which of several processes this is, as torchrun says; 0 of one."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def hold_out(out: str) -> Iterator[None]:
    """Make the folder of a run and hold it while inside; a new one in which nothing was written goes again.

    Raises:
        ConfigError: it is a file, cannot be written, or another run is using it.
    """
    folder = Path(out)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ConfigError(f"`out` must be a folder, but {folder} is a file")
    is_new = not os.path.exists(folder)
    check_writable(folder)
    with hold_folder(folder):
        try:
            yield
        finally:
            if is_new:
                remove_unused(folder)


def build_config(request: Request) -> Any:
    """Compose a request's configuration; with `init`, around the network that the checkpoint stores."""
    from speechssl.cli.compose import compose_request, compose_tree

    if request.verb in TRAINING_VERBS:
        tree = compose_tree(request)
        if tree.get("init"):
            stored, left = _read_stored_model(request.verb, str(tree["init"]), tree)
            config = compose_request(request, stored)
            _say_what_is_left(config, left)
            return config
    return compose_request(request)


def _read_stored_model(verb: str, init: str, tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the keys of `model` from a checkpoint, or from the run that began with it where that has gone since.

    Returns:
        The keys that are taken, and those that are left: pretraining from a recogniser takes its network, and not the
        masks, dropouts and frozen convolutions of its fine-tuning, with which little would be learned.

    Raises:
        CheckpointError: it does not load, or has gone and no run began with it.
    """
    from omegaconf import OmegaConf

    from speechssl.config.model import SET_ANEW
    from speechssl.interop.load import read_stored_card
    from speechssl.training.run_folder import read_stored

    try:
        card = read_stored_card(init)
    except CheckpointError:
        has_run = not OmegaConf.is_missing(tree, "out") and not tree["overwrite"]
        stored = read_stored(Path(str(tree["out"]))) if has_run else None
        if stored is None or stored.get("init") != init:
            raise
        return stored["model"], {}
    model = asdict(card.model)
    left = set(SET_ANEW) if verb == "pretrain" and card.kind == "ctc" else set()
    return {key: model[key] for key in model if key not in left}, {key: model[key] for key in model if key in left}


def _say_what_is_left(config: Any, left: Mapping[str, Any]) -> None:
    """Say which values of a recogniser's fine-tuning are not those of this pretraining."""
    stored, used = _flatten(left), _flatten(asdict(config.model))
    others = [f"model.{key}={value}" for key, value in stored.items() if used[key] != value]
    if others:
        _logger.info("init=%s is a recogniser: not taken from its fine-tuning: %s", config.init, ", ".join(others))


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keys of sections their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_section = isinstance(value, dict)
        flat |= {f"{key}.{name}": item for name, item in value.items()} if is_section else {key: value}
    return flat
