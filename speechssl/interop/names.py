"""What each toolkit calls a weight: one table, from our names to theirs.

Only this direction is needed: a reader lists our names and looks up what the family calls them, so that what is missing
and what is left over can be told in the words of the file.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from speechssl.checkpoints.checks import SHARED, check_names, join
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.model.speech_model import SpeechModel

MASK = "backbone.mask_embedding"
CODEBOOK = "pretraining.quantizer.codebook"
PROJECTION = ("backbone.projection.weight", "backbone.projection.bias")

_CONVS, _BLOCK = "feature_extractor.conv_layers.", "backbone.transformer.blocks.#."
_POSITION, _NORM = "backbone.transformer.position.conv.", "parametrizations.weight.original"

NAMES = (
    ("backbone.encoder.convs.#.", f"{_CONVS}#.conv.", f"{_CONVS}#.0."),
    ("backbone.encoder.group_norm.", f"{_CONVS}0.layer_norm.", f"{_CONVS}0.2."),
    ("backbone.encoder.layer_norms.#.", f"{_CONVS}#.layer_norm.", f"{_CONVS}#.2.1."),
    ("backbone.feature_norm.", "feature_projection.layer_norm.", "layer_norm."),
    ("backbone.projection.", "feature_projection.projection.", "post_extract_proj."),
    ("backbone.mask_embedding", "masked_spec_embed", "mask_emb"),
    (f"{_POSITION}{_NORM}0", f"encoder.pos_conv_embed.conv.{_NORM}0", "encoder.pos_conv.0.weight_g"),
    (f"{_POSITION}{_NORM}1", f"encoder.pos_conv_embed.conv.{_NORM}1", "encoder.pos_conv.0.weight_v"),
    (f"{_POSITION}weight", "encoder.pos_conv_embed.conv.weight", "encoder.pos_conv.0.weight"),
    (f"{_POSITION}bias", "encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
    ("backbone.transformer.position.norm.", "encoder.pos_conv_embed.batch_norm.", "encoder.pos_conv.norm."),
    ("backbone.transformer.position.convs.#.", "encoder.pos_conv_embed.layers.#.conv.", "encoder.pos_conv.#.0."),
    (
        "backbone.transformer.relative_bias.",
        "encoder.layers.0.attention.rel_attn_embed.",
        "encoder.layers.0.self_attn.relative_attention_bias.",
    ),
    ("backbone.transformer.norm.", "encoder.layer_norm.", "encoder.layer_norm."),
    (f"{_BLOCK}attention.query.", "encoder.layers.#.attention.q_proj.", "encoder.layers.#.self_attn.q_proj."),
    (f"{_BLOCK}attention.key.", "encoder.layers.#.attention.k_proj.", "encoder.layers.#.self_attn.k_proj."),
    (f"{_BLOCK}attention.value.", "encoder.layers.#.attention.v_proj.", "encoder.layers.#.self_attn.v_proj."),
    (f"{_BLOCK}attention.out.", "encoder.layers.#.attention.out_proj.", "encoder.layers.#.self_attn.out_proj."),
    (
        f"{_BLOCK}attention.gate.linear.",
        "encoder.layers.#.attention.gru_rel_pos_linear.",
        "encoder.layers.#.self_attn.grep_linear.",
    ),
    (
        f"{_BLOCK}attention.gate.scale",
        "encoder.layers.#.attention.gru_rel_pos_const",
        "encoder.layers.#.self_attn.grep_a",
    ),
    (f"{_BLOCK}attention_norm.", "encoder.layers.#.layer_norm.", "encoder.layers.#.self_attn_layer_norm."),
    (f"{_BLOCK}ffn_norm.", "encoder.layers.#.final_layer_norm.", "encoder.layers.#.final_layer_norm."),
    (f"{_BLOCK}adapter.norm.", "encoder.layers.#.adapter_layer.norm.", ""),
    (f"{_BLOCK}adapter.down.", "encoder.layers.#.adapter_layer.linear_1.", ""),
    (f"{_BLOCK}adapter.up.", "encoder.layers.#.adapter_layer.linear_2.", ""),
    (f"{_BLOCK}inner.", "encoder.layers.#.feed_forward.intermediate_dense.", "encoder.layers.#.fc1."),
    (f"{_BLOCK}outer.", "encoder.layers.#.feed_forward.output_dense.", "encoder.layers.#.fc2."),
    ("pretraining.quantizer.logits.", "quantizer.weight_proj.", "quantizer.weight_proj."),
    ("pretraining.quantizer.codebook", "quantizer.codevectors", "quantizer.vars"),
    ("pretraining.target_projection.", "project_q.", "project_q."),
    ("pretraining.context_projection.", "project_hid.", "final_proj."),
    ("head.linear.", "lm_head.", "proj."),
)
"""How a name begins: ours, in `transformers` and in fairseq, without the prefixes that models with a head put before
the network's; # is the number of a layer. fairseq's adapters are none of ours (see `_check_fits`)."""

_CONFORMER, _LENGTH, _ADAPTER = "encoder.layers.#.", "backbone.length_adapter.layers.#.", "adapter.layers.#."
CONFORMER = (
    (f"{_BLOCK}first.norm.", f"{_CONFORMER}ffn1_layer_norm."),
    (f"{_BLOCK}first.inner.", f"{_CONFORMER}ffn1.intermediate_dense."),
    (f"{_BLOCK}first.outer.", f"{_CONFORMER}ffn1.output_dense."),
    (f"{_BLOCK}attention_norm.", f"{_CONFORMER}self_attn_layer_norm."),
    (f"{_BLOCK}attention.query.", f"{_CONFORMER}self_attn.linear_q."),
    (f"{_BLOCK}attention.key.", f"{_CONFORMER}self_attn.linear_k."),
    (f"{_BLOCK}attention.value.", f"{_CONFORMER}self_attn.linear_v."),
    (f"{_BLOCK}attention.out.", f"{_CONFORMER}self_attn.linear_out."),
    (f"{_BLOCK}attention.place.", f"{_CONFORMER}self_attn.linear_pos."),
    (f"{_BLOCK}attention.content_bias", f"{_CONFORMER}self_attn.pos_bias_u"),
    (f"{_BLOCK}attention.place_bias", f"{_CONFORMER}self_attn.pos_bias_v"),
    (f"{_BLOCK}attention.distances", f"{_CONFORMER}self_attn.distance_embedding.weight"),
    (f"{_BLOCK}convolution_norm.", f"{_CONFORMER}conv_module.layer_norm."),
    (f"{_BLOCK}convolution.gates.", f"{_CONFORMER}conv_module.pointwise_conv1."),
    (f"{_BLOCK}convolution.depthwise.", f"{_CONFORMER}conv_module.depthwise_conv."),
    (f"{_BLOCK}convolution.out.", f"{_CONFORMER}conv_module.pointwise_conv2."),
    (f"{_BLOCK}last.norm.", f"{_CONFORMER}ffn2_layer_norm."),
    (f"{_BLOCK}last.inner.", f"{_CONFORMER}ffn2.intermediate_dense."),
    (f"{_BLOCK}last.outer.", f"{_CONFORMER}ffn2.output_dense."),
    (f"{_BLOCK}norm.", f"{_CONFORMER}final_layer_norm."),
    ("backbone.length_adapter.first.inner.", "intermediate_ffn.intermediate_dense."),
    ("backbone.length_adapter.first.outer.", "intermediate_ffn.output_dense."),
    (f"{_LENGTH}residual_norm.", f"{_ADAPTER}residual_layer_norm."),
    (f"{_LENGTH}residual_conv.", f"{_ADAPTER}residual_conv."),
    (f"{_LENGTH}attention_norm.", f"{_ADAPTER}self_attn_layer_norm."),
    (f"{_LENGTH}attention_conv.", f"{_ADAPTER}self_attn_conv."),
    (f"{_LENGTH}attention.query.", f"{_ADAPTER}self_attn.linear_q."),
    (f"{_LENGTH}attention.key.", f"{_ADAPTER}self_attn.linear_k."),
    (f"{_LENGTH}attention.value.", f"{_ADAPTER}self_attn.linear_v."),
    (f"{_LENGTH}attention.out.", f"{_ADAPTER}self_attn.linear_out."),
    (f"{_LENGTH}last.norm.", f"{_ADAPTER}ffn_layer_norm."),
    (f"{_LENGTH}last.inner.", f"{_ADAPTER}ffn.intermediate_dense."),
    (f"{_LENGTH}last.outer.", f"{_ADAPTER}ffn.output_dense."),
)
"""The same for the blocks of Conformers, in `transformers` alone."""

CONFORMER_NORMS = {"wav2vec2-conformer": "batch_norm.", "wav2vec2-bert": "depthwise_layer_norm."}
"""What the Conformers of `transformers` call the norm after the depth-wise convolution."""

TORCHAUDIO = {
    "encoder.": "encoder.transformer.",
    "feature_projection.": "encoder.feature_projection.",
    "feature_extractor.": "feature_extractor.",
    "lm_head.": "aux.",
}
"""How torchaudio changes the beginnings of the names of `transformers`; it has no others."""

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "wav2vec2.")
"""What wrappers put before a name: DDP, compile, FSDP, Lightning (and torchaudio), models with a head."""

COUNT = ".num_batches_tracked"
"""What the count of torch's batch norm ends with; ours keeps none."""

POSITIONS = {
    "huggingface": "encoder.pos_conv_embed.conv.",
    "torchaudio": "encoder.transformer.pos_conv_embed.conv.",
    "fairseq": "encoder.pos_conv.0.",
}
"""Where the positional convolution is, whose weight norm torch has spelt in two ways."""


def rename(name: str, family: str) -> str | None:
    """Give the name that a family has for one of our weights; None where it has no such weight.

    Args:
        name: ours.
        family: `huggingface`, `torchaudio`, `fairseq` or one of `CONFORMER_NORMS`.
    """
    for ours, theirs in _list_rows(family):
        found = re.match(re.escape(ours).replace(r"\#", r"(\d+)"), name)
        if found is None:
            continue
        if family == "torchaudio":
            start = next((start for start in TORCHAUDIO if theirs.startswith(start)), None)
            if start is None:
                return None
            theirs = TORCHAUDIO[start] + theirs.removeprefix(start)
        return theirs.replace("#", found[1] if found.groups() else "") + name[found.end() :]
    return None


@cache
def _list_rows(family: str) -> list[tuple[str, str]]:
    """List how names begin, ours and a family's."""
    rows = [(row[0], row[2 if family == "fairseq" else 1]) for row in NAMES]
    if family in CONFORMER_NORMS:
        norm = (f"{_BLOCK}convolution.norm.", f"{_CONFORMER}conv_module.{CONFORMER_NORMS[family]}")
        rows = [norm, *CONFORMER, *rows]
    return rows


def list_names(config: ModelConfig, kind: str) -> list[str]:
    """List our names of all weights that a model has.

    Args:
        kind: `pretraining`, `ctc` or `backbone`.
    """
    # All blocks are alike, and building 48 of them takes a second.
    with torch.device("meta"):
        model = SpeechModel(replace(config, num_layers=1), pretraining=kind == "pretraining")
    names = [name for name in model.state_dict() if not name.startswith(SHARED)]
    blocks = "backbone.transformer.blocks."
    first = [name for name in names if name.startswith(f"{blocks}0.")]
    names += [name.replace(f"{blocks}0.", f"{blocks}{n}.") for n in range(1, config.num_layers) for name in first]
    return [*names, "head.linear.weight", "head.linear.bias"] if kind == "ctc" else names


def respell(
    weights: dict[str, Tensor], family: str, where: str, key: str, wrappers: tuple[str, ...] = WRAPPERS
) -> dict[str, Tensor]:
    """Bring a file's names to the family's present spelling, without the prefixes of wrappers.

    Args:
        weights: by the names in the file.
        family: `huggingface`, `torchaudio` or `fairseq`.
        wrappers: prefixes to strip, in any order and number.

    Raises:
        CheckpointError: two names become one, or the weight norm of the positional convolution was fused.
    """
    position = POSITIONS[family]
    spellings = {f"{position}weight_{x}": f"{position}parametrizations.weight.original{n}" for n, x in enumerate("gv")}
    if family == "fairseq":
        spellings = {new: old for old, new in spellings.items()}
    spellings["mask_time_emb_vector"] = "masked_spec_embed"
    stripped: dict[str, Tensor] = {}
    for name, value in weights.items():
        # How many batches batch norm has seen: nothing looks at it where its averages have a momentum.
        if name.endswith(COUNT):
            continue
        short = name
        while prefix := next((wrapper for wrapper in wrappers if short.startswith(wrapper)), ""):
            short = short.removeprefix(prefix)
        if short in stripped:
            raise CheckpointError(f"`{key}` must have each weight once, but has {join([short])} under two prefixes")
        stripped[short] = value
    if "encoder.pos_conv.0.running_mean" in stripped:
        # The batch norm is the first of fairseq's sequence, and the convolution the second.
        moves = (("encoder.pos_conv.0.", "encoder.pos_conv.norm."), ("encoder.pos_conv.1.", "encoder.pos_conv.0."))
        for old, new in moves:
            stripped = {re.sub(f"^{re.escape(old)}", new, name): value for name, value in stripped.items()}
    has_batch_norm = any(name.startswith("encoder.pos_conv") and name.endswith("running_mean") for name in stripped)
    if f"{position}weight" in stripped and not has_batch_norm:
        raise CheckpointError(
            f"`{key}` must hold the positional convolution as two parts (weight_g and weight_v), but {where} has it "
            f"fused as {position}weight"
        )
    return {spellings.get(name, name): value for name, value in stripped.items()}


def take_weights(
    source: dict[str, Tensor], config: ModelConfig, kind: str, family: str, where: str, key: str
) -> dict[str, Tensor]:
    """Take the weights of a network from a file's, under our names; none may be missing or left over.

    Args:
        source: by the family's names.
        kind: `pretraining`, `ctc` or `backbone`.
        family: `huggingface`, `torchaudio` or `fairseq`.

    Raises:
        CheckpointError: names are missing or left over, or a projection between equal widths does something.
    """
    theirs = {name: there for name in list_names(config, kind) if (there := rename(name, family)) is not None}
    if has_identity(config, family):
        source = _drop_identity(source, family, where, key)
    check_names(theirs.values(), source, key, where)
    weights = {name: source[there] for name, there in theirs.items()}
    groups, codes = config.quantizer.num_groups, config.quantizer.num_codes
    if CODEBOOK in weights and weights[CODEBOOK].shape[:2] == (1, groups * codes):
        weights[CODEBOOK] = weights[CODEBOOK].reshape(groups, codes, -1)
    return weights


def export_weights(model: SpeechModel, family: str) -> dict[str, Tensor]:
    """Give the weights of a model under a family's names, without those that it has no place for."""
    weights = {}
    for name, value in list_weights(model).items():
        theirs = rename(name, family)
        if theirs is not None and theirs.endswith(".running_var"):
            weights[theirs.replace(".running_var", COUNT)] = torch.zeros((), dtype=torch.int64)
        if theirs is not None:
            weights[theirs] = value.reshape(1, -1, value.shape[-1]) if name == CODEBOOK else value
    if has_identity(model.config, family):
        dim = model.config.model_dim
        values = (torch.eye(dim), torch.zeros(dim))
        weights |= {str(rename(name, family)): value for name, value in zip(PROJECTION, values, strict=True)}
    return weights


def list_weights(model: SpeechModel) -> dict[str, Tensor]:
    """Name each tensor of a model once: the backbone is shared with the pretraining part."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(SHARED)}


def has_identity(config: ModelConfig, family: str) -> bool:
    """Say whether a family has a projection where ours has none: between equal widths, as the identity."""
    return family != "fairseq" and config.feature_dim == config.model_dim


def _drop_identity(source: dict[str, Tensor], family: str, where: str, key: str) -> dict[str, Tensor]:
    """Take away the projection between equal widths; raises a `CheckpointError` where it is not the identity."""
    names = [str(rename(name, family)) for name in PROJECTION]
    weight, bias = (source.get(name) for name in names)
    # The shape first: an identity for a long and narrow tensor would take all memory.
    is_square = weight is not None and weight.dim() == 2 and weight.shape[0] == weight.shape[1]
    if weight is None or bias is None or not is_square or not torch.equal(weight, torch.eye(len(weight))) or bias.any():
        raise CheckpointError(
            f"`{key}` must have the identity as projection where the feature encoder is as wide as the transformer, "
            f"but {where} has not"
        )
    return {name: value for name, value in source.items() if name not in names}
