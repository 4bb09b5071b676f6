"""The families of networks that Hugging Face has: what each calls its classes and fields, one row a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    "final_norm": True,
    "adapter_dim": 0,
    "length_adapter_layers": 0,
    "position_depth": 1,
    "position_norm": "weight",
    "position_buckets": 0,
}
"""Keys that have one value in a network of a family without a field for them, unless its row says otherwise."""

SAID: dict[str, Any] = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5}
"""Fields that have one value here, which is their default there too, unless a row says otherwise."""


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model_type: of config.json, and `model.family` of ours.
        title: as one says it.
        stem: what its classes begin with.
        prefix: what its models with a head put before the network's weights.
        fields: our keys, each with their field.
        fixed: our keys, with the value that they have in its networks where it has no field for them.
        said: their fields that have one value here.
        shared: their fields that our network has no key for, with the key whose value is written.
        names: whose names in `interop.names` its weights have.
        needed: our keys that are not 0 in its networks.
        pre_norm: our keys that are 0 unless its blocks begin with a norm.
        has_null_ids: whether a token may have no id in its configuration.
        has_pretraining: whether its class for pretraining is that of wav2vec 2.0, as ours is.
    """

    model_type: str
    title: str
    stem: str
    prefix: str
    fields: Mapping[str, Field] = field(default_factory=lambda: PLAIN)
    fixed: Mapping[str, Any] = field(default_factory=lambda: FIXED)
    said: Mapping[str, Any] = field(default_factory=lambda: SAID)
    shared: Mapping[str, str] = field(default_factory=dict)
    names: str = "huggingface"
    needed: tuple[str, ...] = ()
    pre_norm: tuple[str, ...] = ()
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
        return {key: value for key, value in self.fixed.items() if key not in self.fields}

    def find_misfit(self, config: ModelConfig) -> tuple[str, str] | None:
        """Find the first key of a network that the family has no place for, and what it would have to be."""
        choices = {key: [value] for key, value in self.values.items()}
        choices |= {key: list(words[0].values()) for key, (_, _, *words) in self.fields.items() if words}
        for key, values in choices.items():
            if getattr(config, key) not in values:
                return key, " or ".join(dict.fromkeys(str(value).lower() for value in values))
        for key in self.pre_norm:
            if getattr(config, key) and not config.norm_first:
                return key, "0 where model.norm_first is false"
        return next(((key, "more than 0") for key in self.needed if not getattr(config, key)), None)


def _without(fields: dict[str, Field], *starts: str) -> dict[str, Field]:
    return {key: value for key, value in fields.items() if not key.startswith(starts)}


_BLOCK = {"block": "conformer", "norm_first": True, "macaron": True, "block_bias": False}
_CONFORMER: dict[str, Any] = {
    **{key: value for key, value in FIXED.items() if key not in ("positions", "position_depth", "position_norm")},
    **_BLOCK,
    "block_norm": "batch",
    "block_causal": False,
}
_CONFORMER_SAID = {"layer_norm_eps": 1e-5, "rotary_embedding_base": 10_000}
_PLACES = {"relative": "relative", "rotary": "rotary_input", None: "none"}
_ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu"}

WAV2VEC2 = Family(
    "wav2vec2",
    "wav2vec 2.0",
    "Wav2Vec2",
    "wav2vec2.",
    PLAIN | QUANTIZER | {"adapter_dim": ("adapter_attn_dim", 0)},
    pre_norm=("adapter_dim",),
    has_pretraining=True,
)
BARE_WAV2VEC2 = replace(WAV2VEC2, fields=PLAIN | QUANTIZER)
"""wav2vec 2.0 without adapters, as fairseq and torchaudio have it."""

WAVLM = Family(
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
)
FAMILIES = (
    WAV2VEC2,
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
        FIXED | {"conv_norm": "layer", "norm_first": False, "position_norm": "layer"},
    ),
    WAVLM,
    Family(
        "wav2vec2-conformer",
        "wav2vec 2.0 Conformer",
        "Wav2Vec2Conformer",
        "wav2vec2_conformer.",
        _without(PLAIN, "norm_first")
        | QUANTIZER
        | {
            "block_kernel": ("conv_depthwise_kernel_size", 31),
            "positions": ("position_embeddings_type", "relative", _PLACES),
            "block_activation": ("hidden_act", "gelu", _ACTIVATIONS),
        },
        _CONFORMER,
        _CONFORMER_SAID | {"feat_extract_activation": "gelu"},
        {"conformer_conv_dropout": "dropout"},
        "wav2vec2-conformer",
        has_pretraining=True,
    ),
    Family(
        "wav2vec2-bert",
        "w2v-BERT 2.0",
        "Wav2Vec2Bert",
        "wav2vec2_bert.",
        _without(PLAIN, "conv_", "norm_first", "position_")
        | {
            "num_layers": ("num_hidden_layers", 24),
            "model_dim": ("hidden_size", 1024),
            "ffn_dim": ("intermediate_size", 4096),
            "num_heads": ("num_attention_heads", 16),
            "dropout": ("hidden_dropout", 0.0),
            "attention_dropout": ("attention_dropout", 0.0),
            "activation_dropout": ("activation_dropout", 0.0),
            "block_kernel": ("conv_depthwise_kernel_size", 31),
            "position_left": ("left_max_position_embeddings", 64),
            "position_right": ("right_max_position_embeddings", 8),
            "length_adapter_layers": ("num_adapter_layers", 1),
            "length_adapter_kernel": ("adapter_kernel_size", 3),
            "length_adapter_stride": ("adapter_stride", 2),
            "length_adapter_ffn": ("use_intermediate_ffn_before_adapter", False),
            "positions": ("position_embeddings_type", "relative_key", _PLACES | {"relative_key": "relative_key"}),
            "block_activation": ("hidden_act", "swish", _ACTIVATIONS),
        },
        _CONFORMER
        | {"front_end": "kaldi_fbank", "block_norm": "layer", "block_causal": True, "final_norm": False}
        | {"normalize_waveform": False},
        _CONFORMER_SAID,
        {"conformer_conv_dropout": "dropout"},
        "wav2vec2-bert",
    ),
)
"""Every family that is read and written; of those that have a network the one that `model.family` names is taken."""


def find_family(model_type: object) -> Family | None:
    """Find a family by its `model_type`; None where there is no such row."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


def has_class(config: ModelConfig) -> bool:
    """Say whether `transformers` has a class for a network."""
    return any(family.find_misfit(config) is None for family in FAMILIES)


def choose_family(config: ModelConfig) -> Family:
    """Choose the family that a network is written as: that of its name where it fits, else the first that fits.

    Raises:
        CheckpointError: none has a place for the network.
    """
    named = find_family(config.family) or WAV2VEC2
    found = next((family for family in (named, *FAMILIES) if family.find_misfit(config) is None), named)
    check_fits(found, config, "huggingface")
    return found


def check_fits(family: Family, config: ModelConfig, format: str) -> None:
    """Make sure that a family has a place for a network.

    Args:
        format: that has no other family, named in the error.

    Raises:
        CheckpointError: it has none.
    """
    misfit = family.find_misfit(config)
    if misfit is not None:
        key, must = misfit
        given = str(getattr(config, key)).lower()
        raise CheckpointError(f"`model.{key}` must be {must} for {format}, which has no other, but is {given}")
