"""fairseq's configurations of wav2vec 2.0 and its kin, from and to a `ModelConfig`.

A pretrained model has one: an `argparse.Namespace` (2020) or a nested `cfg` (hydra). A fine-tuned one has two: its own
holds dropouts and masks, `w2v_args` inside it is the whole configuration of the pretrained model, with the network.
WavLM's authors have one mapping without sections. Only the fields below are looked at, for every version of fairseq has
its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from speechssl.config.model import MaskConfig, ModelConfig, QuantizerConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.fairseq.literals import read_conv_layers, read_temperature
from speechssl.interop.foreign import UNREAD, name_size, read_field, refuse_family, refuse_field
from speechssl.parsing import show

CONV_LAYERS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"
"""fairseq's default of `conv_feature_layers`."""

NETWORK: dict[str, tuple[str, Any]] = {
    "conv_bias": ("conv_bias", False),
    "num_layers": ("encoder_layers", 12),
    "model_dim": ("encoder_embed_dim", 768),
    "ffn_dim": ("encoder_ffn_embed_dim", 3072),
    "num_heads": ("encoder_attention_heads", 12),
    "norm_first": ("layer_norm_first", False),
    "position_groups": ("conv_pos_groups", 16),
}
"""Keys of the network that are one field there: the field and the default that a file without it means."""

PRETRAINING: dict[str, tuple[str, Any]] = {
    "feature_gradient_scale": ("feature_grad_mult", 1.0),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "input_dropout": ("dropout_input", 0.0),
    "feature_dropout": ("dropout_features", 0.0),
    "layer_drop_prob": ("encoder_layerdrop", 0.0),
}
"""The same for what is set anew at every training: in a pretrained model's configuration …"""

FINETUNING: dict[str, tuple[str, Any]] = {
    "feature_gradient_scale": ("feature_grad_mult", 0.0),
    "dropout": ("dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.0),
    "activation_dropout": ("activation_dropout", 0.0),
    "input_dropout": ("dropout_input", 0.0),
    "layer_drop_prob": ("layerdrop", 0.0),
    "head_dropout": ("final_dropout", 0.0),
}
"""… and in that of a fine-tuned one."""

MASKS: dict[str, tuple[str, Any]] = {
    "length": ("mask_length", 10),
    "equalise": ("require_same_masks", True),
    "channel_prob": ("mask_channel_prob", 0.0),
    "channel_length": ("mask_channel_length", 10),
}
"""Keys of `model.mask`, `prob` apart, whose default differs between the two trainings."""

REQUIRED: dict[str, Any] = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "pos_enc_type": "abs",
    "attn_type": "",
    "crop_seq_to_multiple": 1,
    "mask_selection": "static",
    "no_mask_overlap": False,
}
"""Fields that have one value here, which is their default there; another one changes what comes out, or is learnt."""

REQUIRED_HEADS: dict[str, Any] = {"quantize_input": False, "target_glu": False, "quantizer_depth": 1}
"""The same for the heads of pretraining."""

TASK: dict[str, Any] = {
    "logit_temp": ContrastiveConfig().logit_temperature,
    "num_negatives": ContrastiveConfig().num_negatives,
    "negatives_from_everywhere": False,
    "cross_sample_negatives": 0,
    "codebook_negatives": 0,
}
"""Fields of the contrastive task, no part of the network: what differs from ours is left behind, and named."""

FAMILIES = {"hubert": "hubert", "hubert_ctc": "hubert", "data2vec_audio": "data2vec-audio", "wavlm": "wavlm"}
"""Families by fairseq's `_name` or `arch`; what is not here is wav2vec 2.0, or does not load."""

_NORMS = {"default": "group", "layer_norm": "layer"}


@dataclass(frozen=True)
class Sections:
    """The parts of fairseq's configurations that matter, as plain values.

    Attributes:
        model: of the network: `w2v_args` of a fine-tuned model.
        training: what its own training set: the fine-tuned model's own, else `model` again.
        task: `normalize`, `labels`.
        criterion: `loss_weights`.
    """

    model: dict[str, Any]
    training: dict[str, Any]
    task: dict[str, Any]
    criterion: dict[str, Any]


def find_sections(stored: dict[str, Any], is_finetuned: bool, where: str, key: str) -> Sections:
    """Find the parts in a file's `cfg`, or in its `args` where it has none.

    Args:
        stored: `cfg` and `args` as plain values.
        is_finetuned: whether the weights are those of a fine-tuned model.

    Raises:
        CheckpointError: there is none, or a fine-tuned model's lacks that of its network.
    """
    whole = stored.get("cfg") or stored.get("args")
    if not isinstance(whole, dict):
        raise CheckpointError(f"`{key}` must hold fairseq's configuration (cfg or args), but {where} has none")
    model, task, criterion = (_get_part(whole, name) for name in ("model", "task", "criterion"))
    inner = model.get("w2v_args")
    if is_finetuned and not isinstance(inner, dict):
        raise CheckpointError(
            f"`{key}` must hold the configuration of its network as w2v_args, but {where} only names the pretrained "
            f"model {show(model.get('w2v_path'))}"
        )
    if not isinstance(inner, dict):
        return Sections(model, model, task, criterion)
    return Sections(_get_part(inner, "model"), model, {**_get_part(inner, "task"), **task}, criterion)


def find_task(stored: dict[str, Any]) -> dict[str, Any]:
    """Find what a file says of the task that it was trained for, such as the folder of its data; {} for nothing."""
    whole = stored.get("cfg") or stored.get("args")
    return _get_part(whole, "task") if isinstance(whole, dict) else {}


def find_family(sections: Sections) -> str:
    """Find which family a network is of; WavLM's configuration does not name it."""
    name = sections.model.get("_name") or sections.model.get("arch")
    if name is None and sections.model.get("relative_position_embedding"):
        return "wavlm"
    return FAMILIES.get(name, "wav2vec2") if isinstance(name, str) else "wav2vec2"


def read_config(sections: Sections, kind: str, where: str, key: str) -> tuple[ModelConfig, tuple[str, ...]]:
    """Turn fairseq's fields into our configuration.

    Args:
        sections: from `find_sections`.
        kind: `pretraining`, `ctc` or `backbone`.

    Returns:
        The network, and the fields left behind.

    Raises:
        CheckpointError: a field is of the wrong type or out of range, or asks for what is not here.
    """
    name = sections.model.get("_name") or sections.model.get("arch")
    if name in UNREAD:
        refuse_family(name, where, key)
    field = _Reader(where, key)
    _check_required(sections, kind, field)
    trained = PRETRAINING if sections.training is sections.model else FINETUNING
    try:
        config = ModelConfig(
            **{ours: field.read(sections.model, *theirs) for ours, theirs in NETWORK.items()},
            **{ours: field.read(sections.training, *theirs) for ours, theirs in trained.items()},
            **_read_convolutions(sections.model, field),
            **_read_positions(sections.model, field),
            family=find_family(sections),
            normalize_waveform=field.read(sections.task, "normalize", False),
            mask=_read_mask(sections, kind, field),
        )
        if kind == "pretraining":
            config = _add_heads(config, sections.model, field)
    except ConfigError as error:
        raise CheckpointError(f"`{key}` must be a network that can be built, but in {where} {error}") from error
    return replace(config, name=name_size(config)), _list_dropped(sections) if kind == "pretraining" else ()


def write_config(config: ModelConfig, kind: str) -> dict[str, Any]:
    """Make a `cfg` of plain values that fairseq builds the network from.

    Args:
        kind: `pretraining` or `ctc`.
    """
    task = {"normalize": config.normalize_waveform, "sample_rate": 16_000, "data": "."}
    pretrained = {
        "common": {},
        "model": _write_network(config),
        "task": {"_name": "audio_pretraining", **task},
        "criterion": {
            "_name": "wav2vec",
            "infonce": True,
            "log_keys": ["prob_perplexity", "temp"],
            "loss_weights": [ContrastiveConfig().diversity_weight, ContrastiveConfig().feature_penalty_weight],
        },
    }
    if kind == "pretraining":
        return pretrained
    mask = config.mask
    finetuned = {
        "_name": "wav2vec_ctc",
        "w2v_path": "",
        "w2v_args": pretrained,
        "normalize": config.normalize_waveform,
        "apply_mask": mask.prob > 0 or mask.channel_prob > 0,
        "mask_prob": mask.prob,
        **{theirs: getattr(mask, ours) for ours, (theirs, _) in MASKS.items()},
        **{theirs: getattr(config, ours) for ours, (theirs, _) in FINETUNING.items()},
    }
    return {
        "common": {},
        "model": finetuned,
        "task": {"_name": "audio_finetuning", "labels": "ltr", **task},
        "criterion": {"_name": "ctc", "zero_infinity": True},
    }


@dataclass(frozen=True)
class _Reader:
    """Reads single fields of one file, and says what is wrong with them; null stands for the default."""

    where: str
    key: str

    def read(self, section: dict[str, Any], name: str, default: Any) -> Any:
        given = {name: section[name]} if section.get(name) is not None else {}
        return read_field(given, name, default, self.where, self.key)

    def refuse(self, name: str, must: str, value: Any) -> CheckpointError:
        return refuse_field(name, must, value, self.where, self.key)


def _get_part(whole: dict[str, Any], name: str) -> dict[str, Any]:
    """Take a section of a nested configuration; a flat one is all of its sections."""
    part = whole.get(name)
    is_nested = any(isinstance(whole.get(section), dict) for section in ("model", "task", "common"))
    return part if isinstance(part, dict) else {} if is_nested else whole


def _check_required(sections: Sections, kind: str, field: _Reader) -> None:
    """Refuse what would change the results: another network, another loss."""
    wanted = {**REQUIRED, **(REQUIRED_HEADS if kind == "pretraining" else {})}
    for name, value in wanted.items():
        if (found := field.read(sections.model, name, value)) != value:
            raise field.refuse(name, repr(value), found)
    if kind == "pretraining" and not field.read(sections.model, "quantize_targets", False):
        raise field.refuse("quantize_targets", "True", False)


def _read_convolutions(model: dict[str, Any], field: _Reader) -> dict[str, Any]:
    text = field.read(model, "conv_feature_layers", CONV_LAYERS)
    try:
        layers = read_conv_layers(text)
    except ValueError as error:
        must = f"lists of (channels, kernel, stride) with + and * ({error})"
        raise field.refuse("conv_feature_layers", must, text) from error
    mode = field.read(model, "extractor_mode", "default")
    if mode not in _NORMS:
        raise field.refuse("extractor_mode", " or ".join(_NORMS), mode)
    return {
        "conv_channels": [layer[0] for layer in layers],
        "conv_kernels": [layer[1] for layer in layers],
        "conv_strides": [layer[2] for layer in layers],
        "conv_norm": _NORMS[mode],
    }


def _read_positions(model: dict[str, Any], field: _Reader) -> dict[str, Any]:
    """Read the positional convolutions and the bias of distances."""
    kernel, depth = field.read(model, "conv_pos", 128), field.read(model, "pos_conv_depth", 1)
    is_batch = field.read(model, "conv_pos_batch_norm", False)
    if depth < 1 or (depth > 1 and is_batch):
        raise field.refuse("pos_conv_depth", "1 with conv_pos_batch_norm, else 1 or more", depth)
    values = {"position_kernel": kernel, "position_norm": "batch" if is_batch else "weight"}
    if depth > 1:
        values = {"position_kernel": max(3, kernel // depth), "position_norm": "layer", "position_depth": depth}
    if field.read(model, "relative_position_embedding", False):
        if not field.read(model, "gru_rel_pos", False):
            raise field.refuse("gru_rel_pos", "True", False)
        values["position_buckets"] = field.read(model, "num_buckets", 320)
        values["position_max_distance"] = field.read(model, "max_distance", 1280)
    return values


def _read_mask(sections: Sections, kind: str, field: _Reader) -> MaskConfig:
    training = sections.training
    values = {ours: field.read(training, *theirs) for ours, theirs in MASKS.items()}
    prob = field.read(training, "mask_prob", 0.65 if training is sections.model else 0.5)
    if kind == "ctc" and not field.read(training, "apply_mask", False):
        prob, values["channel_prob"] = 0.0, 0.0
    return MaskConfig(prob=prob, **values)


def _add_heads(config: ModelConfig, model: dict[str, Any], field: _Reader) -> ModelConfig:
    """Add quantizer and projections; a width of 0 means that of what comes before."""
    target_dim = field.read(model, "final_dim", 0) or config.model_dim
    value = model.get("latent_temp") or [2.0, 0.5, 0.999995]
    try:
        start, end, factor = read_temperature(value)
    except ValueError as error:
        raise field.refuse("latent_temp", f"(start, end, factor) ({error})", value) from error
    quantizer = QuantizerConfig(
        num_groups=field.read(model, "latent_groups", 2),
        num_codes=field.read(model, "latent_vars", 320),
        codevector_dim=field.read(model, "latent_dim", 0) or target_dim,
        temperature_start=start,
        temperature_end=end,
        temperature_decay=factor,
    )
    return replace(config, target_dim=target_dim, quantizer=quantizer)


def _list_dropped(sections: Sections) -> tuple[str, ...]:
    """List what the contrastive task of the file has otherwise than ours."""
    found = {name: sections.model.get(name) for name in TASK}
    dropped = [f"{k}={show(v)}" for k, v in found.items() if v is not None and v != TASK[k]]
    task, weights = ContrastiveConfig(), sections.criterion.get("loss_weights")
    ours = [task.diversity_weight, task.feature_penalty_weight]
    return (*dropped, *((f"loss_weights={show(weights)}",) if weights not in (None, ours) else ()))


def _write_network(config: ModelConfig) -> dict[str, Any]:
    """Make the `model` section of a pretrained model."""
    layers = zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True)
    quantizer, mask = config.quantizer, config.mask
    return {
        "_name": "wav2vec2",
        "extractor_mode": next(theirs for theirs, ours in _NORMS.items() if ours == config.conv_norm),
        "conv_feature_layers": " + ".join(f"[({width}, {kernel}, {stride})]" for width, kernel, stride in layers),
        **{theirs: getattr(config, ours) for ours, (theirs, _) in NETWORK.items()},
        "conv_pos": config.position_kernel,
        **{theirs: getattr(config, ours) for ours, (theirs, _) in PRETRAINING.items()},
        "activation_fn": "gelu",
        "quantize_targets": True,
        "final_dim": config.target_dim,
        "latent_vars": quantizer.num_codes,
        "latent_groups": quantizer.num_groups,
        "latent_dim": quantizer.codevector_dim,
        "latent_temp": [quantizer.temperature_start, quantizer.temperature_end, quantizer.temperature_decay],
        "logit_temp": TASK["logit_temp"],
        "num_negatives": TASK["num_negatives"],
        "mask_prob": mask.prob,
        **{theirs: getattr(mask, ours) for ours, (theirs, _) in MASKS.items()},
    }
