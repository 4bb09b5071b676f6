"""Makes tests/parity/goldens/omniasr.json: what a small omniASR recogniser computes, written out in torch functions.

No real file was at hand: neither fairseq2 nor omniASR's weights can be had offline. What is transcribed here, from
their published source, step by step and in float64:

- fairseq2 `models/wav2vec2/`: `feature_extractor.py` (convolutions with bias, layer norm over channels, GELU),
  `frontend.py` (layer norm, projection, positions), `position_encoder.py` (a grouped convolution of even kernel under
  weight norm over its taps, the last frame cut off, GELU, added), `interop.py` and `asr/interop.py` (the names);
- fairseq2 `models/transformer/`: pre-norm blocks, layer norm after the last;
- omnilingual-asr: waveforms of zero mean and unit variance (layer norm, 1e-5), `final_proj` to the pieces of its
  tokenizer, of which the first, `<s>`, is the CTC blank.

It imports nothing of speechssl. Weights are drawn from a seed, name by name in sorted order, so that the file holds
their shapes and the logits alone.

    python tools/make_omniasr_golden.py [folder]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SEED, SAMPLES, VOCABULARY = 23, 4000, 20
CHANNELS, DIM, INNER, LAYERS, HEADS = 16, 32, 48, 2, 16
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
POSITIONS, GROUPS = 8, 4
CONVS, FRONT = "encoder_frontend.feature_extractor.layers", "encoder_frontend"

Weights = dict[str, Tensor]


def list_shapes() -> dict[str, tuple[int, ...]]:
    """List the names and shapes of all weights, as fairseq2 has them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for k, kernel in enumerate(KERNELS):
        add(f"{CONVS}.{k}.conv", CHANNELS, CHANNELS if k else 1, kernel)
        add(f"{CONVS}.{k}.layer_norm", CHANNELS)
    add(f"{FRONT}.post_extract_layer_norm", CHANNELS)
    add(f"{FRONT}.model_dim_proj", DIM, CHANNELS)
    shapes[f"{FRONT}.pos_encoder.conv.bias"] = (DIM,)
    shapes[f"{FRONT}.pos_encoder.conv.weight_g"] = (1, 1, POSITIONS)
    shapes[f"{FRONT}.pos_encoder.conv.weight_v"] = (DIM, DIM // GROUPS, POSITIONS)
    for n in range(LAYERS):
        for part in ("q_proj", "k_proj", "v_proj", "output_proj"):
            add(f"encoder.layers.{n}.self_attn.{part}", DIM, DIM)
        add(f"encoder.layers.{n}.ffn.inner_proj", INNER, DIM)
        add(f"encoder.layers.{n}.ffn.output_proj", DIM, INNER)
        for norm in ("self_attn_layer_norm", "ffn_layer_norm"):
            add(f"encoder.layers.{n}.{norm}", DIM)
    add("encoder.layer_norm", DIM)
    add("final_proj", VOCABULARY, DIM)
    return shapes


def draw() -> tuple[Weights, Tensor]:
    """Draw the weights, float32 by name, and a waveform (1, samples)."""
    rng = np.random.default_rng(SEED)
    weights = {}
    for name, shape in sorted(list_shapes().items()):
        scale = 0.5 if name.endswith("weight_g") else 0.2
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        weights[name] = torch.from_numpy(rng.normal(centre, scale, shape)).float()
    return weights, torch.from_numpy(rng.normal(0.1, 0.3, (1, SAMPLES))).float()


def compute(weights: Weights, waveform: Tensor) -> Tensor:
    """Compute the logits (frames, pieces) in float64."""
    w = {name: value.double() for name, value in weights.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    x = F.layer_norm(waveform.double(), waveform.shape[-1:], eps=1e-5)[:, None]
    for k, stride in enumerate(STRIDES):
        x = F.conv1d(x, w[f"{CONVS}.{k}.conv.weight"], w[f"{CONVS}.{k}.conv.bias"], stride)
        x = F.gelu(norm(x.transpose(1, 2), f"{CONVS}.{k}.layer_norm").transpose(1, 2))
    x = linear(norm(x.transpose(1, 2), f"{FRONT}.post_extract_layer_norm"), f"{FRONT}.model_dim_proj")
    position = f"{FRONT}.pos_encoder.conv"
    v = w[f"{position}.weight_v"]
    kernel = w[f"{position}.weight_g"] * v / v.norm(dim=(0, 1), keepdim=True)
    places = F.conv1d(x.transpose(1, 2), kernel, w[f"{position}.bias"], padding=POSITIONS // 2, groups=GROUPS)
    x = x + F.gelu(places[..., :-1]).transpose(1, 2)
    for n in range(LAYERS):
        at = f"encoder.layers.{n}"
        y = norm(x, f"{at}.self_attn_layer_norm")
        query, key, value = (
            linear(y, f"{at}.self_attn.{part}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("q_proj", "k_proj", "v_proj")
        )
        scores = query @ key.transpose(2, 3) / (DIM // HEADS) ** 0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{at}.self_attn.output_proj")
        y = F.gelu(linear(norm(x, f"{at}.ffn_layer_norm"), f"{at}.ffn.inner_proj"))
        x = x + linear(y, f"{at}.ffn.output_proj")
    return linear(norm(x, "encoder.layer_norm"), "final_proj")[0]


def make() -> dict[str, Any]:
    """Make everything that the file holds."""
    return {"shapes": list_shapes(), "logits": compute(*draw()).tolist()}


def main() -> None:
    """Write the file into the folder that is given, or into the tests."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "tests" / "parity" / "goldens"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "omniasr.json").write_text(json.dumps(make()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
