"""What each toolkit calls a weight: one table a family, from our names to theirs.

Only this direction is needed: a reader lists our names and looks each of them up under the family's name, so that
what is missing and what is left over can be told in the words of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.model.speech_model import SpeechModel

LISTED, MAX_NAME = 4, 100
"""So many names stand in an error, each of so many characters; the others are counted."""

SHARED = "pretraining.backbone."
"""Names under which the backbone appears a second time in the state of a model with pretraining heads."""

MASK = "backbone.mask_embedding"
CODEBOOK = "pretraining.quantizer.codebook"
MAGNITUDE = "backbone.transformer.position.conv.parametrizations.weight.original0"
DIRECTION = "backbone.transformer.position.conv.parametrizations.weight.original1"
PROJECTION = ("backbone.projection.weight", "backbone.projection.bias")

BLOCKS = "backbone.transformer.blocks."
FIRST_BLOCK = f"{BLOCKS}0."

_BLOCK = r"^backbone\.transformer\.blocks\.(\d+)\."
_LETTER = {"query": "q", "key": "k", "value": "v", "out": "out"}

HUGGINGFACE = (
    (r"^backbone\.encoder\.convs\.(\d+)\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^backbone\.encoder\.group_norm\.", r"feature_extractor.conv_layers.0.layer_norm."),
    (r"^backbone\.encoder\.layer_norms\.(\d+)\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^backbone\.feature_norm\.", "feature_projection.layer_norm."),
    (r"^backbone\.projection\.", "feature_projection.projection."),
    (r"^backbone\.mask_embedding$", "masked_spec_embed"),
    (r"^backbone\.transformer\.position\.conv\.", "encoder.pos_conv_embed.conv."),
    (r"^backbone\.transformer\.norm\.", "encoder.layer_norm."),
    *(
        (rf"{_BLOCK}attention\.{ours}\.", rf"encoder.layers.\1.attention.{theirs}_proj.")
        for ours, theirs in _LETTER.items()
    ),
    (rf"{_BLOCK}attention_norm\.", r"encoder.layers.\1.layer_norm."),
    (rf"{_BLOCK}ffn_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (rf"{_BLOCK}inner\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (rf"{_BLOCK}outer\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"^pretraining\.quantizer\.logits\.", "quantizer.weight_proj."),
    (r"^pretraining\.quantizer\.codebook$", "quantizer.codevectors"),
    (r"^pretraining\.target_projection\.", "project_q."),
    (r"^pretraining\.context_projection\.", "project_hid."),
    (r"^head\.linear\.", "lm_head."),
)
"""`transformers`, without the prefix `wav2vec2.` that its models with a head put before the backbone."""

TORCHAUDIO = (
    *((ours, f"encoder.{theirs}") for ours, theirs in HUGGINGFACE if theirs.startswith("feature_projection.")),
    *(
        (ours, f"encoder.transformer.{theirs.removeprefix('encoder.')}")
        for ours, theirs in HUGGINGFACE
        if theirs.startswith("encoder.")
    ),
    *((ours, theirs) for ours, theirs in HUGGINGFACE if theirs.startswith("feature_extractor.")),
    (r"^head\.linear\.", "aux."),
)
"""torchaudio's `wav2vec2_model`, which has neither mask vector nor pretraining heads."""

FAIRSEQ = (
    (r"^backbone\.encoder\.convs\.(\d+)\.", r"feature_extractor.conv_layers.\1.0."),
    (r"^backbone\.encoder\.group_norm\.", r"feature_extractor.conv_layers.0.2."),
    (r"^backbone\.encoder\.layer_norms\.(\d+)\.", r"feature_extractor.conv_layers.\1.2.1."),
    (r"^backbone\.feature_norm\.", "layer_norm."),
    (r"^backbone\.projection\.", "post_extract_proj."),
    (r"^backbone\.mask_embedding$", "mask_emb"),
    (r"^backbone\.transformer\.position\.conv\.bias$", "encoder.pos_conv.0.bias"),
    (r"^backbone\.transformer\.position\.conv\.parametrizations\.weight\.original0$", "encoder.pos_conv.0.weight_g"),
    (r"^backbone\.transformer\.position\.conv\.parametrizations\.weight\.original1$", "encoder.pos_conv.0.weight_v"),
    (r"^backbone\.transformer\.norm\.", "encoder.layer_norm."),
    *(
        (rf"{_BLOCK}attention\.{ours}\.", rf"encoder.layers.\1.self_attn.{theirs}_proj.")
        for ours, theirs in _LETTER.items()
    ),
    (rf"{_BLOCK}attention_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (rf"{_BLOCK}ffn_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (rf"{_BLOCK}inner\.", r"encoder.layers.\1.fc1."),
    (rf"{_BLOCK}outer\.", r"encoder.layers.\1.fc2."),
    (r"^pretraining\.quantizer\.logits\.", "quantizer.weight_proj."),
    (r"^pretraining\.quantizer\.codebook$", "quantizer.vars"),
    (r"^pretraining\.target_projection\.", "project_q."),
    (r"^pretraining\.context_projection\.", "final_proj."),
    (r"^head\.linear\.", "proj."),
)
"""fairseq's `Wav2Vec2Model`, without the prefixes that a fine-tuned model puts before it."""

TABLES = {"huggingface": HUGGINGFACE, "torchaudio": TORCHAUDIO, "fairseq": FAIRSEQ}

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "wav2vec2.")
"""What wrappers put before a name: DDP, compile, FSDP, Lightning (and torchaudio), models with a head."""


def list_names(config: ModelConfig, kind: str) -> list[str]:
    """List our names of all weights that a model has.

    Args:
        config: the network.
        kind: `pretraining`, `ctc` or `backbone`.
    """
    # All blocks are alike, and to build 48 of them takes a second.
    with torch.device("meta"):
        model = SpeechModel(replace(config, num_layers=1), pretraining=kind == "pretraining")
    names = [name for name in model.state_dict() if not name.startswith(SHARED)]
    blocks = [name for name in names if name.startswith(FIRST_BLOCK)]
    names += [f"{BLOCKS}{n}.{name.removeprefix(FIRST_BLOCK)}" for n in range(1, config.num_layers) for name in blocks]
    return [*names, "head.linear.weight", "head.linear.bias"] if kind == "ctc" else names


def rename(name: str, family: str) -> str | None:
    """Give the name that a family has for one of our weights; None where it has no such weight.

    Args:
        name: ours.
        family: `huggingface`, `torchaudio` or `fairseq`.
    """
    for ours, theirs in TABLES[family]:
        renamed, count = re.subn(ours, theirs, name)
        if count:
            return renamed
    return None


def strip_wrappers(name: str, wrappers: tuple[str, ...] = WRAPPERS) -> str:
    """Take away the prefixes that wrappers put before a name, in any order and number."""
    stripped = name
    while True:
        prefix = next((wrapper for wrapper in wrappers if stripped.startswith(wrapper)), None)
        if prefix is None:
            return stripped
        stripped = stripped[len(prefix) :]


def strip_all(
    weights: dict[str, torch.Tensor], key: str, wrappers: tuple[str, ...] = WRAPPERS
) -> dict[str, torch.Tensor]:
    """Take the wrappers' prefixes away from all names.

    Raises:
        CheckpointError: two names become one.
    """
    stripped: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        short = strip_wrappers(name, wrappers)
        if short in stripped:
            raise CheckpointError(f"`{key}` must have each weight once, but has {join([short])} under two prefixes")
        stripped[short] = value
    return stripped


def check_names(expected: Iterable[str], found: Iterable[str], key: str, where: str) -> None:
    """Compare the names that must be there with those that are.

    Args:
        expected: names of all weights, in the source's spelling.
        found: names that the source has.
        key: the key that the error names.
        where: file or folder, for the error.

    Raises:
        CheckpointError: names are missing or left over.
    """
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if not missing and not unexpected:
        return
    parts = [f"lacks {join(missing)}"] if missing else []
    parts += [f"has the unknown {join(unexpected)}"] if unexpected else []
    raise CheckpointError(f"`{key}` must have exactly the weights of its network, but {where} {' and '.join(parts)}")


def check_shapes(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], key: str, where: str) -> None:
    """Compare the shapes of weights with those of their network.

    Args:
        expected: the network's weights.
        found: those of a file, of the same names.
        key: the key that the error names.
        where: file or folder, for the error.

    Raises:
        CheckpointError: some differ.
    """
    wrong = [
        f"{name} {tuple(found[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if found[name].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(f"`{key}` must have weights of its configuration's shapes, but {where} has {join(wrong)}")


def join(names: Iterable[str], listed: int = LISTED) -> str:
    """List a few names, each cut short, and count the others."""
    names = list(names)
    shown = [name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…" for name in names[:listed]]
    others = f" and {len(names) - listed} more" if len(names) > listed else ""
    return ", ".join(shown) + others
