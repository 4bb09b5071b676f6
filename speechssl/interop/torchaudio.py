"""torchaudio's `wav2vec2_model`: state dicts in and out, with the facts that they lack beside them, and its bundles.

A state dict does not say how many heads there are, where the layer norms stand, or how the waveform is prepared. A JSON
file of the same name beside it does; ours holds the arguments of `torchaudio.models.wav2vec2_model` as well, so that

    model = torchaudio.models.wav2vec2_model(**json.load(open("model.json"))["torchaudio"])
    model.load_state_dict(torch.load("model.pt"))

builds the network there; WavLM is built by `torchaudio.models.wavlm_model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoints.checks import read_json
from speechssl.checkpoints.model_folder import ModelCard, build_config
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.files import detach, read_tensors, write_json, write_tensors
from speechssl.interop.foreign import (
    DRAWN,
    OURS,
    Foreign,
    choose_gradient_scale,
    draw_mask_vector,
    find_kind,
    make_extra,
    name_size,
    read_extra,
    read_vocabulary,
)
from speechssl.interop.names import MASK, POSITIONS, export_weights, respell, take_weights
from speechssl.model.speech_model import SpeechModel
from speechssl.parsing import parsing

PREFIX = "torchaudio:"
"""What a `checkpoint=` value begins with that names one of torchaudio's bundles."""

STRIDES: dict[tuple[int, ...], list[int]] = {(10, 3, 3, 3, 3, 2, 2): [5, 2, 2, 2, 2, 2, 2]}
"""Strides of the published kernels; a state dict holds none."""

NEEDED = ("encoder_num_heads", "encoder_layer_norm_first")
"""Arguments of `wav2vec2_model` that no shape says."""

TYPES = {"Wav2Vec2": "wav2vec2", "WavLM": "wavlm"}
"""The families of the networks that a bundle can be of; HuBERT's is wav2vec 2.0's there."""

_PRODUCTS, _PACKED = ("q_proj", "k_proj", "v_proj"), ".attention.attention."
"""WavLM's three projections, which are one weight there, in a module of its own."""

_BUCKETS = "encoder.transformer.layers.0.attention.rel_attn_embed.weight"

_MODES = {"group": "group_norm", "layer": "layer_norm"}


def is_torchaudio(names: set[str]) -> bool:
    """Say whether the names of a file are those of torchaudio's model."""
    return any("encoder.transformer." in name for name in names)


def read_torchaudio(path: Path, key: str = "checkpoint") -> Foreign:
    """Read a state dict of torchaudio's `wav2vec2_model`, and the JSON file beside it.

    Args:
        path: of the state dict, `.pt` or safetensors.

    Returns:
        The model; its mask vector is drawn, since torchaudio has none.

    Raises:
        CheckpointError: the file is damaged, weights are missing or left over, or the JSON file does not say what the
            weights do not.
    """
    weights = read_tensors(path, key)
    facts_path = path.with_suffix(".json")
    if not facts_path.is_file():
        raise CheckpointError(
            f"`{key}` must have {facts_path.name} beside {path}, which says "
            f'{{"torchaudio": {{"{NEEDED[0]}": …, "{NEEDED[1]}": …}}, "normalize_waveform": …}} (and "labels" for '
            "a recogniser), since a state dict does not, but there is none"
        )
    return build_foreign(weights, read_json(facts_path, key), str(path), key)


def read_bundle(name: str, key: str = "checkpoint") -> Foreign:
    """Read one of torchaudio's bundles, fetched by torchaudio into torch's own cache.

    Args:
        name: such as `WAV2VEC2_ASR_BASE_960H`.

    Raises:
        CheckpointError: there is no such bundle, its network or its labels do not load (nothing is fetched then), or
            it cannot be fetched.
    """
    from torchaudio import pipelines

    kinds = (pipelines.Wav2Vec2Bundle, pipelines.Wav2Vec2ASRBundle)
    bundles = {key: value for key, value in vars(pipelines).items() if isinstance(value, kinds)}
    bundle = bundles.get(name)
    if bundle is None:
        listed = ", ".join(sorted(bundles))
        raise CheckpointError(f"`{key}` must be {PREFIX} and one of {listed}, but is {PREFIX}{name}")
    where, family = f"{PREFIX}{name}", TYPES.get(bundle._model_type)
    if family is None:
        raise CheckpointError(f"`{key}` must be {' or '.join(TYPES)}, but {where} is {bundle._model_type}")
    facts: dict[str, Any] = {"torchaudio": bundle._params, "normalize_waveform": bundle._normalize_waveform}
    facts["family"] = "hubert" if name.startswith("HUBERT") else family
    if isinstance(bundle, pipelines.Wav2Vec2ASRBundle):
        facts["labels"] = list(bundle.get_labels())
        read_vocabulary({}, facts["labels"], bundle._params["aux_num_out"], where, key)
    with parsing(f"`{key}`", "a bundle that can be fetched", CheckpointError, where):
        # By default torch unpickles whatever lies in its cache, and with that runs it.
        weights = bundle.get_model(dl_kwargs={"weights_only": True}).state_dict()
    return build_foreign(weights, facts, where, key)


def build_foreign(source: dict[str, Tensor], facts: dict[str, Any], where: str, key: str) -> Foreign:
    """Bring a state dict and the facts beside it into our terms.

    Args:
        source: state dict, with torchaudio's names.
        facts: `torchaudio` (arguments of `wav2vec2_model` or `wavlm_model`), `normalize_waveform`, `waveform_epsilon`,
            `labels`, `family` (`hubert` where it is that); or `speechssl`, which one of our exports has and which says
            everything.

    Raises:
        CheckpointError: a fact is missing or contradicts the weights, or weights are missing or left over.
    """
    weights = {name: value.float() for name, value in respell(source, "torchaudio", where, key).items()}
    weights = _split_products(weights)
    kind = "ctc" if "aux.weight" in weights else "backbone"
    ours = read_extra(facts, key)
    config = build_config(ModelConfig, ours["model"], key) if ours else _derive(weights, facts, where, key)
    weights = take_weights(weights, config, kind, "torchaudio", where, key)
    weights[MASK] = draw_mask_vector(config.model_dim)
    vocabulary = None
    if kind == "ctc":
        labels = facts.get("labels")
        if not ours.get("vocabulary") and not (isinstance(labels, list) and all(isinstance(x, str) for x in labels)):
            raise CheckpointError(f"`{key}` must say the labels of its head beside {where}, but does not")
        vocabulary = read_vocabulary(ours, labels or (), len(weights["head.linear.bias"]), where, key)
    card = ModelCard(kind, config, vocabulary, ours.get("update", 0))
    return Foreign("torchaudio", card, weights, notes=(DRAWN,), says_padding=bool(ours))


def write_torchaudio(model: SpeechModel, path: Path, update: int = 0) -> None:
    """Write a state dict that torchaudio's model loads strictly, and the JSON file with the facts beside it.

    Args:
        model: a backbone, a pretraining model or a recogniser. The mask vector and the pretraining heads have no
            place there and are left behind.
        path: of the state dict: safetensors where it ends so, else a torch file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    config = model.config
    weights = export_weights(model, "torchaudio")
    if config.position_buckets:
        weights = _join_products(weights)
    if path.suffix == ".safetensors":
        write_tensors(path, weights)
    else:
        torch.save(detach(weights), path)
    facts = {
        "torchaudio": make_arguments(config, len(model.vocabulary) if model.vocabulary else None),
        "normalize_waveform": config.normalize_waveform,
        "waveform_epsilon": config.waveform_epsilon,
        "labels": list(model.vocabulary.symbols) if model.vocabulary else None,
        OURS: make_extra(model, update),
    }
    write_json(path.with_suffix(".json"), facts)


def list_left_behind(model: SpeechModel) -> tuple[str, ...]:
    """List what a model has and torchaudio's has no place for."""
    heads = ("quantizer, target and context projection",) if find_kind(model) == "pretraining" else ()
    return ("mask vector", *heads)


def make_arguments(config: ModelConfig, num_labels: int | None) -> dict[str, Any]:
    """Make the arguments of `torchaudio.models.wav2vec2_model`; of `wavlm_model` with a bias of distances."""
    buckets, distance = config.position_buckets, config.position_max_distance
    convolutions = zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True)
    return {
        "extractor_mode": _MODES[config.conv_norm],
        "extractor_conv_layer_config": [list(layer) for layer in convolutions],
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.model_dim,
        "encoder_projection_dropout": config.input_dropout,
        "encoder_pos_conv_kernel": config.position_kernel,
        "encoder_pos_conv_groups": config.position_groups,
        "encoder_num_layers": config.num_layers,
        "encoder_num_heads": config.num_heads,
        **({"encoder_num_buckets": buckets, "encoder_max_distance": distance} if buckets else {}),
        "encoder_attention_dropout": config.attention_dropout,
        "encoder_ff_interm_features": config.ffn_dim,
        "encoder_ff_interm_dropout": config.activation_dropout,
        "encoder_dropout": config.dropout,
        "encoder_layer_norm_first": config.norm_first,
        "encoder_layer_drop": config.layer_drop_prob,
        "aux_num_out": num_labels,
    }


def _derive(source: dict[str, Tensor], facts: dict[str, Any], where: str, key: str) -> ModelConfig:
    """Read the network off the shapes of its weights, and what they do not say off the facts."""
    given = facts.get("torchaudio")
    given = given if isinstance(given, dict) else {}
    needed = (*NEEDED, "encoder_max_distance") if _BUCKETS in source else NEEDED
    missing = [name for name in needed if name not in given]
    missing += ["normalize_waveform"] if not isinstance(facts.get("normalize_waveform"), bool) else []
    if missing:
        raise CheckpointError(f"`{key}` must say {' and '.join(missing)} beside {where}, but does not")
    with parsing(f"`{key}`", "torchaudio's wav2vec 2.0 model", CheckpointError, where):
        values = _list_values(source, given)
    family = facts.get("family") or ("wavlm" if _BUCKETS in source else "wav2vec2")
    said = {
        "family": family,
        "normalize_waveform": facts["normalize_waveform"],
        "waveform_epsilon": facts.get("waveform_epsilon", 1e-5),
    }
    config: ModelConfig = build_config(ModelConfig, {**values, **said}, key)
    config.name = name_size(config)
    return config


def _list_values(source: dict[str, Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """List the values of a network; raises whatever weights without those names and dimensions do."""
    count = len({name.split(".")[2] for name in source if name.startswith("feature_extractor.conv_layers.")})
    convs = [source[f"feature_extractor.conv_layers.{index}.conv.weight"] for index in range(count)]
    kernels = [conv.shape[2] for conv in convs]
    strides = [layer[2] for layer in given.get("extractor_conv_layer_config", [])] or STRIDES.get(tuple(kernels), [1])
    position = source[f"{POSITIONS['torchaudio']}parametrizations.weight.original1"]
    blocks = {name.split(".")[3] for name in source if name.startswith("encoder.transformer.layers.")}
    buckets = {}
    if _BUCKETS in source:
        buckets = {"position_buckets": len(source[_BUCKETS]), "position_max_distance": given["encoder_max_distance"]}
    conv_norm = "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in source else "group"
    return {
        **buckets,
        "conv_channels": [conv.shape[0] for conv in convs],
        "conv_kernels": kernels,
        "conv_strides": strides,
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in source,
        "conv_norm": conv_norm,
        "feature_gradient_scale": choose_gradient_scale(conv_norm),
        "num_layers": len(blocks),
        "model_dim": position.shape[0],
        "ffn_dim": source["encoder.transformer.layers.0.feed_forward.intermediate_dense.bias"].shape[0],
        "num_heads": given["encoder_num_heads"],
        "norm_first": given["encoder_layer_norm_first"],
        "position_kernel": position.shape[2],
        "position_groups": position.shape[0] // position.shape[1],
        "dropout": given.get("encoder_dropout", 0.1),
        "attention_dropout": given.get("encoder_attention_dropout", 0.1),
        "activation_dropout": given.get("encoder_ff_interm_dropout", 0.0),
        "input_dropout": given.get("encoder_projection_dropout", 0.1),
        "layer_drop_prob": given.get("encoder_layer_drop", 0.05),
    }


def _split_products(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give WavLM's projections names of their own; other state dicts stay as they are."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        start, packed, last = name.partition(_PACKED)
        if packed and last.startswith("in_proj_"):
            kind = last.removeprefix("in_proj_")
            parts = zip(_PRODUCTS, value.chunk(len(_PRODUCTS)), strict=False)
            found |= {f"{start}.attention.{product}.{kind}": part for product, part in parts}
        else:
            found[f"{start}.attention.{last}" if packed else name] = value
    return found


def _join_products(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `_split_products`."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        start, attention, last = name.partition(".attention.")
        product, _, kind = last.partition(".")
        if not attention or product not in (*_PRODUCTS, "out_proj"):
            found[name] = value
        elif product == _PRODUCTS[0]:
            found[f"{start}{_PACKED}in_proj_{kind}"] = torch.cat(
                [weights[f"{start}.attention.{product}.{kind}"] for product in _PRODUCTS]
            )
        elif product == "out_proj":
            found[f"{start}{_PACKED}{last}"] = value
    return found
