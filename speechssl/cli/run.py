"""From a request to its result: compose, hand the typed configuration to the verb, return the dict of its JSON line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from speechssl.cli.words import Request
from speechssl.durable import REFUSALS, writing
from speechssl.verbs.output import removing_unused

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
    with removing_unused():
        module = import_module(f"speechssl.verbs.{request.verb}")
        run = getattr(module, request.verb) if request.verb in TRAINING_VERBS else module.run
        result: dict[str, Any] = run(config)
    return result


def build_config(request: Request) -> Any:
    """Compose a request's configuration; with `init`, around the network that the checkpoint stores."""
    from omegaconf import OmegaConf

    from speechssl.cli.compose import compose_request, compose_tree
    from speechssl.training.network import read_network, tell_left

    if request.verb in TRAINING_VERBS:
        tree = compose_tree(request)
        if tree.get("init"):
            out = "" if OmegaConf.is_missing(tree, "out") else str(tree["out"])
            stored, left = read_network(str(tree["init"]), out, bool(tree["overwrite"]), request.verb == "pretrain")
            config = compose_request(request, stored)
            tell_left(config.init, config.model, left)
            return config
    return compose_request(request)
