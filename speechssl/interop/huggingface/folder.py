"""Hugging Face folders of every family: the backbone, CTC and wav2vec 2.0's pretraining model, in and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoints.checks import join, read_json, restore_vocabulary
from speechssl.checkpoints.model_folder import ModelCard
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.files import read_tensors, write_json, write_tensors
from speechssl.interop.foreign import DRAWN, OURS, Foreign, draw_mask_vector, find_kind, make_extra, read_extra
from speechssl.interop.huggingface.config import read_config, read_family, write_config
from speechssl.interop.huggingface.conformer import clean_weights, dress_weights
from speechssl.interop.huggingface.families import Family, choose_family
from speechssl.interop.huggingface.languages import take_language
from speechssl.interop.huggingface.processor import (
    export_tokens,
    read_audio,
    read_labels,
    read_num_mels,
    write_processor,
)
from speechssl.interop.names import WRAPPERS, export_weights, respell, take_weights
from speechssl.model.speech_model import SpeechModel

CONFIG, WEIGHTS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
"""What the name of the list of shards ends with, after that of the file that they stand for."""

HEADS = ("quantizer.", "project_q.", "project_hid.", "lm_head.")
"""What stands beside the backbone and so has no prefix such as `wav2vec2.`."""


def read_huggingface(folder: Path, key: str = "checkpoint", language: str = "") -> Foreign:
    """Read a Hugging Face folder.

    Args:
        folder: with config.json, weights (safetensors, whole or in shards, or pytorch_model.bin), a feature extractor
            file of either spelling and, for CTC, vocab.json.
        language: of MMS, whose adapters, head and vocabulary are taken; empty: those of the folder's own weights.

    Returns:
        The model. The mask vector alone may be missing (as in the published base-960h): it is drawn then, and a note
        says so.

    Raises:
        CheckpointError: a file is missing or damaged, another architecture, an adapter, weights missing or left over,
            a positional convolution whose weight norm was fused, or a vocabulary that does not fit the head.
    """
    where = str(folder / CONFIG)
    stored = read_json(folder / CONFIG, key)
    family = read_family(stored, where, key)
    # Before the weights, so that another architecture is called that.
    read_config(stored, family, "backbone", where, key)
    source = read_files(folder, key)
    if any(".base_layer." in name for name in source):
        raise refuse_unmerged(folder, key)
    source, head = _take_head_off(source, stored, family)
    if family.names != "huggingface":
        source, unused = clean_weights(source, str(folder), key)
        head = (*unused, *head)
    source = respell(source, "huggingface", str(folder), key, (*WRAPPERS, family.prefix))
    if language:
        source = take_language(source, folder, language, key)
    kind = _find_kind(source, stored, family)
    config, dropped = read_config(stored, family, kind, where, key)
    ours = read_extra(stored, key)
    config = _set_audio(config, folder, bool(ours), key)
    notes: list[str] = []
    if kind != "pretraining" and "masked_spec_embed" not in source:
        source["masked_spec_embed"] = draw_mask_vector(config.model_dim)
        notes.append(DRAWN)
    weights = take_weights(source, config, kind, family.names, str(folder), key)
    vocabulary = None
    if kind == "ctc":
        labels = read_labels(folder, len(weights["head.linear.bias"]), stored.get("pad_token_id", 0), key, language)
        vocabulary, order = labels.vocabulary, list(labels.order)
        # The vocabulary that was exported, where the file still has its tokens.
        exported = restore_vocabulary(ours["vocabulary"], where, key) if ours.get("vocabulary") else None
        if exported and export_tokens(exported) == vocabulary.symbols:
            vocabulary = exported
        if order != sorted(order):
            # The blank's row of the head comes to the front, where ours is.
            weights |= {name: weights[name][order] for name in ("head.linear.weight", "head.linear.bias")}
            notes.append(f"the blank {labels.vocabulary.symbols[0]!r} moved from output {order[0]} to 0")
    card = ModelCard(kind, config, vocabulary, ours.get("update", 0))
    return Foreign("huggingface", card, weights, (*dropped, *head), tuple(notes), says_padding=bool(ours))


def write_huggingface(model: SpeechModel, folder: Path, update: int = 0) -> None:
    """Write a folder that `transformers` opens in the class of the model's head.

    The weight norm of the positional convolution is written in torch's parametrised spelling. What Hugging Face has no
    field for is in config.json under `speechssl`.

    Args:
        model: a backbone, a pretraining model or a recogniser. Where a family has no place for the heads of
            pretraining, they are left behind.
        folder: made if it is missing.

    Raises:
        CheckpointError: there is no class for its network.
    """
    family, kind = choose_family(model.config), find_kind(model)
    folder.mkdir(parents=True, exist_ok=True)
    weights = export_weights(model, family.names)
    if family.names != "huggingface":
        weights = dress_weights(weights, model.config)
    if kind not in family.architectures:
        kind, weights = "backbone", {name: x for name, x in weights.items() if not name.startswith(HEADS)}
    weights = {
        name if kind == "backbone" or name.startswith(HEADS) else f"{family.prefix}{name}": value
        for name, value in weights.items()
    }
    write_tensors(folder / WEIGHTS, weights)
    tokens = export_tokens(model.vocabulary) if model.vocabulary else ()
    bos, eos = (tokens.index(token) if token in tokens else None for token in ("<s>", "</s>"))
    fields = write_config(model.config, family, kind, len(tokens) or 32, bos, eos)
    write_json(folder / CONFIG, {**fields, OURS: make_extra(model, update)})
    write_processor(folder, model.config, model.vocabulary)


def list_left_behind(model: SpeechModel) -> tuple[str, ...]:
    """List what a model has and the class that it is written as has no place for."""
    has_place = find_kind(model) in choose_family(model.config).architectures
    return () if has_place else ("quantizer, target and context projection",)


def refuse_unmerged(folder: Path, key: str) -> CheckpointError:
    """Say that LoRA of `peft` lies beside the weights, or without them."""
    return CheckpointError(
        f"`{key}` must have what LoRA learned within its weights, but {folder} has it beside them: save what peft's "
        "merge_and_unload() gives"
    )


def _take_head_off(
    source: dict[str, Tensor], stored: dict[str, Any], family: Family
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Leave behind a head that has no counterpart here, such as a classifier: all that is outside of the backbone."""
    others = (name for name in _list_architectures(stored) if name not in family.architectures.values())
    name = next((name for name in others if name.startswith(f"{family.stem}For")), None)
    backbone = {weight: value for weight, value in source.items() if family.prefix in weight}
    if name is None or not backbone:
        return source, ()
    parts = sorted({weight.partition(".")[0] for weight in source.keys() - backbone.keys()})
    return backbone, (f"the head of {join([name])} ({join(parts)})",)


def read_files(folder: Path, key: str) -> dict[str, Tensor]:
    """Read the weights: safetensors rather than torch's files, whole rather than in shards."""
    for name in (WEIGHTS, PICKLE):
        if (folder / name).is_file():
            return read_tensors(folder / name, key)
        if (folder / f"{name}{INDEX}").is_file():
            return _read_shards(folder / f"{name}{INDEX}", key)
    raise CheckpointError(f"`{key}` must have {WEIGHTS} or {PICKLE} (or their shards), but {folder} has neither")


def _read_shards(index: Path, key: str) -> dict[str, Tensor]:
    """Read the files that an index lists, each weight from one of them; they lie beside it, never elsewhere."""
    places = read_json(index, key).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name not in ("", "..") for name in names):
        raise CheckpointError(f"`{key}` must list the files of its weights beside it, but {index} does not")
    source: dict[str, Tensor] = {}
    for name in sorted(set(names)):
        found = read_tensors(index.parent / name, key)
        if twice := sorted(found.keys() & source.keys()):
            raise CheckpointError(
                f"`{key}` must have each weight once, but {index.parent / name} repeats {join(twice)}"
            )
        source |= found
    return source


def _find_kind(source: dict[str, Tensor], stored: dict[str, Any], family: Family) -> str:
    """Find which heads there are: by the weights, or by `architectures` where no weight of a head is there."""
    if "lm_head.weight" in source:
        return "ctc"
    if family.has_pretraining and "quantizer.codevectors" in source:
        return "pretraining"
    declared = _list_architectures(stored)
    return next((kind for kind, name in family.architectures.items() if name in declared), "backbone")


def _list_architectures(stored: dict[str, Any]) -> list[str]:
    declared = stored.get("architectures")
    return [name for name in declared if isinstance(name, str)] if isinstance(declared, list) else []


def _set_audio(config: ModelConfig, folder: Path, is_ours: bool, key: str) -> ModelConfig:
    """Set how waveforms are prepared; one of our exports keeps its epsilon, for which Hugging Face has no field."""
    if config.front_end == "kaldi_fbank":
        try:
            return replace(config, num_mels=read_num_mels(folder, key))
        except ConfigError as error:
            raise CheckpointError(f"`{key}` must be a network that can be built, but in {folder} {error}") from error
    normalize, epsilon = read_audio(folder, key)
    keeps = is_ours and config.normalize_waveform == normalize
    return replace(config, normalize_waveform=normalize, waveform_epsilon=config.waveform_epsilon if keeps else epsilon)
