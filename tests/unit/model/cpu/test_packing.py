"""Nothing is computed for padding on the CPU: rows stand alone, and results and gradients are those of padded rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechssl.config.model import ModelConfig
from speechssl.model import cpu
from speechssl.model.cpu.packing import Packing
from speechssl.model.transformer import Transformer
from speechssl.model.wav2vec2 import Wav2Vec2

LENGTHS = (9_000, 6_500, 3_300)


@pytest.fixture
def network(tiny_model_config: ModelConfig) -> Wav2Vec2:
    torch.manual_seed(1)
    return Wav2Vec2(tiny_model_config)


@pytest.fixture
def waveforms() -> torch.Tensor:
    torch.manual_seed(2)
    padded = 0.1 * torch.randn(3, 9_000)
    for row, length in zip(padded, LENGTHS, strict=True):
        row[length:] = 0.0
    return padded


def test_packing_and_unpacking_give_the_rows_back() -> None:
    x = torch.arange(24.0).view(2, 4, 3)
    packing = Packing((4, 2), 4)
    packed = packing.pack(x)
    assert packed.shape == (1, 6, 3) and torch.equal(packed[0, 4:], x[1, :2])
    assert torch.equal(packing.unpack(packed), torch.stack([x[0], torch.cat([x[1, :2], torch.zeros(2, 3)])]))


def run(network: nn.Module, waveforms: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Give the valid frames of every state of every row, and the gradients of a sum over them."""
    assert isinstance(network, Wav2Vec2)
    network.zero_grad(set_to_none=True)
    features = network.encode(waveforms, torch.tensor(LENGTHS))
    last, states = network.contextualise(features)
    assert features.num_frames is not None
    rows = [x[row, :count] for x in (*states, last) for row, count in enumerate(features.num_frames.tolist())]
    torch.cat(rows).square().sum().backward()
    return [row.detach() for row in rows], [p.grad for p in network.parameters() if p.grad is not None]


def test_packed_rows_are_the_padded_ones(
    network: Wav2Vec2, waveforms: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that GPUs and compiled graphs take keeps the padding."""
    network.eval()
    packed, gradients = run(network, waveforms)
    monkeypatch.setattr(cpu, "is_for", lambda *_: False)
    padded, expected = run(network, waveforms)
    for actual, wanted in zip(packed, padded, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    assert len(gradients) == len(expected) > 20
    largest = max(float(wanted.abs().max()) for wanted in expected)
    for actual, wanted in zip(gradients, expected, strict=True):
        assert float((actual - wanted).abs().max()) <= 1e-5 * largest


@torch.no_grad()
def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it(network: Wav2Vec2, waveforms: torch.Tensor) -> None:
    together, _ = network.eval().encode(waveforms, torch.tensor(LENGTHS)), None
    alone = network.encode(waveforms[1:2, :6_500], torch.tensor(LENGTHS[1:2]))
    assert alone.num_frames is not None
    count = int(alone.num_frames)
    assert torch.equal(together.normed[1, :count], alone.normed[0, :count])
    assert not together.raw[1, count + 10 :].any(), "nothing is computed beyond the last step of a row"


def test_blocks_see_no_padding(tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = Transformer(tiny_model_config).eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    x = torch.randn(2, 7, tiny_model_config.model_dim)
    last, _ = model(x, torch.tensor([7, 3]))
    assert seen == [(1, 10, tiny_model_config.model_dim)] * 2
    assert not last[1, 3:].any()
