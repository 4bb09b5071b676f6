"""Hugging Face's `config.json` of a family, from and to a `ModelConfig`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from speechssl.checkpoints.model_folder import build_config
from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.foreign import (
    choose_gradient_scale,
    name_size,
    read_extra,
    read_field,
    refuse_family,
    refuse_field,
)
from speechssl.interop.huggingface.families import PLAIN, Family, Field, find_family
from speechssl.parsing import show

ADAPTERS = {"add_adapter": "convolutions after the blocks", "adapter_attn_dim": "adapters of a language, as MMS"}
"""Fields that put further layers into the network, and what they are."""


def read_family(stored: dict[str, Any], where: str, key: str) -> Family:
    """Find the family of a `config.json`.

    Raises:
        CheckpointError: there is no row for it.
    """
    family = find_family(stored.get("model_type"))
    if family is None:
        refuse_family(stored.get("model_type"), where, key)
    return family


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
    unsaid = [f"adapter_attn_dim={show(width)} (post-norm blocks have none)"] if width else []
    if width and stored.get("do_stable_layer_norm"):
        unsaid = []
    else:
        stored = {**stored, "adapter_attn_dim": 0}
    if not stored.get("add_adapter"):
        unused = {field for ours, (field, *_) in family.fields.items() if ours.startswith("length_adapter_")}
        stored = {name: value for name, value in stored.items() if name not in unused} | {"num_adapter_layers": 0}
    values = {ours: _read_field(stored, field, where, key) for ours, field in family.fields.items()}
    base, exported = _read_base(stored, family, kind, key)
    if stored.get("apply_spec_augment", True) is False:
        values |= {"mask.prob": 0.0, "mask.channel_prob": 0.0}
    if exported is None:
        left = {name for name in values if name.startswith("mask.") and kind != "ctc"}
    else:
        left = {name for name, value in values.items() if exported[name] == value}
    values |= {"family": family.model_type, **family.values} if exported is None else {}
    try:
        config = _replace(base, {name: value for name, value in values.items() if name not in left})
        if exported is None:
            scale = choose_gradient_scale(config.conv_norm)
            config = replace(config, name=name_size(config), feature_gradient_scale=scale)
    except ConfigError as error:
        raise CheckpointError(f"`{key}` must be a network that can be built, but in {where} {error}") from error
    shared = {theirs: values[ours] for theirs, ours in family.shared.items()}
    unsaid += [f"{name}={show(stored[name])}" for name, value in shared.items() if stored.get(name, value) != value]
    return config, (*_list_dropped(stored, kind, exported is None), *unsaid)


def write_config(
    config: ModelConfig, family: Family, kind: str, vocab_size: int, bos: int | None, eos: int | None
) -> dict[str, Any]:
    """Make the fields of a `config.json`.

    Args:
        config: the network.
        family: that it is written as.
        kind: `pretraining`, `ctc` or `backbone`.
        vocab_size: outputs of the CTC head; Hugging Face's default without one.
        bos: index of `<s>`.
        eos: index of `</s>`.

    Returns:
        Plain values of exactly the types that `transformers` 5 checks. Floats are written as floats, since it
        refuses a folder whose `diversity_loss_weight` is 0.
    """
    task, plain = ContrastiveConfig(), export_fields(config, family)
    kinds = (("adapter_", config.adapter_dim), ("length_adapter_", config.length_adapter_layers))
    unused = tuple(start for start, size in kinds if not size)
    used = {ours: field for ours, field in family.fields.items() if not ours.startswith(unused)}
    fields = {field[0]: _to_theirs(plain[ours], field) for ours, field in used.items()}
    pretraining = {
        "contrastive_logits_temperature": float(task.logit_temperature),
        "num_negatives": task.num_negatives,
        "diversity_loss_weight": float(task.diversity_weight),
    }
    front = {"feature_projection_input_dim": config.feature_dim}
    if config.front_end == "convolutions":
        front = {"num_feat_extract_layers": len(config.conv_channels)}
    ids = {"bos_token_id": bos, "eos_token_id": eos}
    masked = kind == "pretraining" or config.mask.prob > 0 or config.mask.channel_prob > 0
    return {
        "model_type": family.model_type,
        "architectures": [family.architectures[kind]],
        "dtype": "float32",
        "torch_dtype": "float32",
        **fields,
        **{theirs: getattr(config, ours) for theirs, ours in family.shared.items()},
        **family.said,
        **front,
        "apply_spec_augment": masked,
        **(pretraining if family.has_pretraining else {}),
        "add_adapter": config.length_adapter_layers > 0,
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        **{name: index for name, index in ids.items() if index is not None or family.has_null_ids},
        "ctc_loss_reduction": "sum",
        "ctc_zero_infinity": True,
    }


def export_fields(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Give the values of a family's fields as they are written, by our keys.

    `mask_time_prob` is never 0, for with 0 `transformers` builds a model without the mask vector that the file has;
    `apply_spec_augment` says that nothing is masked.
    """
    sections = {"": asdict(config), "quantizer": asdict(config.quantizer), "mask": asdict(config.mask)}
    values = {}
    for ours, (_, default, *_) in family.fields.items():
        section, _, name = ours.rpartition(".")
        value = sections[section][name]
        values[ours] = float(value) if isinstance(default, float) else value
    if values["mask.prob"] == 0.0:
        values["mask.prob"] = 0.05
    return values


def _read_field(stored: dict[str, Any], field: Field, where: str, key: str) -> Any:
    name, default, *words = field
    if not words:
        return read_field(stored, name, default, where, key)
    value = stored.get(name, default)
    for theirs, ours in words[0].items():
        # To Python 1 is True.
        if type(value) is type(theirs) and value == theirs:
            return ours
    raise refuse_field(name, f"one of {', '.join(map(str, words[0]))}", value, where, key)


def _to_theirs(value: Any, field: Field) -> Any:
    _, _, *words = field
    return next(theirs for theirs, ours in words[0].items() if ours == value) if words else value


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
    known = {field for field, *_ in family.fields.values()}
    known |= {"add_adapter"} if "length_adapter_layers" in family.fields else set()
    for field, meaning in ADAPTERS.items():
        if stored.get(field) and field not in known:
            raise CheckpointError(
                f"`{key}` must be a model without adapters, but {where} has {meaning} ({field}={show(stored[field])}), "
                "which do not load yet"
            )
    said = dict(family.said)
    if stored.get("add_adapter"):
        said |= {"adapter_act": "relu", "output_hidden_size": stored.get("hidden_size", family.fields["model_dim"][1])}
    for field, value in said.items():
        if stored.get(field, value) != value:
            raise CheckpointError(f"`{key}` must have {field}={value} in {where}, but has {show(stored[field])}")
    layers, widths = stored.get("num_feat_extract_layers"), stored.get("conv_dim", PLAIN["conv_channels"][1])
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
