"""A model of another toolkit, in our terms: what readers give, what `load` builds and what `convert` reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoints.model_folder import MAX_UPDATE, ModelCard
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.names import PROJECTION, SHARED, check_names, check_shapes, join, rename
from speechssl.model.speech_model import SpeechModel
from speechssl.parsing import show

OURS = "speechssl"
"""The key, in the JSON of a foreign format, of what that format has no field for."""

SIZES = {
    (12, 768, "group", False): "base",
    (24, 1024, "group", False): "large",
    (24, 1024, "layer", True): "large_lv60k",
    (48, 1280, "layer", True): "xls_r_1b",
    (48, 1920, "layer", True): "xls_r_2b",
}
"""Blocks, width, `conv_norm` and `norm_first` of the presets that published models have."""


@dataclass(frozen=True)
class Foreign:
    """A model of another toolkit (or of ours), in our terms.

    Attributes:
        family: `speechssl`, `huggingface`, `fairseq` or `torchaudio`.
        card: kind, network, vocabulary and update.
        weights: by our names (`SpeechModel.state_dict` without the shared `pretraining.backbone.` copies), float32.
        dropped: what the source had and is left behind, in the source's words.
        notes: what a user should know beside that, such as a weight that the source lacked and was drawn afresh.
        says_padding: whether the source itself says how group norm treats padding, as our own exports do.
    """

    family: str
    card: ModelCard
    weights: dict[str, Tensor]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    says_padding: bool = False


def build_model(foreign: Foreign, key: str = "checkpoint") -> SpeechModel:
    """Build the model that a foreign checkpoint describes, with all of its weights.

    Args:
        foreign: from a reader.
        key: the key that errors name.

    Returns:
        The model on the CPU, in training mode.

    Raises:
        CheckpointError: a weight is missing, left over, or of another shape; none is ever left as initialised.
    """
    card = foreign.card
    with torch.device("meta"):
        model = SpeechModel(card.model, card.vocabulary, pretraining=card.kind == "pretraining")
    expected = {name: value for name, value in model.state_dict().items() if not name.startswith(SHARED)}
    check_names(expected, foreign.weights, key, f"this {foreign.family} checkpoint")
    check_shapes(expected, foreign.weights, key, f"this {foreign.family} checkpoint")
    # Copies: the source may share or map its storage, and two models of one file must not share weights.
    weights = {name: value.detach().clone().contiguous() for name, value in foreign.weights.items()}
    shared = {f"pretraining.{n}": v for n, v in weights.items() if model.pretraining and n.startswith("backbone.")}
    model.load_state_dict({**weights, **shared}, assign=True)
    if model.pretraining is not None:
        # `assign` gave the shared backbone the tensors of whichever name came last; both names are one module.
        assert model.pretraining.backbone is model.backbone, "the backbone is shared"
    return model.requires_grad_(True)


def name_size(config: ModelConfig) -> str:
    """Name the preset of `conf/model` that has this network's shape; a shape of no preset is `blocks x width`."""
    shape = (config.num_layers, config.model_dim, config.conv_norm, config.norm_first)
    return SIZES.get(shape, f"{config.num_layers}x{config.model_dim}")


def read_extra(stored: dict[str, Any], key: str) -> dict[str, Any]:
    """Read what one of our exports says beside the foreign format's own fields.

    Args:
        stored: the JSON file.
        key: the key that errors name.

    Returns:
        `update`, `model` and `vocabulary`; {} for a file that we did not write.

    Raises:
        CheckpointError: it is not of that form.
    """
    ours = stored.get(OURS)
    if not ours:
        return {}
    if not isinstance(ours, dict) or not isinstance(ours.get("model"), dict):
        raise CheckpointError(f"`{key}` must have a network under {OURS!r} in its JSON, but has {show(ours)}")
    update = ours.get("update", 0)
    if type(update) is not int or not 0 <= update <= MAX_UPDATE:
        raise CheckpointError(f"`{key}` must have a count as update under {OURS!r}, but has {show(update)}")
    return {"vocabulary": None, **ours, "update": update}


def make_extra(model: SpeechModel, update: int) -> dict[str, Any]:
    """Make what `read_extra` reads."""
    vocabulary = model.vocabulary.to_dict() if model.vocabulary else None
    return {"update": update, "model": asdict(model.config), "vocabulary": vocabulary}


def drop_identity(source: dict[str, Tensor], family: str, where: str, key: str) -> None:
    """Take away the projection between equal widths, which Hugging Face and torchaudio have, and we and fairseq not.

    Args:
        source: weights under the family's names, without prefixes; changed in place.
        family: `huggingface` or `torchaudio`.
        where: file or folder, for the error.
        key: the key that the error names.

    Raises:
        CheckpointError: it is missing, or does something.
    """
    weight, bias = (source.pop(str(rename(name, family)), None) for name in PROJECTION)
    # The shape first: an identity for a long and narrow tensor would take all memory.
    is_square = weight is not None and weight.dim() == 2 and weight.shape[0] == weight.shape[1]
    if weight is None or bias is None or not is_square or not torch.equal(weight, torch.eye(len(weight))) or bias.any():
        raise CheckpointError(
            f"`{key}` must have the identity as projection where the feature encoder is as wide as the transformer, "
            f"but {where} has not"
        )


def make_identity(dim: int, family: str) -> dict[str, Tensor]:
    """Make the projection between equal widths that `drop_identity` takes away."""
    values = (torch.eye(dim), torch.zeros(dim))
    return {str(rename(name, family)): value for name, value in zip(PROJECTION, values, strict=True)}


def choose_gradient_scale(conv_norm: str) -> float:
    """Choose `feature_gradient_scale` where a source has no word for it: fairseq's, 0.1 with group norm, else 1."""
    return 0.1 if conv_norm == "group" else 1.0


def describe(foreign: Foreign) -> str:
    """Say in one line what was read: family, size, vocabulary, what was dropped."""
    card, config = foreign.card, foreign.card.model
    count = sum(value.numel() for value in foreign.weights.values())
    norm = f"{config.conv_norm} norm, {'pre' if config.norm_first else 'post'}-norm blocks"
    parts = [f"{foreign.family} {card.kind}", f"{config.name} ({count:,} parameters, {norm})"]
    parts += [f"{len(card.vocabulary)} symbols"] if card.vocabulary else []
    parts += [f"waveforms normalised, epsilon {config.waveform_epsilon:g}"] if config.normalize_waveform else []
    parts += [f"left behind: {join(foreign.dropped, 16)}"] if foreign.dropped else []
    return "; ".join([*parts, *foreign.notes])


def collapse(model: SpeechModel) -> dict[str, Tensor]:
    """Name each tensor of a model once: the backbone is shared with the pretraining part."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(SHARED)}


def find_kind(model: SpeechModel) -> str:
    """Say which heads a model has: `ctc`, `pretraining`, or `backbone` for none."""
    return "ctc" if model.head is not None else "pretraining" if model.pretraining is not None else "backbone"


def wrap(model: SpeechModel, family: str = "speechssl", update: int = 0) -> Foreign:
    """See one of our models as what a writer takes."""
    return Foreign(family, ModelCard(find_kind(model), model.config, model.vocabulary, update), collapse(model))


def draw_mask_vector(dim: int) -> Tensor:
    """Draw the mask embedding that a source lacks: (dim,), uniform in [0, 1), the same every time.

    Hugging Face's base-960h and every torchaudio file have none. Only training with masks looks at it.
    """
    return torch.rand(dim, generator=torch.Generator().manual_seed(0))
