"""The quantizer: hard codes, straight-through gradient, noise with the right law."""

from __future__ import annotations

import pytest
import torch

from speechssl.config.model import QuantizerConfig
from speechssl.model.quantizer import GumbelQuantizer, sample_gumbel_noise


@pytest.fixture
def quantizer() -> GumbelQuantizer:
    torch.manual_seed(0)
    return GumbelQuantizer(QuantizerConfig(num_groups=2, num_codes=5, codevector_dim=6), input_dim=4)


def draw_noise(*shape: int) -> torch.Tensor:
    return sample_gumbel_noise(shape, torch.Generator().manual_seed(1), torch.device("cpu"))


def test_noise_is_gumbel() -> None:
    """Mean 0.5772 (Euler's constant), variance π²/6, finite everywhere."""
    noise = draw_noise(400_000)
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(1.6449, abs=0.03)


def test_vectors_are_exact_entries_with_and_without_noise(quantizer: GumbelQuantizer) -> None:
    features = torch.randn(3, 7, 4)
    for noise in (None, draw_noise(3, 7, 2, 5)):
        made = quantizer(features, noise, 0.7)
        assert made.codes.shape == (3, 7, 2)
        assert torch.equal(made.vectors, quantizer.lookup(made.codes))


def test_gradient_is_that_of_the_soft_choice(quantizer: GumbelQuantizer) -> None:
    features, noise = torch.randn(1, 3, 4), draw_noise(1, 3, 2, 5)
    weight = torch.randn(1, 3, 6)
    (quantizer(features, noise, 0.9).vectors * weight).sum().backward()
    straight = quantizer.logits.weight.grad.clone()
    quantizer.zero_grad()
    logits = quantizer.logits(features).view(1, 3, 2, 5)
    soft = torch.softmax((logits + noise) / 0.9, dim=-1)
    (torch.einsum("bmgv,gvd->bmgd", soft, quantizer.codebook).flatten(2) * weight).sum().backward()
    torch.testing.assert_close(straight, quantizer.logits.weight.grad)


def test_soft_probabilities_know_neither_noise_nor_temperature(quantizer: GumbelQuantizer) -> None:
    features = torch.randn(2, 3, 4)
    with_noise = quantizer(features, draw_noise(2, 3, 2, 5), 0.5).soft_probs
    assert torch.equal(with_noise, quantizer(features).soft_probs)
    torch.testing.assert_close(with_noise.sum(-1), torch.ones(2, 3, 2))


def test_initialisation_is_the_references() -> None:
    torch.manual_seed(0)
    large = GumbelQuantizer(QuantizerConfig(), input_dim=512)
    assert float(large.logits.weight.detach().std()) == pytest.approx(1.0, abs=0.01)
    assert float(large.logits.bias.detach().abs().max()) == 0.0
    assert 0.0 <= float(large.codebook.detach().min()) < 0.01
    assert 0.99 < float(large.codebook.detach().max()) < 1.0
