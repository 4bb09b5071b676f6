"""From a request to its result: compose, hand the typed configuration to the verb, return the dict of its JSON line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from speechssl.cli.words import Request


def run_request(request: Request) -> dict[str, Any]:
    """Compose the configuration of one request, run its verb, and return the dict of its JSON line."""
    config = build_config(request)
    module = import_module(f"speechssl.cli.{request.verb}")
    result: dict[str, Any] = module.run(config)
    return result


def build_config(request: Request) -> Any:
    """Compose a request's configuration; with `init`, around the network that the checkpoint stores."""
    from speechssl.cli.compose import compose_request, compose_tree

    if request.verb in ("pretrain", "finetune"):
        init = compose_tree(request).get("init")
        if init:
            return compose_request(request, _read_stored_model(str(init)))
    return compose_request(request)


def _read_stored_model(init: str) -> dict[str, Any]:
    """Read the keys of `model` from a checkpoint."""
    from speechssl.interop.load import read_stored_model

    return read_stored_model(init)
