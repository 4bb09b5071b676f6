"""Hugging Face's `config.json` of wav2vec 2.0 and its kin, from and to a `ModelConfig`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from speechssl.checkpoints.model_folder import build_config
from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.foreign import choose_gradient_scale, name_size, read_extra
from speechssl.interop.huggingface.family import Family
from speechssl.parsing import show

FIELDS: dict[str, tuple[str, Any]] = {
    "conv_channels": ("conv_dim", [512] * 7),
    "conv_kernels": ("conv_kernel", [10, 3, 3, 3, 3, 2, 2]),
    "conv_strides": ("conv_stride", [5, 2, 2, 2, 2, 2, 2]),
    "conv_bias": ("conv_bias", False),
    "conv_norm": ("feat_extract_norm", "group"),
    "num_layers": ("num_hidden_layers", 12),
    "model_dim": ("hidden_size", 768),
    "ffn_dim": ("intermediate_size", 3072),
    "num_heads": ("num_attention_heads", 12),
    "norm_first": ("do_stable_layer_norm", False),
    "adapter_dim": ("adapter_attn_dim", 0),
    "position_kernel": ("num_conv_pos_embeddings", 128),
    "position_groups": ("num_conv_pos_embedding_groups", 16),
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "input_dropout": ("feat_proj_dropout", 0.0),
    "feature_dropout": ("feat_quantizer_dropout", 0.0),
    "layer_drop_prob": ("layerdrop", 0.1),
    "head_dropout": ("final_dropout", 0.1),
    "target_dim": ("proj_codevector_dim", 256),
    "quantizer.num_groups": ("num_codevector_groups", 2),
    "quantizer.num_codes": ("num_codevectors_per_group", 320),
    "quantizer.codevector_dim": ("codevector_dim", 256),
    "mask.prob": ("mask_time_prob", 0.05),
    "mask.length": ("mask_time_length", 10),
    "mask.min_spans": ("mask_time_min_masks", 2),
    "mask.channel_prob": ("mask_feature_prob", 0.0),
    "mask.channel_length": ("mask_feature_length", 10),
}
"""Each of our keys that Hugging Face has a field for: the field and the default that a file without it means."""

WAV2VEC2 = Family(
    model_type="wav2vec2",
    prefix="wav2vec2.",
    classes={"backbone": "Wav2Vec2Model", "pretraining": "Wav2Vec2ForPreTraining", "ctc": "Wav2Vec2ForCTC"},
    weights="huggingface",
    network={
        "front_end": "convolutions",
        "block": "transformer",
        "positions": "convolutional",
        "final_norm": True,
        "self_conditioning": 0,
    },
    fields=FIELDS,
    fixed={"hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5},
)

ADAPTERS = {"add_adapter": "convolutions after the transformer"}
"""Fields that put further layers into the network, and what they are."""


def read_config(
    stored: dict[str, Any], family: Family, kind: str, where: str, key: str
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Turn the fields of a `config.json` into our configuration.

    Args:
        stored: the file.
        family: of the model.
        kind: `pretraining`, `ctc` or `backbone`. Only for `ctc` the masks are read: elsewhere they mean a later
            fine-tuning (the published base models say 0.05), and ours are those of pretraining.

    Returns:
        The network, without what decides the audio (see `huggingface_processor`), and the fields left behind.

    Raises:
        CheckpointError: an adapter, or a value of the wrong type or outside its range.
    """
    _check_architecture(stored, family, where, key)
    # Their blocks have adapters only where they are pre-norm; null is none.
    width = stored.get("adapter_attn_dim")
    left_out = (f"adapter_attn_dim={show(width)} (post-norm blocks have none)",) if width else ()
    if width and stored.get("do_stable_layer_norm"):
        left_out = ()
    else:
        stored = {**stored, "adapter_attn_dim": 0}
    values = family.read(stored, where, key)
    base, exported = _read_base(stored, family, kind, key)
    if stored.get("apply_spec_augment", True) is False:
        values |= {"mask.prob": 0.0, "mask.channel_prob": 0.0}
    if exported is None:
        left = {name for name in values if name.startswith("mask.") and kind != "ctc"}
    else:
        left = {name for name, value in values.items() if exported[name] == value}
    try:
        kept = {name: value for name, value in values.items() if name not in left}
        config = _replace(base, {**(family.network if exported is None else {}), **kept})
        if exported is None:
            scale = choose_gradient_scale(config.conv_norm)
            size = f"{config.num_layers}x{config.model_dim}"
            name = name_size(config) if family is WAV2VEC2 else f"{family.model_type} {size}"
            config = replace(config, name=name, feature_gradient_scale=scale)
    except ConfigError as error:
        raise CheckpointError(f"`{key}` must be a network that can be built, but in {where} {error}") from error
    return config, (*_list_dropped(stored, kind, exported is None), *family.list_dropped(stored, values), *left_out)


def write_config(
    config: ModelConfig, family: Family, kind: str, vocab_size: int, bos: int | None, eos: int | None
) -> dict[str, Any]:
    """Make the fields of a `config.json`.

    Args:
        family: of which the network is one.
        kind: `pretraining`, `ctc` or `backbone`.
        vocab_size: outputs of the CTC head; Hugging Face's default without one.
        bos: index of `<s>`.
        eos: index of `</s>`.

    Returns:
        Plain values of exactly the types that `transformers` 5 checks. Floats are written as floats, since it
        refuses a folder whose `diversity_loss_weight` is 0.
    """
    task, fields = ContrastiveConfig(), family.write(export_fields(config, family))
    if not config.adapter_dim:
        fields.pop("adapter_attn_dim", None)
    learnt = {
        "num_feat_extract_layers": len(config.conv_channels),
        "contrastive_logits_temperature": float(task.logit_temperature),
        "num_negatives": task.num_negatives,
        "diversity_loss_weight": float(task.diversity_weight),
    }
    masked = kind == "pretraining" or config.mask.prob > 0 or config.mask.channel_prob > 0
    return {
        "model_type": family.model_type,
        "architectures": [family.classes[kind]],
        "dtype": "float32",
        "torch_dtype": "float32",
        **fields,
        **(learnt if config.front_end == "convolutions" else {"feature_projection_input_dim": config.feature_dim}),
        "apply_spec_augment": masked,
        "add_adapter": False,
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "ctc_loss_reduction": "sum",
        "ctc_zero_infinity": True,
    }


def export_fields(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Give the values of a family's fields as they are written, by our keys.

    `mask_time_prob` is never 0, for with 0 `transformers` builds a model without the mask vector that the file has;
    `apply_spec_augment` says that nothing is masked.
    """
    sections = {"": asdict(config), "quantizer": asdict(config.quantizer), "mask": asdict(config.mask)}
    values = {ours: sections[""][ours] for ours in family.choices}
    for ours, (_, default) in family.fields.items():
        section, _, name = ours.rpartition(".")
        value = sections[section][name]
        values[ours] = float(value) if isinstance(default, float) else value
    if values["mask.prob"] == 0.0:
        values["mask.prob"] = 0.05
    return values


def _read_base(
    stored: dict[str, Any], family: Family, kind: str, key: str
) -> tuple[ModelConfig, dict[str, Any] | None]:
    """Read the network that one of our exports holds beside Hugging Face's fields, and those fields as written.

    Where a field has changed since, someone changed it on purpose, and the field counts.
    """
    ours = read_extra(stored, key)
    if not ours:
        return ModelConfig(), None
    base: ModelConfig = build_config(ModelConfig, ours["model"], key)
    exported = export_fields(base, family)
    if not (kind == "pretraining" or base.mask.prob > 0 or base.mask.channel_prob > 0):
        exported |= {"mask.prob": 0.0, "mask.channel_prob": 0.0}
    return base, exported


def _check_architecture(stored: dict[str, Any], family: Family, where: str, key: str) -> None:
    for field, meaning in ADAPTERS.items():
        if stored.get(field):
            raise CheckpointError(
                f"`{key}` must be a model without adapters, but {where} has {meaning} ({field}={show(stored[field])}), "
                "which do not load yet"
            )
    for field, value in family.fixed.items():
        if stored.get(field, value) != value:
            raise CheckpointError(f"`{key}` must have {field}={value} in {where}, but has {show(stored[field])}")
    layers, widths = stored.get("num_feat_extract_layers"), stored.get("conv_dim", FIELDS["conv_channels"][1])
    if layers is not None and isinstance(widths, list) and layers != len(widths):
        raise CheckpointError(
            f"`{key}` must have one conv_dim for each convolution, but num_feat_extract_layers in {where} is "
            f"{show(layers)} and conv_dim has {len(widths)}"
        )


def _replace(config: ModelConfig, values: dict[str, Any]) -> ModelConfig:
    """Replace keys, those of the sections `quantizer` and `mask` too."""
    sections: dict[str, dict[str, Any]] = {"": {}, "quantizer": {}, "mask": {}}
    for name, value in values.items():
        section, _, last = name.rpartition(".")
        sections[section][last] = value
    quantizer = replace(config.quantizer, **sections["quantizer"])
    return replace(config, quantizer=quantizer, mask=replace(config.mask, **sections["mask"]), **sections[""])


def _list_dropped(stored: dict[str, Any], kind: str, is_theirs: bool) -> tuple[str, ...]:
    """List the fields that say something which no key of the network holds."""
    task = ContrastiveConfig()
    ours = {
        "contrastive_logits_temperature": task.logit_temperature,
        "num_negatives": task.num_negatives,
        "diversity_loss_weight": task.diversity_weight,
    }
    dropped = [f"{name}={show(stored[name])}" for name, value in ours.items() if stored.get(name, value) != value]
    has_masks = is_theirs and kind == "pretraining" and "mask_time_prob" in stored
    dropped += [f"mask_time_prob={show(stored['mask_time_prob'])} (meant for fine-tuning)"] if has_masks else []
    return tuple(dropped) if kind == "pretraining" else ()
