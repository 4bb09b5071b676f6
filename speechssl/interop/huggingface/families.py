"""The families of networks that Hugging Face has: what each calls its classes and fields, one row a family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError

Field = tuple[str, Any] | tuple[str, Any, dict[Any, Any]]
"""A field of theirs, the default that a file without it means, and our values by theirs where the two differ."""

QUANTIZER: dict[str, Field] = {
    "feature_dropout": ("feat_quantizer_dropout", 0.0),
    "target_dim": ("proj_codevector_dim", 256),
    "quantizer.num_groups": ("num_codevector_groups", 2),
    "quantizer.num_codes": ("num_codevectors_per_group", 320),
    "quantizer.codevector_dim": ("codevector_dim", 256),
}
"""Our keys of the heads of pretraining that a family has a field for."""

PLAIN: dict[str, Field] = {
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
    "position_kernel": ("num_conv_pos_embeddings", 128),
    "position_groups": ("num_conv_pos_embedding_groups", 16),
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "input_dropout": ("feat_proj_dropout", 0.0),
    "layer_drop_prob": ("layerdrop", 0.1),
    "head_dropout": ("final_dropout", 0.1),
    "mask.prob": ("mask_time_prob", 0.05),
    "mask.length": ("mask_time_length", 10),
    "mask.min_spans": ("mask_time_min_masks", 2),
    "mask.channel_prob": ("mask_feature_prob", 0.0),
    "mask.channel_length": ("mask_feature_length", 10),
}
"""Our keys that every family has a field for, unless its row says otherwise."""

FIXED: dict[str, Any] = {
    "front_end": "convolutions",
    "block": "transformer",
    "positions": "convolutional",
    "self_conditioning": 0,
    "feature_norm": True,
    "position_depth": 1,
    "position_norm": "weight",
    "position_buckets": 0,
}
"""Keys that have one value in a network of a family without a field for them."""


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model_type: of config.json, and `model.family` of ours.
        title: as one says it.
        stem: what its classes begin with.
        prefix: what its models with a head put before the network's weights.
        fields: our keys, each with their field.
        fixed: our keys that it has no field for, with the value that they have in its networks.
        needed: our keys that are not 0 in its networks.
        has_null_ids: whether a token may have no id in its configuration.
        has_pretraining: whether its class for pretraining is that of wav2vec 2.0, as ours is.
    """

    model_type: str
    title: str
    stem: str
    prefix: str
    fields: dict[str, Field] = field(default_factory=lambda: PLAIN)
    fixed: dict[str, Any] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    has_null_ids: bool = True
    has_pretraining: bool = False

    @property
    def architectures(self) -> dict[str, str]:
        """Their class of each kind of model."""
        kinds = {"backbone": f"{self.stem}Model", "ctc": f"{self.stem}ForCTC"}
        return kinds | ({"pretraining": f"{self.stem}ForPreTraining"} if self.has_pretraining else {})

    @property
    def values(self) -> dict[str, Any]:
        """What a network of the family has where there is no field for it."""
        return {key: value for key, value in (FIXED | self.fixed).items() if key not in self.fields}

    def find_misfit(self, config: ModelConfig) -> tuple[str, object] | None:
        """Find the first key of a network that the family has no place for, and what it would have to be."""
        choices = {key: list(values[0].values()) for key, (_, _, *values) in self.fields.items() if values}
        choices |= {key: [value] for key, value in self.values.items()}
        for key, values in choices.items():
            if getattr(config, key) not in values:
                return key, " or ".join(map(str, values))
        return next(((key, "more than 0") for key in self.needed if not getattr(config, key)), None)


def _without(fields: dict[str, Field], *keys: str) -> dict[str, Field]:
    return {key: value for key, value in fields.items() if key not in keys}


FAMILIES = (
    Family("wav2vec2", "wav2vec 2.0", "Wav2Vec2", "wav2vec2.", PLAIN | QUANTIZER, has_pretraining=True),
    Family(
        "hubert",
        "HuBERT",
        "Hubert",
        "hubert.",
        PLAIN
        | {
            "feature_norm": ("feat_proj_layer_norm", True),
            "position_norm": ("conv_pos_batch_norm", False, {False: "weight", True: "batch"}),
        },
    ),
    Family("unispeech", "UniSpeech", "UniSpeech", "unispeech.", PLAIN | QUANTIZER),
    Family("unispeech-sat", "UniSpeech-SAT", "UniSpeechSat", "unispeech_sat.", PLAIN | QUANTIZER, has_null_ids=False),
    Family(
        "data2vec-audio",
        "data2vec",
        "Data2VecAudio",
        "data2vec_audio.",
        _without(PLAIN, "conv_norm", "norm_first")
        | {
            "position_depth": ("num_conv_pos_embeddings", 5),
            "position_kernel": ("conv_pos_kernel_size", 19),
        },
        {"conv_norm": "layer", "norm_first": False, "position_norm": "layer"},
    ),
    Family(
        "wavlm",
        "WavLM",
        "WavLM",
        "wavlm.",
        PLAIN
        | QUANTIZER
        | {
            "position_buckets": ("num_buckets", 320),
            "position_max_distance": ("max_bucket_distance", 800),
        },
        needed=("position_buckets",),
    ),
)
"""Every family that is read and written; of those that have a network the one that `model.family` names is taken."""


def find_family(model_type: object) -> Family | None:
    """Find a family by its `model_type`; None where there is no such row."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


def choose_family(config: ModelConfig) -> Family:
    """Choose the family that a network is written as: that of its name where it fits, else the first that fits.

    Raises:
        CheckpointError: none has a place for the network.
    """
    named = find_family(config.family) or FAMILIES[0]
    found = next((family for family in (named, *FAMILIES) if family.find_misfit(config) is None), None)
    if found is None:
        key, must = named.find_misfit(config) or ("", "")
        given = getattr(config, key)
        raise CheckpointError(f"`model.{key}` must be {must} for huggingface, which has no other, but is {given}")
    return found
