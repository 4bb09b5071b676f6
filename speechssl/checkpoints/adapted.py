"""Checkpoints of adapted networks: they hold what has learned, and know by path and checksum where the rest is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from speechssl.config.adaptation import Adaptation
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.model.speech_model import SpeechModel


def digest_frozen(model: SpeechModel) -> str:
    """Compute the SHA-256 of the weights that an adapted network does not save: names, shapes and values."""
    adaptation = model.adaptation
    assert adaptation is not None, "the network is adapted"
    return digest_weights({name: x for name, x in model.state_dict().items() if not adaptation.learns(name)})


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of weights: names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().numpy().data)
    return digest.hexdigest()


def check_frozen(model: SpeechModel, stored: Adaptation | None, folder: Path, key: str) -> None:
    """Compare the frozen weights of an adapted network with those that a checkpoint was made beside.

    Raises:
        CheckpointError: they are others, or the checkpoint was not made beside any.
    """
    assert model.adaptation is not None, "the network is adapted"
    if stored is None or stored.digest != model.adaptation.digest:
        of = "holds a whole network" if stored is None else f"was adapted from {stored.init} when that had others"
        raise CheckpointError(f"`{key}` must be beside the weights that it was adapted from, but {folder} {of}")


def keep_learned(weights: dict[str, Tensor], model: SpeechModel) -> dict[str, Tensor]:
    """Take of the weights of a network those that its checkpoint holds: of an adapted one what learns, else all."""
    adaptation = model.adaptation
    return weights if adaptation is None else {name: x for name, x in weights.items() if adaptation.learns(name)}


def count_learned(config: ModelConfig, adaptation: Adaptation) -> int:
    """Count the large weights that an adapted network learns, without its head."""
    width = 2 * config.model_dim * config.num_layers
    if adaptation.adapt == "adapters":
        return width * config.adapter_dim
    return width * adaptation.lora.rank * len(adaptation.lora.projections)
