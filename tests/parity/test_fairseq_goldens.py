"""fairseq's formula, from an independent transcription in float64 (tools/make_fairseq_goldens.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speechssl.config.model import ModelConfig, QuantizerConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.model.pretraining import PretrainingOutput, compute_logits, measure_features
from speechssl.model.quantizer import GumbelQuantizer
from speechssl.model.wav2vec2 import Features
from speechssl.objectives.wav2vec2 import ContrastiveObjective, compute_terms

ROOT = Path(__file__).parents[2]
GOLDENS: dict[str, Any] = json.loads((ROOT / "tests/parity/goldens/fairseq.json").read_text(encoding="utf-8"))
OUTPUTS = GOLDENS["outputs"]

LOSS_BAR, GRADIENT_BAR = 1e-6, 1e-5


def read(name: str) -> Tensor:
    return torch.tensor(GOLDENS["inputs"][name], dtype=torch.float32)


class Ours:
    """Our quantizer, similarities and losses on the inputs of the goldens."""

    def __init__(self) -> None:
        settings = GOLDENS["settings"]
        rows, masked, channels = read("features").shape
        groups, codes, part = read("codebook").shape
        self.quantizer = GumbelQuantizer(
            QuantizerConfig(num_groups=groups, num_codes=codes, codevector_dim=groups * part), channels
        )
        self.projection = nn.Linear(groups * part, read("target_weight").shape[0])
        with torch.no_grad():
            self.quantizer.codebook.copy_(read("codebook"))
            self.quantizer.logits.weight.copy_(read("code_weight"))
            self.quantizer.logits.bias.copy_(read("code_bias"))
            self.projection.weight.copy_(read("target_weight"))
            self.projection.bias.copy_(read("target_bias"))
        self.leaves = {name: read(name).requires_grad_() for name in ("features", "raw_features", "predictions")}
        self.quantized = self.quantizer(self.leaves["features"], read("noise"), settings["temperature"])
        self.targets = self.projection(self.quantized.vectors)
        negatives = torch.tensor(GOLDENS["inputs"]["negatives"])
        predictions = self.leaves["predictions"]
        self.logits, removed = compute_logits(
            predictions, self.targets, self.quantized.codes, negatives, settings["logit_temperature"]
        )
        raw = self.leaves["raw_features"]
        output = PretrainingOutput(
            logits=self.logits,
            valid=torch.ones(rows, masked, dtype=torch.bool),
            removed=removed,
            codes=self.quantized.codes,
            soft_probs=self.quantized.soft_probs,
            features=measure_features(Features(raw, raw, None)),
            context=predictions,
        )
        self.terms = compute_terms(output, torch.ones(1, rows), ContrastiveConfig(feature_penalty_weight=10.0))

    def list_gradients(self) -> dict[str, Tensor | None]:
        return {
            "codebook": self.quantizer.codebook.grad,
            "code_weight": self.quantizer.logits.weight.grad,
            "code_bias": self.quantizer.logits.bias.grad,
            "target_weight": self.projection.weight.grad,
            "target_bias": self.projection.bias.grad,
            **{name: leaf.grad for name, leaf in self.leaves.items()},
        }


@pytest.fixture(scope="module")
def ours() -> Ours:
    return Ours()


def test_codes_and_targets(ours: Ours) -> None:
    assert ours.quantized.codes.tolist() == OUTPUTS["codes"]
    torch.testing.assert_close(ours.quantized.vectors, torch.tensor(OUTPUTS["vectors"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.targets, torch.tensor(OUTPUTS["targets"]), atol=1e-6, rtol=0)


def test_logits_and_removed_negatives(ours: Ours) -> None:
    wanted = torch.from_numpy(np.array(OUTPUTS["logits"], dtype=np.float32))
    assert torch.isinf(wanted).any(), "no negative equals its target: nothing is shown"
    torch.testing.assert_close(ours.logits, wanted, atol=1e-5, rtol=0)


def test_each_part_of_the_loss(ours: Ours) -> None:
    count = OUTPUTS["count"]
    wanted = {
        "contrastive": OUTPUTS["contrastive"],
        "diversity": ContrastiveConfig().diversity_weight * count * OUTPUTS["diversity"],
        "features": 10.0 * count * OUTPUTS["feature_penalty"],
    }
    for stat, value in wanted.items():
        assert float(ours.terms.stats[stat]) == pytest.approx(value, rel=LOSS_BAR), stat


def test_the_whole_loss_its_count_and_its_accuracy(ours: Ours) -> None:
    assert float(ours.terms.sum.detach()) == pytest.approx(OUTPUTS["total"], rel=LOSS_BAR)
    assert int(ours.terms.count) == OUTPUTS["count"]
    assert int(ours.terms.stats["right"]) == OUTPUTS["right"]
    assert ours.terms.stats["soft_perplexity"].tolist() == pytest.approx(OUTPUTS["perplexity"], rel=1e-6)


def test_what_is_logged_is_per_frame_and_in_bits(ours: Ours) -> None:
    nats = float(ours.terms.sum.detach()) / int(ours.terms.count)
    assert nats / np.log(2) == pytest.approx(OUTPUTS["logged_loss"], rel=LOSS_BAR)


def test_gradients() -> None:
    ours = Ours()
    ours.terms.sum.backward()  # type: ignore[no-untyped-call]
    found = ours.list_gradients()
    assert found.keys() == GOLDENS["gradients"].keys()
    for name, gradient in found.items():
        assert gradient is not None, name
        wanted = torch.tensor(GOLDENS["gradients"][name])
        assert float((gradient - wanted).norm() / wanted.norm()) < GRADIENT_BAR, name


def test_the_temperature_of_an_update(tiny_model_config: ModelConfig) -> None:
    """fairseq's `num_updates` are those that are done, ours is the one that is being made."""
    quantizer = replace(
        tiny_model_config.quantizer, temperature_start=2.0, temperature_end=0.5, temperature_decay=0.999995,
        temperature_reference_updates=0,
    )  # fmt: skip
    config = replace(tiny_model_config, quantizer=quantizer)
    objective = ContrastiveObjective(config, ContrastiveConfig(), seed=1, max_updates=10)
    for update, wanted in GOLDENS["temperatures"].items():
        assert objective.temperature(int(update) + 1) == pytest.approx(wanted, rel=1e-9), update


def test_the_script_makes_these_goldens(tmp_path: Path) -> None:
    script = str(ROOT / "tools/make_fairseq_goldens.py")
    subprocess.run([sys.executable, script, str(tmp_path)], check=True)
    made = json.loads((tmp_path / "fairseq.json").read_text(encoding="utf-8"))
    compare(made, GOLDENS)
    assert "speechssl" not in Path(script).read_text(encoding="utf-8").split('"""', 2)[2], "it is independent"


def compare(made: Any, stored: Any) -> None:
    """Compare two trees of numbers: another machine may round the last digits otherwise, differences more."""
    if isinstance(stored, dict):
        assert made.keys() == stored.keys()
        for name in stored:
            compare(made[name], stored[name])
        return
    if isinstance(stored, str):
        assert made == stored
        return
    np.testing.assert_allclose(np.array(made, dtype=float), np.array(stored, dtype=float), rtol=1e-6, atol=1e-7)
