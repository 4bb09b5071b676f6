"""The network of a training that begins with a checkpoint: that of the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from speechssl.config.model import SET_ANEW, ModelConfig
from speechssl.config.verbs import FinetuneConfig, PretrainConfig
from speechssl.errors import CheckpointError
from speechssl.training.run_folder import flatten, read_stored

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)

_logger = logging.getLogger("speechssl")


def adopt_network(config: Config) -> Config:
    """Give a configuration that names a checkpoint and no network the network of the checkpoint.

    Raises:
        CheckpointError: as `read_network`, or its network cannot be built.
    """
    from speechssl.checkpoints.model_folder import build_config

    if not config.init or config.model.is_chosen:
        return config
    is_pretraining = isinstance(config, PretrainConfig)
    stored, left = read_network(config.init, config.out, config.overwrite, is_pretraining)
    config = replace(config, model=build_config(ModelConfig, stored, "init"))
    tell_left(config.init, config.model, left)
    return config


def read_network(init: str, out: str, overwrite: bool, is_pretraining: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the keys of `model` from a checkpoint, or from the run that began with it where that has gone since.

    Args:
        init, out, overwrite: the keys of these names; `out` may be empty.
        is_pretraining: whether a pretraining begins.

    Returns:
        The keys that are taken, and those that are left: pretraining from a recogniser takes its network, and not the
        masks, dropouts and frozen convolutions of its fine-tuning, with which little would be learned.

    Raises:
        CheckpointError: it does not load, or has gone and no run began with it.
    """
    from speechssl.interop.load import read_stored_card

    try:
        card = read_stored_card(init)
    except CheckpointError:
        stored = read_stored(Path(out)) if out and not overwrite else None
        if stored is None or stored.get("init") != init:
            raise
        return stored["model"], {}
    model = asdict(card.model)
    left = set(SET_ANEW) if is_pretraining and card.kind == "ctc" else set()
    return {key: model[key] for key in model if key not in left}, {key: model[key] for key in model if key in left}


def tell_left(init: str, model: ModelConfig, left: Mapping[str, Any]) -> None:
    """Say which values of a recogniser's fine-tuning are not those of this pretraining."""
    used = flatten(asdict(model))
    others = [f"model.{key}={value}" for key, value in flatten(dict(left)).items() if used[key] != value]
    if others:
        _logger.info("init=%s is a recogniser: not taken from its fine-tuning: %s", init, ", ".join(others))
