"""Small networks for the parity tests, and weights of `transformers` models under our names, which they copy across."""

from __future__ import annotations

from torch import Tensor
from transformers import Wav2Vec2Config

from speechssl.config.model import ModelConfig, QuantizerConfig

CONVOLUTIONS = "wav2vec2.feature_extractor.conv_layers."

RENAMES = (
    ("wav2vec2.feature_projection.layer_norm.", "backbone.feature_norm."),
    ("wav2vec2.feature_projection.projection.", "backbone.projection."),
    ("wav2vec2.masked_spec_embed", "backbone.mask_embedding"),
    ("wav2vec2.encoder.pos_conv_embed.conv.", "backbone.transformer.position.conv."),
    ("wav2vec2.encoder.layer_norm.", "backbone.transformer.norm."),
    ("wav2vec2.encoder.layers.", "backbone.transformer.blocks."),
    (".attention.q_proj.", ".attention.query."),
    (".attention.k_proj.", ".attention.key."),
    (".attention.v_proj.", ".attention.value."),
    (".attention.out_proj.", ".attention.out."),
    (".layer_norm.", ".attention_norm."),
    (".final_layer_norm.", ".ffn_norm."),
    (".feed_forward.intermediate_dense.", ".inner."),
    (".feed_forward.output_dense.", ".outer."),
    ("quantizer.weight_proj.", "quantizer.logits."),
    ("quantizer.codevectors", "quantizer.codebook"),
    ("project_q.", "target_projection."),
    ("project_hid.", "context_projection."),
)


GROUP = {"conv_norm": "group", "conv_bias": False, "norm_first": False}
LAYER = {"conv_norm": "layer", "conv_bias": True, "norm_first": True}


def make_config(**changes: object) -> ModelConfig:
    """A network of seven convolutions and three blocks without dropout."""
    values = {
        "conv_channels": [16] * 7,
        "num_layers": 3,
        "model_dim": 32,
        "ffn_dim": 48,
        "num_heads": 4,
        "position_kernel": 16,
        "position_groups": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "input_dropout": 0.0,
        "feature_dropout": 0.0,
        "layer_drop_prob": 0.0,
        "target_dim": 12,
        "quantizer": QuantizerConfig(num_codes=10, codevector_dim=8),
    }
    return ModelConfig(**(values | changes))  # type: ignore[arg-type]


def make_hf_config(config: ModelConfig, num_negatives: int) -> Wav2Vec2Config:
    """The `transformers` configuration of one of our networks."""
    return Wav2Vec2Config(
        hidden_size=config.model_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.ffn_dim,
        feat_extract_norm=config.conv_norm,
        conv_dim=config.conv_channels,
        conv_kernel=config.conv_kernels,
        conv_stride=config.conv_strides,
        conv_bias=config.conv_bias,
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        do_stable_layer_norm=config.norm_first,
        num_codevector_groups=config.quantizer.num_groups,
        num_codevectors_per_group=config.quantizer.num_codes,
        codevector_dim=config.quantizer.codevector_dim,
        proj_codevector_dim=config.target_dim,
        num_negatives=num_negatives,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0,
        layerdrop=0.0,
    )


def rename(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Give the weights of `Wav2Vec2ForPreTraining` our names and shapes."""
    quantizer = config.quantizer
    renamed = {}
    for name, value in weights.items():
        if name.startswith(CONVOLUTIONS):
            renamed[_rename_convolution(name, config.conv_norm)] = value
            continue
        for old, new in RENAMES:
            name = name.replace(old, new)
        if name == "quantizer.codebook":
            value = value.view(quantizer.num_groups, quantizer.num_codes, -1)
        renamed[name] = value
    return renamed


def _rename_convolution(name: str, norm: str) -> str:
    layer, part, kind = name.removeprefix(CONVOLUTIONS).split(".")
    if part == "conv":
        return f"backbone.encoder.convs.{layer}.{kind}"
    return f"backbone.encoder.group_norm.{kind}" if norm == "group" else f"backbone.encoder.layer_norms.{layer}.{kind}"
