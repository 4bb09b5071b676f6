"""A model in evaluation mode for one caller, whatever mode others that share it are in."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def as_evaluating(model: M) -> M:
    """Give a module in evaluation mode, and leave the given one as it is.

    Where it is in training mode, the one that is given back has modules of its own, with the same weights, buffers and
    hooks: switching the mode of a module that another thread is running would change what that thread computes.

    Args:
        model: any module; itself where all of it is in evaluation mode already.
    """
    return _share(model, {}) if any(module.training for module in model.modules()) else model


def _share(module: M, done: dict[nn.Module, nn.Module]) -> M:
    """Copy a module and those in it, each once, but nothing that they hold."""
    if module not in done:
        # Not copy.copy, which parametrised modules (weight norm) refuse.
        twin = object.__new__(type(module))
        done[module] = twin
        twin.__dict__.update(module.__dict__)
        children = {name: None if child is None else _share(child, done) for name, child in module._modules.items()}
        twin.__dict__.update(_modules=children, training=False)
    found = done[module]
    assert isinstance(found, type(module))
    return found
