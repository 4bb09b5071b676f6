"""Reduced models of every family of `transformers`, with random weights, and ours that read them: one row a network."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from speechssl.interop.foreign import build_model
from speechssl.interop.huggingface.folder import read_huggingface
from speechssl.model.speech_model import SpeechModel
from tests.parity.ladder import silence

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "pad_token_id": 0,
    "ctc_zero_infinity": True,
    **dict.fromkeys(
        (
            "hidden_dropout",
            "attention_dropout",
            "activation_dropout",
            "feat_proj_dropout",
            "final_dropout",
            "layerdrop",
        ),
        0.0,
    ),
}

PLAIN = {"num_conv_pos_embeddings": 16}
LARGE = PLAIN | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
BUCKETS = {"num_buckets": 16, "max_bucket_distance": 40}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("Hubert", PLAIN),
    "hubert, large": ("Hubert", LARGE),
    "mhubert": ("Hubert", PLAIN | {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False}),
    "unispeech": ("UniSpeech", PLAIN),
    "unispeech-sat": ("UniSpeechSat", LARGE | {"conv_bias": True}),
    "data2vec-audio": ("Data2VecAudio", {}),
    "wavlm": ("WavLM", PLAIN | BUCKETS),
    "wavlm, large": ("WavLM", LARGE | BUCKETS),
}
"""What the classes of a family begin with, and the fields of its configuration that are no default."""

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]


def build_there(row: str, head: str = "ForCTC", **changes: Any) -> nn.Module:
    """Build their model; what they initialise with zeros, ones or very small is drawn, so that it shows."""
    stem, fields = ROWS[row]
    config = getattr(transformers, f"{stem}Config")(**(SMALL | fields | changes))
    torch.manual_seed(7)
    model: nn.Module = getattr(transformers, f"{stem}{head}")(config)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if any(part in name for part in ("rel_attn_embed", "gru_rel_pos", "batch_norm.weight", "norm.bias")):
                value += 0.3 * torch.randn_like(value)
            elif "running" in name:
                value += 0.3 * torch.rand_like(value)
    return model.eval()


def save_there(model: nn.Module, folder: Path) -> Path:
    """Save a model with its feature extractor and its letters, as they do."""
    model.save_pretrained(folder)  # type: ignore[operator]
    extractor = {"do_normalize": False, "sampling_rate": 16_000}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
    return folder


def build_pair(row: str, **changes: Any) -> tuple[SpeechModel, nn.Module]:
    """Build their recogniser and ours that reads it, with the peers' treatment of padding."""
    theirs = build_there(row, **changes)
    with tempfile.TemporaryDirectory() as name:
        foreign = read_huggingface(save_there(theirs, Path(name)))
    card = replace(foreign.card, model=silence(foreign.card.model))
    return build_model(replace(foreign, card=card)).eval(), theirs
