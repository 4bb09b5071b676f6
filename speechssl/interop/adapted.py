"""Checkpoints that hold what was learned beside the weights of another: built around these again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from speechssl.checkpoints.adapted import digest_frozen
from speechssl.checkpoints.model_folder import CONFIG, ModelCard, find_checkpoint, load_backbone_into
from speechssl.config.adaptation import Adaptation
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.huggingface.hub import is_hub_id
from speechssl.interop.torchaudio import PREFIX
from speechssl.model.speech_model import SpeechModel


def locate(checkpoint: str, key: str = "init") -> str:
    """Name the place of a checkpoint so that it is found from everywhere, and again when its run has gone on.

    Returns:
        The whole path, of a run folder that of its best checkpoint; a Hub id or a bundle as it is.
    """
    path = Path(checkpoint)
    if checkpoint.startswith(PREFIX) or is_hub_id(checkpoint):
        return checkpoint
    is_one = path.is_file() or (path / CONFIG).is_file()
    return str((path if is_one else find_checkpoint(checkpoint, key)).resolve())


def start_adapting(model: SpeechModel, adaptation: Adaptation) -> None:
    """Freeze what `model` has of another checkpoint, add the small weights, and take note of what is frozen."""
    model.adapt(adaptation)
    model.adaptation = replace(adaptation, digest=digest_frozen(model))


def build_adapted(card: ModelCard, folder: Path, key: str, load: Callable[[Adaptation], SpeechModel]) -> SpeechModel:
    """Build the network of a checkpoint around what it was adapted from; its own weights are not loaded yet.

    Args:
        card: of the checkpoint, with its adaptation.
        folder: of the checkpoint.
        load: loads what that names.

    Raises:
        CheckpointError: that has gone or does not load, or is a smaller network.
    """
    adaptation = card.adaptation
    assert adaptation is not None, "the checkpoint is of an adapted network"
    must = f"`{key}` must be beside the weights that it was adapted from, but those of {folder} ({adaptation.init})"
    try:
        base = load(adaptation)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{must} do not load: {error}") from error
    # Before memory is taken for it: a few bytes of a stranger's card may describe any network.
    if replace(card.model, adapter_dim=0).num_large_weights > base.config.num_large_weights:
        raise CheckpointError(f"{must} are of a smaller network")
    model = SpeechModel(card.model, card.vocabulary)
    load_backbone_into(model, base)
    start_adapting(model, adaptation)
    return model
