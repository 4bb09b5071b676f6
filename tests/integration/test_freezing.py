"""Frozen blocks stay as pretrained, learn later, and a resumed run does not notice; a run that gets no better ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import speechssl
from speechssl.errors import StoppedOnRequest
from tests.integration.test_training import (
    finetune,
    manifests,  # noqa: F401  (a fixture)
    pretrain,
    read_metrics,
    read_weights,
    stop_after,  # noqa: F401  (a fixture)
)

KEYS = {
    "freeze_layers": 1,
    "training.unfreeze_share": 0.5,
    "training.layer_lr_decay": 0.7,
    "training.freeze_share": 0.2,
    "intermediate_weight": 0.3,
    "model.self_conditioning": 1,
    "consistency_weight": 0.2,
    "model.layer_drop_prob": 0.3,
}
FROZEN = (
    "backbone.encoder.",
    "backbone.projection.",
    "backbone.transformer.position.",
    "backbone.transformer.blocks.0.",
)


def test_frozen_blocks_learn_later_and_a_resumed_run_is_the_same(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
) -> None:
    """Stopped once before the blocks learn: nothing of them has moved, in the average neither, and AdamW knows none."""
    pretrain(manifests, tmp_path / "pre", **{"training.max_updates": 1})
    keys = {**KEYS, "init": str(tmp_path / "pre")}
    finetune(manifests, tmp_path / "whole", **keys)
    stop_after(2)
    with pytest.raises(StoppedOnRequest):
        finetune(manifests, tmp_path / "parts", **keys)
    before, source = read_weights(tmp_path / "parts"), speechssl.load(tmp_path / "pre").state_dict()
    kept = [name for name in source if name.startswith(FROZEN)]
    assert len(kept) > 20
    for name in kept:
        assert torch.equal(before[name], source[name]) and torch.equal(before[f"ema/{name}"], source[name]), name
    learned = {name.split("/", 2)[2] for name in before if name.startswith("optimizer/")}
    assert learned and not any(name.startswith(FROZEN) for name in learned)
    finetune(manifests, tmp_path / "parts", **keys)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not any(torch.equal(whole[name], source[name]) for name in kept)
    last = [line for line in read_metrics(tmp_path / "whole") if line["split"] == "train"][-1]
    assert last["loss_intermediate"] > 0 and last["loss_consistency"] > 0


def test_a_run_without_patience_left_is_finished(manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    keys = {"model": "tiny", "training.lr": 1e-12, "training.validate_every": 1, "training.patience": 1}
    keys |= {"training.ema_decay": 0.0, "best_by": "wer"}
    first = finetune(manifests, tmp_path / "run", **keys)
    assert (first["updates"], first["best_update"], first["ended_by"]) == (2, 1, "training.patience")
    assert finetune(manifests, tmp_path / "run", **keys) == first
    assert "finished by training.patience after 2 updates of 6" in (tmp_path / "run" / "report.html").read_text()
    more = finetune(manifests, tmp_path / "run", **keys | {"training.patience": 0, "training.max_updates": 7})
    assert more["updates"] == 7 and "ended_by" not in more
