"""One forward and one loss against `transformers`, at reduced size, for both norm variants."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.config import ContrastiveConfig, MaskConfig, ModelConfig, QuantizerConfig
from speechssl.losses import average_by_sub_batch, compute_contrastive_loss, compute_diversity_loss
from speechssl.model.lengths import compute_num_frames
from speechssl.model.masking import sample_masks, sample_negatives
from speechssl.model.pretraining import PretrainingModel, find_masked
from tests.parity.hf_weights import make_hf_config, rename

transformers = pytest.importorskip("transformers", reason="transformers is the reference of this test")

NUM_NEGATIVES = 10
GROUP = {"conv_norm": "group", "conv_bias": False, "norm_first": False}
LAYER = {"conv_norm": "layer", "conv_bias": True, "norm_first": True}


def make_config(**changes: object) -> ModelConfig:
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


@pytest.fixture(params=[GROUP, LAYER], ids=["group", "layer"])
def pair(request: pytest.FixtureRequest) -> tuple[PretrainingModel, torch.nn.Module]:
    """Our model and theirs with the same weights."""
    torch.manual_seed(3)
    config = make_config(**request.param)
    theirs = transformers.Wav2Vec2ForPreTraining(make_hf_config(config, NUM_NEGATIVES))
    ours = PretrainingModel(config)
    ours.load_state_dict(rename(theirs.state_dict(), config))
    return ours, theirs


def draw_inputs(batch: int = 2, num_samples: int = 24_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    config = make_config()
    frames = compute_num_frames(num_samples, config.conv_kernels, config.conv_strides)
    masks = sample_masks([frames] * batch, MaskConfig(), rng)
    negatives = [sample_negatives(int(mask.sum()), NUM_NEGATIVES, rng) for mask in masks]
    waveforms = torch.from_numpy(rng.normal(0, 0.1, (batch, num_samples)).astype(np.float32))
    return waveforms, torch.from_numpy(np.stack(masks)), torch.from_numpy(np.stack(negatives))


def test_hidden_states_equal_transformers(pair: tuple[PretrainingModel, torch.nn.Module]) -> None:
    ours, theirs = pair
    waveforms, _, _ = draw_inputs()
    expected = theirs.eval().wav2vec2(waveforms, mask_time_indices=None, output_hidden_states=True)
    features = ours.eval().backbone.encode(waveforms, None)
    last, states = ours.backbone.contextualise(features)
    torch.testing.assert_close(features.normed, expected.extract_features, atol=1e-5, rtol=0)
    torch.testing.assert_close(last, expected.last_hidden_state, atol=1e-5, rtol=0)
    inner = len(states) - 1 if ours.backbone.transformer.norm_first else len(states)
    for state, reference in zip(states[:inner], expected.hidden_states[:inner], strict=True):
        torch.testing.assert_close(state, reference, atol=1e-5, rtol=0)


def test_loss_equals_transformers(pair: tuple[PretrainingModel, torch.nn.Module]) -> None:
    """Evaluation mode: contrastive term, and the sum with the diversity term of the same soft choice."""
    ours, theirs = pair
    waveforms, mask, negatives = draw_inputs()
    positions, _ = find_masked(mask, negatives.shape[1])
    length = mask.shape[1]
    at_frames = torch.zeros(len(mask), length, NUM_NEGATIVES, dtype=torch.long)
    rows = (
        positions.gather(1, negatives.flatten(1)).view_as(negatives) + torch.arange(len(mask))[:, None, None] * length
    )
    at_frames.scatter_(1, positions[..., None].expand_as(negatives), rows)
    expected = theirs.eval()(waveforms, mask_time_indices=mask, sampled_negative_indices=at_frames)
    output = ours.eval()(waveforms, None, mask, negatives, None, 1.0)
    loss, _ = compute_contrastive_loss(output.logits, output.valid)
    assert float(loss.detach().sum()) == pytest.approx(float(expected.contrastive_loss.detach()), rel=1e-5)


def test_training_loss_equals_transformers_with_the_same_noise(
    pair: tuple[PretrainingModel, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train mode with the Gumbel noise injected into both: contrastive and diversity terms, and a gradient."""
    ours, theirs = pair
    waveforms, mask, negatives = draw_inputs()
    positions, _ = find_masked(mask, negatives.shape[1])
    batch, length = mask.shape
    config = make_config().quantizer
    noise = -torch.log(-torch.log(torch.rand(batch, length, config.num_groups, config.num_codes)))

    def inject(logits: torch.Tensor, tau: float, hard: bool) -> torch.Tensor:
        scores = logits + noise.view_as(logits)
        soft = torch.softmax(scores / tau, dim=-1)
        choice = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft.dtype)
        return choice - soft.detach() + soft

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", inject)
    at_frames = torch.zeros(batch, length, NUM_NEGATIVES, dtype=torch.long)
    rows = positions.gather(1, negatives.flatten(1)).view_as(negatives) + torch.arange(batch)[:, None, None] * length
    at_frames.scatter_(1, positions[..., None].expand_as(negatives), rows)
    theirs.train()
    theirs.set_gumbel_temperature(1.5)
    expected = theirs(waveforms, mask_time_indices=mask, sampled_negative_indices=at_frames)
    picked = noise.gather(1, positions[:, :, None, None].expand(-1, -1, config.num_groups, config.num_codes))
    output = ours.train()(waveforms, None, mask, negatives, picked, 1.5)
    loss, _ = compute_contrastive_loss(output.logits, output.valid)
    probs = average_by_sub_batch(output.soft_probs, output.valid, torch.ones(1, batch))
    count = output.valid.sum()
    total = loss.sum() + ContrastiveConfig().diversity_weight * compute_diversity_loss(probs).sum() * count
    assert float(total.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-5)
    expected.loss.backward()
    total.backward()
    ours_gradient = ours.backbone.transformer.blocks[0].inner.weight.grad
    theirs_gradient = theirs.wav2vec2.encoder.layers[0].feed_forward.intermediate_dense.weight.grad
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=1e-4, atol=1e-6)
