"""fairseq2's `.pt` files of wav2vec 2.0: omniASR's pretrained encoders (W2V) and recognisers (CTC), read.

Such a file holds weights alone. What they do not say is what all of omniASR's have in common (`COMMON`, from
omnilingual-asr's and fairseq2's published configurations); the shapes say the rest.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoints.checks import join
from speechssl.checkpoints.model_folder import ModelCard, build_config
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.files import read_tensors
from speechssl.interop.foreign import DRAWN, Foreign, draw_mask_vector, name_size
from speechssl.interop.inert_pickle import StoredTensor
from speechssl.interop.names import WRAPPERS, respell, take_weights
from speechssl.interop.pieces import read_pieces
from speechssl.interop.torch_file import look_into
from speechssl.text.vocabulary import Vocabulary

FRONT = "encoder_frontend."
"""Names that only fairseq2's have begin so."""

COMMON: dict[str, Any] = {
    "conv_bias": True, "conv_norm": "layer", "norm_first": True, "num_heads": 16, "feature_gradient_scale": 1.0,
    "normalize_waveform": True, "waveform_epsilon": 1e-5, "conv_strides": [5, 2, 2, 2, 2, 2, 2], "dropout": 0.0,
    "attention_dropout": 0.0, "input_dropout": 0.0, "feature_dropout": 0.0, "layer_drop_prob": 0.0,
}  # fmt: skip
"""What no weight says: fairseq2's `large_lv60k`, which omniASR makes deeper and wider with as many heads."""

GROUPS = 2
"""Codebooks of the quantizer."""

DECODER = ("llama_decoder.", "text_frontend.", "encoder_proj.")
"""How names begin in the recognisers with a language model (LLM), which do not load."""

UPDATES = "quantizer.num_updates"
"""A count among the weights."""


def is_fairseq2(path: Path, names: set[str] | None, key: str) -> bool:
    """Say whether a file has weights under fairseq2's names.

    Args:
        names: of a file of tensors alone; None for one that holds more.
    """
    return any(_strip(name).startswith(FRONT) for name in names or _find_model(path, key))


def read_fairseq2(path: Path, key: str = "checkpoint") -> Foreign:
    """Read a file of fairseq2's, without running anything in it.

    Args:
        path: of the `.pt` file; beside a recogniser lies its tokenizer, a sentencepiece model.

    Raises:
        CheckpointError: the file is damaged or no omniASR encoder or recogniser, weights are missing or left over, or
            the tokenizer is not there.
    """
    model = _find_model(path, key)
    tensors = look_into(path, key).read(model, key) if model else read_tensors(path, key)
    if others := sorted(name for name in tensors if _strip(name).startswith(DECODER)):
        raise CheckpointError(f"`{key}` must be omniASR's W2V or CTC, but {path} has a decoder ({join(others)})")
    source = respell(tensors, "fairseq2", str(path), key)
    dropped = (UPDATES,) if source.pop(UPDATES, None) is not None else ()
    kind = "pretraining" if "quantizer.entries" in source else "ctc" if "final_proj.weight" in source else "backbone"
    config = read_config(source, str(path), key)
    notes = ["16 heads, strides and dropouts as all of omniASR's have, since no file says them"]
    if kind != "pretraining" and "masker.temporal_mask_embed" not in source:
        source["masker.temporal_mask_embed"] = draw_mask_vector(config.model_dim)
        notes.append(DRAWN)
    weights = take_weights(source, config, kind, "fairseq2", str(path), key)
    vocabulary = _find_tokenizer(path.parent, len(weights["head.linear.bias"]), key) if kind == "ctc" else None
    return Foreign("fairseq2", ModelCard(kind, config, vocabulary, 0), weights, dropped, tuple(notes))


def read_config(source: dict[str, Tensor], where: str, key: str) -> ModelConfig:
    """Read a network off the shapes of its weights.

    Raises:
        CheckpointError: a weight that says a size is missing, or no network has these sizes.
    """
    convs = [name for name in source if re.fullmatch(rf"{FRONT}feature_extractor\.layers\.\d+\.conv\.weight", name)]
    convs.sort(key=lambda name: int(name.split(".")[3]))
    position = f"{FRONT}pos_encoder.conv.parametrizations.weight.original1"
    inner = "encoder.layers.0.ffn.inner_proj.weight"
    if missing := [name for name in (position, inner) if name not in source or source[name].dim() < 2]:
        raise CheckpointError(f"`{key}` must be wav2vec 2.0 of fairseq2, but {where} has no {join(missing)}")
    numbers = {int(found[1]) for name in source if (found := re.match(r"encoder\.layers\.(\d{1,4})\.", name))}
    width, per_group, kernel = (*source[position].shape, 0)[:3]
    sizes: dict[str, Any] = {
        "conv_channels": [source[name].shape[0] for name in convs],
        "conv_kernels": [source[name].shape[-1] for name in convs],
        "num_layers": len(numbers),
        "model_dim": width,
        "ffn_dim": source[inner].shape[0],
        "position_kernel": kernel,
        "position_groups": width // max(per_group, 1),
    }
    if "quantizer.entries" in source and "final_proj.weight" in source:
        entries = source["quantizer.entries"]
        sizes["target_dim"] = source["final_proj.weight"].shape[0]
        sizes["quantizer"] = {
            "num_groups": GROUPS,
            "num_codes": entries.shape[1 if entries.dim() > 2 else 0] // GROUPS,
            "codevector_dim": entries.shape[-1] * GROUPS,
            "temperature_end": 0.1,
        }
    config: ModelConfig = build_config(ModelConfig, COMMON | sizes, key)
    return replace(config, name=name_size(config))


def _find_model(path: Path, key: str) -> dict[str, StoredTensor]:
    """Find the weights in a file that holds more; {} for one of tensors alone, or of something else."""
    content = look_into(path, key).content
    model = content.get("model") if isinstance(content, dict) else None
    found = model.items() if isinstance(model, dict) else ()
    return {str(name): value for name, value in found if isinstance(value, StoredTensor)}


def _strip(name: str) -> str:
    return next((name.removeprefix(wrapper) for wrapper in WRAPPERS if name.startswith(wrapper)), name)


def _find_tokenizer(folder: Path, num_rows: int, key: str) -> Vocabulary:
    """Find the sentencepiece model that has a piece for each output, among those in a folder."""
    found = {path: read_pieces(path, key) for path in sorted(folder.glob("*.model"))}
    fitting = {path: labels for path, labels in found.items() if len(labels) == num_rows}
    if len(fitting) != 1:
        others = join(f"{path.name} with {len(labels):,}" for path, labels in found.items()) or "none"
        raise CheckpointError(
            f"`{key}` must have its tokenizer beside it, one sentencepiece model of {num_rows:,} pieces "
            f"(omniASR_tokenizer.model, with v2 omniASR_tokenizer_written_v2.model), but {folder} has {others}"
        )
    return next(iter(fitting.values()))
