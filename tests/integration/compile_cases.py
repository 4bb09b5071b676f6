"""The three steps as one graph each; test_compile.py runs these in a process of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.ctc import contextualise
from speechssl.objectives.losses import compute_ctc_loss
from speechssl.objectives.wav2vec2 import compute_terms
from speechssl.text.vocabulary import build_vocabulary

NETWORKS: dict[str, dict[str, Any]] = {
    "group": {},
    "layer": {"conv_norm": "layer", "conv_bias": True, "norm_first": True, "normalize_waveform": True},
}
NUM_MASKED, NUM_NEGATIVES = 10, 5

Step = Callable[..., dict[str, Tensor]]


def step_pretraining(model: SpeechModel, given: dict[str, Any]) -> dict[str, Tensor]:
    assert model.pretraining is not None
    names = ("waveforms", "num_samples", "mask", "negatives", "noise", "temperature", "keep")
    output = model.pretraining(*(given[name] for name in names))
    terms = compute_terms(output, given["membership"], ContrastiveConfig())
    return {"loss": terms.sum / terms.count, "count": terms.count, "logits": output.logits, **terms.stats}


def step_ctc(model: SpeechModel, given: dict[str, Any]) -> dict[str, Tensor]:
    names = ("waveforms", "num_samples", "mask", "channel_mask", "keep")
    context, _, num_frames = contextualise(model, *(given[name] for name in names))
    assert model.head is not None
    logits = model.head(context)
    loss = compute_ctc_loss(logits, num_frames, given["labels"], given["num_labels"])
    return {"loss": loss / len(logits), "logits": logits, "num_frames": num_frames}


def step_extraction(model: SpeechModel, given: dict[str, Any]) -> dict[str, Tensor]:
    frames = model(given["waveforms"], given["num_samples"])
    layers = {f"layer {number}": layer for number, layer in enumerate(frames.layers)}
    return {"last": frames.last, "num_frames": frames.num_frames, **layers}


STEPS: dict[str, Step] = {"pretraining": step_pretraining, "ctc": step_ctc, "extraction": step_extraction}


def draw(model: SpeechModel, num_samples: int, seed: int) -> dict[str, Any]:
    """Draw a batch of three ragged rows, with everything that a loader and an objective draw."""
    generator = torch.Generator().manual_seed(seed)
    config, quantizer = model.config, model.config.quantizer
    num_frames = config.count_frames(num_samples)
    mask = torch.zeros(3, num_frames, dtype=torch.bool)
    mask[:, 3 + seed : 3 + seed + NUM_MASKED] = True
    uniform = torch.rand(3, NUM_MASKED, quantizer.num_groups, quantizer.num_codes, generator=generator)
    return {
        "waveforms": 0.1 * torch.randn(3, num_samples, generator=generator),
        "num_samples": torch.tensor([num_samples, num_samples - 700, num_samples - 3000]),
        "mask": mask,
        "channel_mask": torch.rand(3, config.model_dim, generator=generator) < 0.1,
        "negatives": torch.randint(0, NUM_MASKED, (3, NUM_MASKED, NUM_NEGATIVES), generator=generator),
        "noise": -torch.log(-torch.log(uniform.clamp(1e-6, 1 - 1e-6))),
        "temperature": 2.0 * 0.9**seed,
        "keep": torch.arange(config.num_layers) != seed,
        "membership": torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        "labels": torch.randint(1, 20, (3, 6), generator=generator),
        "num_labels": torch.tensor([6, 2 + seed, 5]),
    }


def build(name: str, config: ModelConfig, network: str) -> SpeechModel:
    torch.manual_seed(3)
    config = replace(config, **NETWORKS[network])
    if name == "pretraining":
        return SpeechModel(config, pretraining=True).train()
    return SpeechModel(config, build_vocabulary(TextConfig(), [])).train(name == "ctc")


def run(step: Step, model: SpeechModel, given: dict[str, Any]) -> dict[str, Tensor]:
    """Run a step with its backward where it has a loss: results, and the gradient of each parameter that has one."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(11)
    if not model.training:
        with torch.no_grad():
            return step(model, given)
    results = step(model, given)
    results["loss"].backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) > 20
    return {name: value.detach() for name, value in {**results, **gradients}.items()}


def compare(name: str, model: SpeechModel, compiled: Step, lengths: tuple[int, ...]) -> None:
    """Compare a compiled step with eager mode, over several lengths, each with draws of its own."""
    for seed, num_samples in enumerate(lengths):
        given = draw(model, num_samples, seed)
        with patch.object(torch.compiler, "is_compiling", return_value=True):
            # Eager mode by the way that graphs take: the CPU's own has other draws of dropout.
            expected = run(STEPS[name], model, given)
        found = run(compiled, model, given)
        assert expected.keys() == found.keys()
        for what, value in expected.items():
            scale = max(1.0, float(value[value.isfinite()].abs().max())) if value.is_floating_point() else 1.0
            # The bias of the first convolution sums thousands of gradients that nearly cancel: 1.05e-5 was seen.
            bar = 3e-5 if what.startswith("gradient") else 1e-5
            say = f"{what}, {num_samples}: {{}}".format
            torch.testing.assert_close(found[what], value, atol=bar * scale, rtol=0, msg=say)


@pytest.mark.parametrize("name", STEPS)
def test_no_graph_breaks(name: str, tiny_model_config: ModelConfig) -> None:
    model = build(name, tiny_model_config, "group")
    compare(name, model, torch.compile(STEPS[name], backend="aot_eager", fullgraph=True), (8_000,))


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_two_graphs_serve_every_length_and_draw(name: str, tiny_model_config: ModelConfig) -> None:
    """LayerDrop, masks, noise and temperature differ from call to call, and nothing is compiled again for them."""
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    model = build(name, tiny_model_config, "group")
    compiled = torch.compile(STEPS[name], backend=count, fullgraph=True, dynamic=True)
    compare(name, model, compiled, (16_000, 12_345, 20_000))
    assert len(graphs) <= 2


@pytest.mark.slow
# inductor's own lowering of `diagonal` calls what torch 2.14 has deprecated.
@pytest.mark.filterwarnings("ignore:.*_prims_common.check.*:FutureWarning")
# Not every pair: each takes the compiler a minute or two on two cores.
@pytest.mark.parametrize(("name", "network"), [("pretraining", "group"), ("ctc", "layer"), ("extraction", "group")])
def test_inductor(name: str, network: str, tiny_model_config: ModelConfig) -> None:
    """Without dropout, whose random numbers inductor draws in its own way."""
    still = replace(tiny_model_config, dropout=0.0, attention_dropout=0.0, input_dropout=0.0, feature_dropout=0.0)
    model = build(name, still, network)
    compare(name, model, torch.compile(STEPS[name], fullgraph=True), (16_000,))


@pytest.mark.slow
# Dynamo looks whether what a norm gets has a gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*_prims_common.check.*:FutureWarning")
def test_compiled_blocks_are_the_eager_ones(tiny_model_config: ModelConfig) -> None:
    """`training.compile`: padded rows, a skipped block and activation checkpointing included."""
    still = replace(tiny_model_config, dropout=0.0, attention_dropout=0.0, input_dropout=0.0, feature_dropout=0.0)
    model = build("ctc", still, "layer")
    given = draw(model, 16_000, 0)
    expected = run(step_ctc, model, given)
    model.backbone.transformer.compile_blocks()
    for model.backbone.transformer.activation_checkpointing in (False, True):
        found = run(step_ctc, model, given)
        for what, value in expected.items():
            if what != "logits":  # those of padded frames have no meaning
                scale = max(1.0, float(value.abs().max()))
                torch.testing.assert_close(found[what], value, atol=3e-5 * scale, rtol=0, msg=f"{what}: {{}}".format)
