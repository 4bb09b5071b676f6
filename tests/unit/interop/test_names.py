"""One table of names a family: every weight has a name there, no two share one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError
from speechssl.interop.names import MASK, POSITIONS, list_names, rename, respell
from tests.cases import each_case

NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mhubert": {"position_norm": "batch", "feature_norm": False},
    "data2vec": {"position_norm": "layer", "position_depth": 3},
    "wavlm": {"position_buckets": 8},
}


@each_case("network", NETWORKS)
@each_case("family", POSITIONS)
@each_case("kind", ["backbone", "pretraining", "ctc"])
@each_case("norm", ["group", "layer"])
def test_every_weight_has_one_name(
    network: str, family: str, kind: str, norm: str, tiny_model_config: ModelConfig
) -> None:
    if family == "fairseq2" and (network, norm) != ("plain", "layer"):
        # omniASR's networks are of one kind.
        return
    # As many blocks as two digits, so that 1 and 10 are told apart.
    config = replace(tiny_model_config, num_layers=12, conv_norm=norm, conv_bias=norm == "layer", **NETWORKS[network])
    names = {name: rename(name, family) for name in list_names(config, kind)}
    lost = {name for name, theirs in names.items() if theirs is None}
    lost -= {MASK} if family == "torchaudio" else set()
    assert all(family == "torchaudio" and name.startswith("pretraining.") for name in lost)
    kept = [theirs for theirs in names.values() if theirs is not None]
    assert len(set(kept)) == len(kept)
    assert not any("backbone" in theirs or "blocks" in theirs for theirs in kept)


def test_wrappers_are_stripped_in_any_order() -> None:
    weights = {"module._orig_mod.model.wav2vec2.a": torch.zeros(1), "_orig_mod.module.b": torch.zeros(1)}
    assert set(respell(weights, "fairseq", "a.pt", "checkpoint")) == {"a", "b"}
    with pytest.raises(CheckpointError, match="has a under two prefixes"):
        respell({"module.a": torch.zeros(1), "a": torch.zeros(1)}, "fairseq", "a.pt", "checkpoint")
