"""Conformer blocks against torchaudio's, rotary positions against their formula, and rows that stand alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchaudio.models.conformer import ConformerLayer

from speechssl.config.data import TextConfig
from speechssl.config.model import ModelConfig
from speechssl.errors import CheckpointError, ConfigError
from speechssl.inference.embed import embed
from speechssl.interop.load import load_model, write_model
from speechssl.model import cpu
from speechssl.model.attention import make_rotation, rotate
from speechssl.model.conformer import BatchNorm, ConformerBlock
from speechssl.model.cpu.packing import Packing
from speechssl.model.speech_model import SpeechModel
from speechssl.model.transformer import Transformer
from speechssl.text.vocabulary import build_vocabulary


@pytest.fixture
def config(tiny_model_config: ModelConfig) -> ModelConfig:
    """Give a network of Conformer blocks at 25 Hz."""
    keys = {"front_end": "log_mel", "frame_rate": 25, "norm_first": True, "block": "conformer", "positions": "rotary"}
    return replace(tiny_model_config, name="conformer", mel_kernels=[5, 5], block_kernel=7, **keys)


def test_the_block_of_the_paper_is_torchaudios(config: ModelConfig) -> None:
    """With the same weights: values in training and outside it, gradients, and what batch norm remembers."""
    torch.manual_seed(0)
    theirs = ConformerLayer(32, 64, 2, 7)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = ConformerBlock(replace(config, macaron=True, block_norm="batch", dropout=0.0, attention_dropout=0.0))
    names = {
        r"^ffn1\.sequential\.": "first.", r"^ffn2\.sequential\.": "last.",
        r"^(first|last)\.0\.": r"\1.norm.", r"^(first|last)\.1\.": r"\1.inner.", r"^(first|last)\.4\.": r"\1.outer.",
        r"^self_attn_layer_norm": "attention_norm", r"^self_attn\.out_proj": "attention.out",
        r"^conv_module\.layer_norm": "convolution_norm", r"^conv_module\.sequential\.0": "convolution.gates",
        r"^conv_module\.sequential\.2": "convolution.depthwise", r"^conv_module\.sequential\.3": "convolution.norm",
        r"^conv_module\.sequential\.5": "convolution.out", r"^final_layer_norm": "norm",
    }  # fmt: skip

    def translate(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for given, value in values.items():
            name = given
            for pattern, new in names.items():
                name = re.sub(pattern, new, name)
            if name.startswith("self_attn.in_proj"):
                kind = name.rpartition("_")[2]
                parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
                found |= {f"attention.{part}.{kind}": rows for part, rows in parts}
            elif "num_batches" not in name:
                found[name] = value.squeeze(-1) if value.shape[-1:] == (1,) and "depthwise" not in name else value
        return found

    ours.load_state_dict(translate(theirs.state_dict()))
    x = torch.randn(3, 19, 32)
    for training in (True, False):
        wanted = theirs.train(training)(x.transpose(0, 1), None).transpose(0, 1)
        found = ours.train(training)(x, None)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        for module, out in ((theirs, wanted), (ours, found)):
            module.zero_grad()
            out.square().sum().backward()
        expected = translate({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
        assert expected.keys() == dict(ours.named_parameters()).keys()
        largest = max(float(value.abs().max()) for value in expected.values())
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5 * largest, rtol=1e-4)
    remembered = translate(theirs.state_dict())
    for name, value in ours.named_buffers():
        torch.testing.assert_close(value, remembered[name], atol=1e-5, rtol=1e-5)


def test_rotary_positions_are_their_formula() -> None:
    """Multiplication by e^(i · place · angle); scores depend on differences of places; packed rows count from 0."""
    query, key = torch.randn(1, 9, 2, 6), torch.randn(1, 9, 2, 6)
    turned = [rotate(x, make_rotation(None, 9, 6, x.device)) for x in (query, key)]
    for place, head, pair in product(range(9), range(2), range(3)):
        before = complex(*query[0, place, head, 2 * pair : 2 * pair + 2].tolist())
        after = before * np.exp(1j * place * 10_000.0 ** (-2 * pair / 6))
        found = complex(*turned[0][0, place, head, 2 * pair : 2 * pair + 2].tolist())
        assert abs(found - after) < 1e-5, (place, head, pair)
    same = rotate(torch.ones(1, 9, 1, 6), make_rotation(None, 9, 6, query.device))[0, :, 0]
    scores = same @ same.T
    for offset in range(1, 9):
        along = scores.diagonal(offset)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=1e-5)
    packed = make_rotation(Packing((4, 0, 5), 5), 9, 6, query.device)
    rows = [make_rotation(None, count, 6, query.device) for count in (4, 5)]
    assert torch.equal(packed, torch.cat(rows, 1))


def test_a_row_does_not_depend_on_padding_or_companions(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed, as on a CPU, and padded, as on a GPU; batch norm outside training."""
    short, long = torch.randn(1, 12_000), torch.randn(1, 20_000)
    batch = torch.cat([torch.cat([short, 100.0 * torch.randn(1, 8_000)], 1), long])
    for norm, positions, macaron in (("layer", "rotary", False), ("batch", "convolutional", True)):
        torch.manual_seed(0)
        model = SpeechModel(replace(config, block_norm=norm, positions=positions, macaron=macaron)).eval()
        alone = model(short)
        for is_packed in (True, False):
            with monkeypatch.context() as patch:
                if not is_packed:
                    patch.setattr(cpu, "is_for", lambda *_: False)
                both = model(batch, torch.tensor([12_000, 20_000]))
            count = int(both.num_frames[0])
            assert count == alone.last.shape[1] == 19
            for found, wanted in zip([*both.layers, both.last], [*alone.layers, alone.last], strict=True):
                torch.testing.assert_close(found[:1, :count], wanted, atol=2e-5, rtol=1e-4)


def test_batch_norm_sees_valid_frames_alone_and_rests_where_it_is_frozen() -> None:
    torch.manual_seed(0)
    x, counts = 3.0 * torch.randn(2, 7, 4) + 1.0, (7, 4)
    valid = (torch.arange(7) < torch.tensor(counts)[:, None])[:, None, None]
    rows = torch.cat([row[:count] for row, count in zip(x, counts, strict=True)])
    ours, packed, theirs = BatchNorm(4), BatchNorm(4), nn.BatchNorm1d(4)
    x[1, 4:] = torch.nan
    found, wanted = ours(torch.nan_to_num(x, 1e3), valid), theirs(rows)
    torch.testing.assert_close(torch.cat([found[0], found[1, :4]]), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed(rows[None], Packing(counts, 7))[0], wanted, atol=1e-5, rtol=1e-5)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
        torch.testing.assert_close(getattr(packed, name), getattr(theirs, name))
    before = ours.running_mean.clone()
    ours(torch.full((1, 3, 4), torch.nan), None)
    assert torch.equal(ours.running_mean, before), "an update that the guard skips"
    ours.requires_grad_(False)
    frozen = ours(rows[None], None)
    assert torch.equal(ours.running_mean, before)
    torch.testing.assert_close(frozen, ours.eval()(rows[None], None), atol=0, rtol=0)


def test_blocks_are_dropped_and_computed_again_like_the_transformers(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model, x, gradients = Transformer(replace(config, macaron=True)), torch.randn(2, 9, 32), []
    for again in (False, True):
        model.activation_checkpointing = again
        model.zero_grad()
        torch.manual_seed(3)
        out, states = model(x, torch.tensor([9, 6]), torch.tensor([True, False]))
        assert torch.equal(states[2], states[1])
        out.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(value is not None for value in gradients[0])
    assert not any(p.grad.any() for p in model.blocks[1].parameters() if p.grad is not None)
    torch.testing.assert_close(gradients[1], gradients[0], atol=0, rtol=0)


def test_our_own_format_keeps_it_and_others_have_no_place(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = SpeechModel(replace(config, block_norm="batch"), build_vocabulary(TextConfig(), [])).train()
    model(torch.randn(2, 9_000)), model.eval()
    write_model(model, tmp_path / "out", "speechssl")
    sound = torch.randn(1, 9_000)
    assert torch.equal(load_model(str(tmp_path / "out")).logits(sound)[0], model.logits(sound)[0])
    plain = {"front_end": "convolutions", "frame_rate": 50}
    rotary = plain | {"block": "transformer"}
    for format, given, sentence in (
        *((name, rotary, r"`model\.positions` must be conv.*is rotary") for name in ("fairseq", "torchaudio")),
        *((name, plain, r"`model\.block` must be transf.*is conformer") for name in ("fairseq", "torchaudio")),
    ):
        other = SpeechModel(replace(config, **given))
        with pytest.raises(CheckpointError, match=sentence):
            write_model(other, tmp_path / "other", format)
    assert not (tmp_path / "other").exists()


def test_embeddings_have_the_times_of_their_frames(config: ModelConfig, speech: Callable[..., np.ndarray]) -> None:
    """Also where windows are put together: each frame lies where a single pass has it."""
    torch.manual_seed(2)
    model, sound = SpeechModel(config), speech(4.0, 5)
    whole, parts = (embed(model, sound, sample_rate=16_000, pooling="frames", window_s=s) for s in (30.0, 1.5))
    count = config.count_frames(len(sound))
    for table in (whole, parts):
        starts, ends = (np.array(table.column(name)) for name in ("start_s", "end_s"))
        np.testing.assert_allclose(starts, 0.04 * np.arange(count), atol=1e-9)
        np.testing.assert_allclose(ends, starts + 0.025, atol=1e-9)


def test_mistakes_are_named(config: ModelConfig) -> None:
    for keys, sentence in (
        ({"frame_rate": 100}, r"`model\.frame_rate` must be 25 or 50, but is 100"),
        (
            {"front_end": "convolutions"},
            r"`model\.front_end` must be log_mel where model\.frame_rate is 25, but is 'conv",
        ),
        ({"mel_kernels": [3], "mel_channels": [32]}, r"`model\.mel_kernels` must be of two convolutions or more where"),
        ({"block": "branchformer"}, r"`model\.block` must be one of transformer, conformer"),
        ({"block_norm": "group"}, r"`model\.block_norm` must be one of layer, batch"),
        ({"block_kernel": 8}, r"`model\.block_kernel` must be odd, but is 8"),
        ({"norm_first": False}, r"`model\.norm_first` must be true where model\.block is conformer"),
        ({"positions": "learnt"}, r"`model\.positions` must be one of convolutional, rotary, rotary_input, relative, "),
        ({"position_left": -1}, r"`model\.position_left` must be a whole number between 0 and 65536, but is -1"),
        ({"block_activation": "relu"}, r"`model\.block_activation` must be one of silu, gelu, but is 'relu'"),
        ({"num_heads": 32}, r"`model\.model_dim` must be an even multiple of model\.num_heads \(32\)"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            replace(config, **keys)
