"""bf16 is the float32 network, rounded: no part of the loss or of its gradient may be wrong on a CPU that has bf16."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from speechssl.cli.compose import compose
from speechssl.config.model import ModelConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.model.layers import LayerNorm
from speechssl.model.pretraining import PretrainingModel
from speechssl.model.speech_model import SpeechModel
from speechssl.model.transformer import PositionalConvolution
from speechssl.objectives.losses import compute_contrastive_loss

OFF = ["model.dropout=0", "model.attention_dropout=0", "model.feature_dropout=0", "model.input_dropout=0"]


def compose_model(name: str) -> ModelConfig:
    config = compose("pretrain", [f"model={name}", "out=none", *OFF])
    assert isinstance(config, PretrainConfig)
    return config.model


def compute_gradients(model: PretrainingModel, bf16: bool) -> tuple[float, dict[str, Tensor]]:
    """Take the contrastive loss of 8 rows of 4 s to the transformer and the heads; the codes are float32's."""
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.randn(8, 64_000, generator=generator).cumsum(1) * 0.01
    negatives = torch.randint(0, 50, (8, 50, 100), generator=generator)
    model.zero_grad()
    with torch.no_grad():
        features = model.backbone.encode(waveforms, None)
        spans = torch.rand(8, 20, generator=generator) < 0.5
        mask = spans.repeat_interleave(10, 1)[:, : features.normed.shape[1]]
        mask[:, :50] = True
        quantized = model.quantizer(features.normed[:, :50])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        context, _ = model.backbone.contextualise(features, mask)
        predictions = model.context_projection(context[:, :50])
        targets = model.target_projection(quantized.vectors)
        similarity = nn.functional.cosine_similarity(predictions.float()[:, :, None], targets.float()[:, None], dim=-1)
        logits = torch.cat([similarity.diagonal(dim1=1, dim2=2)[..., None], similarity.gather(2, negatives)], -1)
        loss = compute_contrastive_loss(logits / 0.1, torch.ones(8, 50, dtype=torch.bool))[0].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_loss_and_gradients_in_bf16_are_those_of_float32(name: str) -> None:
    torch.manual_seed(0)
    model = PretrainingModel(compose_model(name))
    expected_loss, expected = compute_gradients(model, bf16=False)
    expected = {key: value.clone() for key, value in expected.items()}
    loss, gradients = compute_gradients(model, bf16=True)
    assert loss == pytest.approx(expected_loss, rel=0.01)
    assert gradients.keys() == expected.keys()
    for key, value in expected.items():
        # Keys' biases have no gradient but rounding; queries and keys of a fresh network hardly any.
        if ".key." not in key and ".query." not in key:
            error = float((gradients[key] - value).norm() / value.norm())
            assert error < 0.1, f"{key}: {error:.3f}"


def test_positions_in_bf16_whatever_the_channels_of_a_group() -> None:
    """oneDNN's bf16 convolution with AMX gives noise for 2 to 15 channels and most even kernels."""
    for groups, channels, kernel in product((2, 4, 16), (2, 8, 12, 16, 48), (16, 32, 128)):
        torch.manual_seed(0)
        position = PositionalConvolution(
            ModelConfig(model_dim=groups * channels, num_heads=1, position_kernel=kernel, position_groups=groups)
        )
        x = torch.randn(2, 150, groups * channels)
        with torch.no_grad():
            expected = position(x)
            with torch.autocast("cpu", torch.bfloat16):
                found = position(x.bfloat16())
        error = float((found.float() - expected).norm() / expected.norm())
        assert error < 0.02, f"{groups} groups of {channels}, kernel {kernel}: {error:.3f}"


def test_the_norm_of_many_bf16_frames_has_the_gradients_of_float32() -> None:
    """torch's own loses 94 % of this bias's gradient."""
    torch.manual_seed(0)
    norm = LayerNorm(64)
    x = torch.randn(4, 5_000, 64).bfloat16()
    gradient = (torch.randn(4, 5_000, 64) + torch.randn(64)).bfloat16()
    norm(x.float()).backward(gradient.float())
    expected = [parameter.grad.clone() for parameter in norm.parameters() if parameter.grad is not None]
    norm.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    out.backward(gradient)
    for parameter, value in zip(norm.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))


@torch.no_grad()
def test_a_network_in_float64_is_so_all_through(tiny_model_config: ModelConfig) -> None:
    """Which tells rounding from faults, where a difference to a peer grows with depth."""
    waveforms, num_samples = torch.randn(2, 9_000), torch.tensor([9_000, 6_000])
    for conv_norm, group_norm_frames in product(("group", "layer"), ("valid", "all")):
        torch.manual_seed(0)
        config = replace(tiny_model_config, conv_norm=conv_norm, group_norm_frames=group_norm_frames)
        model = SpeechModel(config).eval()
        expected = model(waveforms, num_samples).last
        found = model.double()(waveforms.double(), num_samples).last
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-4)
