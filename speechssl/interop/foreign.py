"""A model of another toolkit, in our terms: what readers give, what `load` builds and what `convert` reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from speechssl.checkpoints.checks import check_labels, check_names, check_shapes, join, restore_vocabulary
from speechssl.checkpoints.model_folder import MAX_UPDATE, TYPES, ModelCard
from speechssl.config.model import FAMILIES, ModelConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.names import list_weights
from speechssl.model.speech_model import SpeechModel
from speechssl.parsing import shorten, show
from speechssl.text.vocabulary import Vocabulary, find_case

OURS = "speechssl"
"""The key, in the JSON of a foreign format, of what that format has no field for."""

DRAWN = "no mask vector in it: one was drawn"

SIZES = {
    (12, 768, "group", False): "base",
    (24, 1024, "group", False): "large",
    (24, 1024, "layer", True): "large_lv60k",
    (48, 1280, "layer", True): "xls_r_1b",
    (48, 1920, "layer", True): "xls_r_2b",
}
"""Blocks, width, `conv_norm` and `norm_first` of the presets that published models have."""

UNREAD = {
    "data2vec_multi": "data2vec 2.0",
    "wav2vec": "wav2vec (the first)",
    "wav2vec_seq2seq": "wav2vec 2.0 with a decoder",
    "sew": "SEW",
    "sew-d": "SEW-D",
    "mctct": "M-CTC-T",
    "whisper": "Whisper",
    "speech-encoder-decoder": "a speech encoder with a text decoder",
}
"""Families that do not load, by Hugging Face's `model_type` and fairseq's `_name` or `arch`."""


@dataclass(frozen=True)
class Foreign:
    """A model of another toolkit (or of ours), in our terms.

    Attributes:
        family: `speechssl`, `huggingface`, `fairseq` or `torchaudio`.
        card: kind, network, vocabulary and update.
        weights: by our names (`SpeechModel.state_dict` without the shared `pretraining.backbone.` copies), float32.
        dropped: what the source had and is left behind, in the source's words.
        notes: what else a user should know, such as a weight that was missing and has been drawn.
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

    Returns:
        The model on the CPU, in training mode.

    Raises:
        CheckpointError: a weight is missing, left over, or of another shape; none is ever left as initialised.
    """
    card = foreign.card
    with torch.device("meta"):
        model = SpeechModel(card.model, card.vocabulary, pretraining=card.kind == "pretraining")
    expected = list_weights(model)
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


def describe(foreign: Foreign) -> str:
    """Say in one line what was read: family, size, vocabulary, what was left behind."""
    card, config = foreign.card, foreign.card.model
    count = sum(value.numel() for value in foreign.weights.values())
    norm = f"{config.conv_norm} norm, {'pre' if config.norm_first else 'post'}-norm blocks"
    if config.block == "conformer":
        front = "Kaldi's bands" if config.front_end == "kaldi_fbank" else f"{config.conv_norm} norm"
        norm = f"{front}, Conformer blocks, positions {config.positions}"
    family = "" if config.family == FAMILIES[0] else f" {config.family}"
    parts = [f"{foreign.family}{family} {card.kind}", f"{config.name} ({count:,} parameters, {norm})"]
    parts += [f"{len(card.vocabulary)} symbols"] if card.vocabulary else []
    parts += [f"waveforms normalised, epsilon {config.waveform_epsilon:g}"] if config.normalize_waveform else []
    parts += [f"left behind: {join(foreign.dropped, 16)}"] if foreign.dropped else []
    return "; ".join([*parts, *foreign.notes])


def find_kind(model: SpeechModel) -> str:
    """Say which heads a model has: `ctc`, `pretraining`, or `backbone` for none."""
    return "ctc" if model.head is not None else "pretraining" if model.pretraining is not None else "backbone"


def wrap(model: SpeechModel, family: str = "speechssl", update: int = 0) -> Foreign:
    """See one of our models as what a writer takes."""
    return Foreign(family, ModelCard(find_kind(model), model.config, model.vocabulary, update), list_weights(model))


def name_size(config: ModelConfig) -> str:
    """Name the preset of `conf/model` that has this network's shape; without one it is `blocks x width`."""
    shape = (config.num_layers, config.model_dim, config.conv_norm, config.norm_first)
    size = f"{config.num_layers}x{config.model_dim}"
    return SIZES.get(shape, size) if config.block == "transformer" else size


def read_extra(stored: dict[str, Any], key: str) -> dict[str, Any]:
    """Read what one of our exports says beside the foreign format's own fields.

    Args:
        stored: the JSON file.

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


def read_field(stored: dict[str, Any], field: str, default: Any, where: str, key: str) -> Any:
    """Read a field of a configuration, of the type of its default, where a whole number will do for a float.

    Raises:
        CheckpointError: it is of another type.
    """
    value = stored.get(field, default)
    must, fits = TYPES[list[int] if isinstance(default, list) else type(default)]
    if not fits(value):
        raise refuse_field(field, must, value, where, key)
    return float(value) if isinstance(default, float) else value


def refuse_field(field: str, must: str, value: object, where: str, key: str) -> CheckpointError:
    """Say what a field of a configuration must be."""
    return CheckpointError(f"`{key}` must have {must} as {field} in {where}, but has {show(value)}")


def read_vocabulary(ours: dict[str, Any], labels: Sequence[str], num_rows: int, where: str, key: str) -> Vocabulary:
    """Read the vocabulary of a head: as our own export has it, else from labels.

    Args:
        ours: from `read_extra`.
        labels: label of each output; the first is the CTC blank.
        num_rows: outputs of the head.

    Raises:
        CheckpointError: they are no labels of words, or not one for each output.
    """
    stored = ours.get("vocabulary")
    vocabulary = restore_vocabulary(stored, where, key) if stored else make_vocabulary(labels, where, key)
    if len(vocabulary) != num_rows:
        raise CheckpointError(
            f"`{key}` must have a label for each of the {num_rows} outputs of its head, but {where} makes "
            f"{len(vocabulary)}"
        )
    return vocabulary


def make_vocabulary(symbols: Sequence[str], where: str, key: str) -> Vocabulary:
    """Make a vocabulary of labels that somebody else wrote; arguments and errors as `read_vocabulary`."""
    check_labels(symbols, where, key)
    try:
        return Vocabulary(tuple(symbols), find_case(symbols))
    except ConfigError as error:
        raise CheckpointError(f"`{key}` must have labels of words, but in {where} {shorten(error)}") from error


def choose_gradient_scale(conv_norm: str) -> float:
    """Choose `feature_gradient_scale` where a source has no word for it: fairseq's, 0.1 with group norm, else 1."""
    return 0.1 if conv_norm == "group" else 1.0


def draw_mask_vector(dim: int) -> Tensor:
    """Draw the mask embedding that a source lacks: (dim,), uniform in [0, 1), the same every time.

    Hugging Face's base-960h and all torchaudio files have none. Only training with masks uses it.
    """
    return torch.rand(dim, generator=torch.Generator().manual_seed(0))


def refuse_family(name: object, where: str, key: str) -> NoReturn:
    """Say that a model is of no family that loads.

    Args:
        name: what its file calls it.
        where: the file.

    Raises:
        CheckpointError: always; it names the family.
    """
    family = UNREAD.get(name) if isinstance(name, str) else None
    problem = f"describes {family}, which does not load yet" if family else f"has the model type {show(name)}"
    raise CheckpointError(f"`{key}` must be of a family that loads ({', '.join(FAMILIES)}), but {where} {problem}")
