"""The two Conformers of Hugging Face's folders: wav2vec 2.0 Conformer and w2v-BERT 2.0."""

from __future__ import annotations

import torch
from torch import Tensor

from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.huggingface.config import FIELDS
from speechssl.interop.huggingface.family import Family

_BLOCK = {
    "block": "conformer",
    "norm_first": True,
    "macaron": True,
    "block_bias": False,
    "self_conditioning": 0,
    "adapter_dim": 0,
}
_FIXED = {"layer_norm_eps": 1e-5, "rotary_embedding_base": 10_000}
_POSITIONS = {"relative": "relative", "rotary": "rotary_input", None: "none"}
_ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu"}
_LEARNT = ("quantizer.", "target_dim")

CONFORMER = Family(
    model_type="wav2vec2-conformer",
    prefix="wav2vec2_conformer.",
    classes={
        "backbone": "Wav2Vec2ConformerModel",
        "pretraining": "Wav2Vec2ConformerForPreTraining",
        "ctc": "Wav2Vec2ConformerForCTC",
    },
    weights="wav2vec2-conformer",
    network=_BLOCK | {"front_end": "convolutions", "block_norm": "batch", "block_causal": False, "final_norm": True},
    fields={name: theirs for name, theirs in FIELDS.items() if name not in ("norm_first", "adapter_dim")}
    | {"block_kernel": ("conv_depthwise_kernel_size", 31)},
    choices={
        "positions": ("position_embeddings_type", "relative", _POSITIONS),
        "block_activation": ("hidden_act", "gelu", _ACTIVATIONS),
    },
    fixed=_FIXED | {"feat_extract_activation": "gelu"},
    shared={"conformer_conv_dropout": "dropout"},
)

BERT = Family(
    model_type="wav2vec2-bert",
    prefix="wav2vec2_bert.",
    classes={"backbone": "Wav2Vec2BertModel", "ctc": "Wav2Vec2BertForCTC"},
    weights="wav2vec2-bert",
    network=_BLOCK
    | {"front_end": "kaldi_fbank", "block_norm": "layer", "block_causal": True, "final_norm": False}
    | {"normalize_waveform": False},
    fields={
        name: (theirs, default)
        for name, (theirs, default) in CONFORMER.fields.items()
        if not name.startswith(("conv_", "position_", "feature_", *_LEARNT))
    }
    | {
        "num_layers": ("num_hidden_layers", 24),
        "model_dim": ("hidden_size", 1024),
        "ffn_dim": ("intermediate_size", 4096),
        "num_heads": ("num_attention_heads", 16),
        "dropout": ("hidden_dropout", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
        "activation_dropout": ("activation_dropout", 0.0),
        "position_left": ("left_max_position_embeddings", 64),
        "position_right": ("right_max_position_embeddings", 8),
    },
    choices={
        "positions": ("position_embeddings_type", "relative_key", _POSITIONS | {"relative_key": "relative_key"}),
        "block_activation": ("hidden_act", "swish", _ACTIVATIONS),
    },
    fixed=_FIXED,
    shared={"conformer_conv_dropout": "dropout"},
)

UNUSED = "encoder.pos_conv_embed."
"""A positional convolution that wav2vec 2.0 Conformer has the weights of, and never runs."""

_ANGLES, _COUNT = "encoder.embed_positions.inv_freq", ".batch_norm.num_batches_tracked"
_POINTWISE = ("conv_module.pointwise_conv1.weight", "conv_module.pointwise_conv2.weight")
"""Linear layers that are convolutions of kernel 1 there."""


def clean_weights(source: dict[str, Tensor], where: str, key: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Leave out what a Conformer's network does not compute with, and bring the others to the shapes of ours.

    Args:
        source: by the names in the file.

    Returns:
        The weights, and what a user should know of those left behind.

    Raises:
        CheckpointError: the angles of rotary positions are others than the published ones.
    """
    for name in source:
        # Half precision keeps two digits of them at least.
        if name.endswith(_ANGLES) and not _are_angles(source[name]):
            raise CheckpointError(f"`{key}` must have powers of 10,000 as {name}, but {where} has others")
    kept = {
        name: value.squeeze(-1) if name.endswith(_POINTWISE) else value
        for name, value in source.items()
        if UNUSED not in name and not name.endswith((_ANGLES, _COUNT))
    }
    is_there = any(UNUSED in name for name in source)
    return kept, (f"{UNUSED}* (never used there)",) if is_there else ()


def dress_weights(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Bring weights to the shapes that they have there, and add what `clean_weights` leaves out."""
    dressed = {name: value[..., None] if name.endswith(_POINTWISE) else value for name, value in weights.items()}
    if config.positions == "rotary_input" and config.front_end == "convolutions":
        dressed[_ANGLES] = _make_angles(config.head_dim)
    if config.block_norm == "batch":
        dim, kernel, groups = config.model_dim, config.position_kernel, config.position_groups
        dressed |= {
            f"encoder.layers.{n}.conv_module{_COUNT}": torch.zeros((), dtype=torch.int64)
            for n in range(config.num_layers)
        }
        parts = {"original0": torch.zeros(1, 1, kernel), "original1": torch.ones(dim, dim // groups, kernel)}
        dressed |= {f"{UNUSED}conv.parametrizations.weight.{name}": value for name, value in parts.items()}
        dressed[f"{UNUSED}conv.bias"] = torch.zeros(dim)
    return dressed


def _are_angles(value: Tensor) -> bool:
    return torch.allclose(value.flatten(), _make_angles(2 * value.numel()), rtol=1e-2, atol=0.0)


def _make_angles(dim: int) -> Tensor:
    return 1.0 / 10_000.0 ** (torch.arange(0, dim, 2) / dim)
