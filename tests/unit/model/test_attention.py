"""Relative positions against their formulas, and in packed rows; convolutions that see no later frame."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from speechssl.config.model import ModelConfig
from speechssl.model import cpu
from speechssl.model.attention import SelfAttention, make_places
from speechssl.model.cpu.packing import Packing
from speechssl.model.speech_model import SpeechModel
from speechssl.model.transformer import Transformer

POSITIONS = ("relative", "relative_key", "rotary_input", "none")


@pytest.fixture
def config(tiny_model_config: ModelConfig) -> ModelConfig:
    """Give a network as the published Conformers."""
    keys = {"block": "conformer", "norm_first": True, "macaron": True, "block_bias": False, "block_kernel": 7}
    return replace(tiny_model_config, dropout=0.0, attention_dropout=0.0, position_left=4, position_right=2, **keys)


def draw(config: ModelConfig, positions: str) -> SelfAttention:
    torch.manual_seed(0)
    module = SelfAttention(replace(config, positions=positions))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_scores_of_distances_are_their_formulas(config: ModelConfig) -> None:
    """Each softmax by hand: a loop over heads, queries and keys."""
    for positions, length in product(("relative", "relative_key"), (1, 2, 9)):
        module, x = draw(config, positions), torch.randn(1, length, 32)
        places = make_places(module_config := replace(config, positions=positions), None, length, x.device)
        query, key, value = (part(x)[0].view(length, 2, 16) for part in (module.query, module.key, module.value))
        rows = torch.zeros(length, 2, 16)
        for head, i in product(range(2), range(length)):
            scores = []
            for j in range(length):
                if positions == "relative":
                    steps = (i - j) * 10_000.0 ** (-torch.arange(0, 32, 2) / 32)
                    place = module.place(torch.stack([steps.sin(), steps.cos()], -1).flatten()).view(2, 16)[head]
                    score = (query[i, head] + module.content_bias[head]) @ key[j, head]
                    score = score + (query[i, head] + module.place_bias[head]) @ place
                else:
                    score = query[i, head] @ (key[j, head] + module.distances[min(max(j - i, -4), 2) + 4])
                scores.append(score / 4.0)
            rows[i, head] = torch.stack(scores).softmax(0) @ value[:, head]
        found = module(x, None, places)
        torch.testing.assert_close(found, module.out(rows.flatten(1))[None], atol=1e-5, rtol=1e-4)
        assert module_config.num_block_weights > config.num_block_weights


def test_packed_rows_are_those_of_each_alone(config: ModelConfig) -> None:
    """Forward and backward, a row of nothing among them, with dropout too; padded rows give the same."""
    for positions in POSITIONS:
        module, counts = draw(config, positions), (7, 0, 4)
        known = replace(config, positions=positions)
        x = torch.randn(1, 11, 32, requires_grad=True)
        packing = Packing(counts, 7)
        packed = module(x, packing, make_places(known, packing, 11, x.device))
        rows = [x[:, :7], x[:, 7:]]
        alone = [module(row, None, make_places(known, None, row.shape[1], x.device)) for row in rows]
        torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-6, rtol=1e-5)
        (gradient,) = torch.autograd.grad(packed.square().sum(), x)
        (wanted,) = torch.autograd.grad(torch.cat(alone, 1).square().sum(), x)
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
        padded = torch.stack([x[0, :7], torch.cat([x[0, 7:], torch.full((3, 32), 9.0)])])
        scope = (torch.arange(7) < torch.tensor([7, 4])[:, None])[:, None, None]
        found = module(padded, scope, make_places(known, scope, 7, x.device))
        torch.testing.assert_close(found[1:, :4], alone[1], atol=1e-6, rtol=1e-5)
        module.dropout = 0.5
        assert module(x, packing, make_places(known, packing, 11, x.device)).isfinite().all()
        empty = Packing((0, 0), 7)
        assert module(x[:, :0], empty, make_places(known, empty, 0, x.device)).shape == (1, 0, 32)


def test_networks_of_every_value_do_not_depend_on_padding(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed, as on a CPU, and padded, as on a GPU."""
    bands = {"front_end": "kaldi_fbank", "block_causal": True, "final_norm": False, "block_activation": "gelu"}
    short, long = torch.randn(1, 6_000), torch.randn(1, 10_000)
    batch = torch.cat([torch.cat([short, 100.0 * torch.randn(1, 4_000)], 1), long])
    for positions, keys in product(POSITIONS, ({"block_norm": "batch"}, bands)):
        torch.manual_seed(0)
        model = SpeechModel(replace(config, positions=positions, **keys)).eval()
        alone = model(short)
        for is_packed in (True, False):
            with monkeypatch.context() as patch:
                if not is_packed:
                    patch.setattr(cpu, "is_for", lambda *_: False)
                both = model(batch, torch.tensor([6_000, 10_000]))
            count = int(both.num_frames[0])
            for found, wanted in zip([*both.layers, both.last], [*alone.layers, alone.last], strict=True):
                torch.testing.assert_close(found[:1, :count], wanted, atol=2e-5, rtol=1e-4)
        if "final_norm" in keys:
            assert torch.equal(alone.last, alone.layers[-1])


def test_a_causal_convolution_sees_no_later_frame(config: ModelConfig) -> None:
    torch.manual_seed(0)
    module = Transformer(replace(config, positions="none", block_causal=True)).blocks[0].convolution
    x = torch.randn(1, 20, 32, requires_grad=True)
    module(x, None)[0, 12].sum().backward()
    seen = (x.grad[0] != 0).any(-1).nonzero().flatten().tolist()
    assert seen == list(range(6, 13))


def test_autocast_computes_relative_positions_in_its_precision(config: ModelConfig) -> None:
    for positions in POSITIONS:
        module, x = draw(config, positions), torch.randn(1, 9, 32)
        places = make_places(replace(config, positions=positions), None, 9, x.device)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = module(x, None, places)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), module(x, None, places), atol=0.3, rtol=0.1)
