"""The CPU's drop-ins against the references that they stand for, values and gradients.

Tolerances are relative to the largest value: 1e-5 in float32, 3e-5 through a norm, where nothing else is said.
"""

from __future__ import annotations

from dataclasses import replace
from inspect import unwrap
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.attention import attend, make_rotation, rotate
from speechssl.model.conformer import ConvolutionModule, convolve_depthwise
from speechssl.model.cpu import attention as cpu_attention
from speechssl.model.cpu import products
from speechssl.model.cpu.attention import GatedTable
from speechssl.model.cpu.dropout import draw_kept
from speechssl.model.cpu.packing import Packing
from speechssl.model.cpu.products import fold_group_norm, gelu_convolution
from speechssl.model.feature_encoder import FeatureEncoder, convolve
from speechssl.model.layers import Dropout, LayerNorm, PooledDropout, layer_norm
from speechssl.model.speech_model import SpeechModel
from speechssl.model.transformer import Transformer, gelu_linear, grouped_convolution


def assert_same_with_gradients(actual: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    """Compare two results of the same inputs, and the gradients of a random projection of them."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))
    direction = torch.randn_like(expected)
    pairs = zip(
        *(torch.autograd.grad((x * direction).sum(), inputs, retain_graph=True) for x in (actual, expected)),
        strict=True,
    )
    for mine, torchs in pairs:
        torch.testing.assert_close(mine, torchs, rtol=0, atol=tolerance * float(torchs.abs().max()))


def test_a_convolution_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the kernel and stride, with and without outputs that are left over, in parts and at once."""
    shapes = ((3, 2), (2, 2), (1, 1), (8, 4), (5, 2), (4, 4), (2, 3), (7, 3))
    for (kernel, stride), length, bias, part in product(shapes, (23, 24, 25), (True, False), (3, 2048)):
        monkeypatch.setattr(products, "_PART_FRAMES", part)
        torch.manual_seed(kernel * 10 + stride)
        conv = nn.Conv1d(6, 5, kernel, stride, bias=bias)
        z = torch.randn(3, length, 6, requires_grad=True)
        expected = conv(F.gelu(z).transpose(1, 2)).transpose(1, 2)
        assert_same_with_gradients(gelu_convolution(z, conv), expected, [z, *conv.parameters()])


def test_a_folded_norm_is_the_norm_of_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant offset of the waveform is what cancels in the covariance."""
    monkeypatch.setattr(products, "_PART_FRAMES", 7)
    for counts, offset in product(([39, 39], [9, 30]), (0.0, 0.5)):
        torch.manual_seed(1)
        conv, second = nn.Conv1d(1, 8, 10, 5, bias=False), nn.Conv1d(8, 4, 3, 2, bias=False)
        norm = nn.GroupNorm(8, 8)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        waveforms = 0.1 * torch.randn(2, 200) + offset
        folded = fold_group_norm(waveforms, conv, norm, None if counts[0] == 39 else torch.tensor(counts))
        convolved = conv(waveforms[:, None])
        normed = [norm(row[None, :, :n])[0].T for row, n in zip(convolved, counts, strict=True)]
        inputs = [conv.weight, norm.weight, norm.bias]
        for row, n in enumerate(counts):
            assert_same_with_gradients(folded.compute()[row, :n], normed[row], inputs, 3e-5)
        used = (counts[0] - 3) // 2 + 1
        expected = second(F.gelu(normed[0].T[None])).transpose(1, 2)
        found = gelu_convolution(folded, second)[:1, :used]
        assert_same_with_gradients(found, expected, [*inputs, second.weight], 3e-5)


def test_silence_stays_silent() -> None:
    """A variance of zero divides by the root of epsilon, as in torch."""
    conv, norm = nn.Conv1d(1, 4, 10, 5, bias=False), nn.GroupNorm(4, 4)
    product = fold_group_norm(torch.full((1, 100), 0.25), conv, norm, None)
    assert float(product.compute().detach().abs().max()) < 1e-4


def test_a_linear_layer_after_gelu_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_PART_FRAMES", 5)
    linear = nn.Linear(6, 4)
    z = torch.randn(2, 7, 6, requires_grad=True)
    for dropout in (0.0, 0.3):
        torch.manual_seed(5)
        actual = gelu_linear(z, linear, dropout)
        torch.manual_seed(5)
        # Its dropout is the drop-in, which draws the same.
        assert_same_with_gradients(actual, unwrap(gelu_linear)(z, linear, dropout), [z, *linear.parameters()])


def test_attention_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """One matrix at a time, in twos, or all at once; with dropout the formula, with what the drop-in draws."""
    key_mask = (torch.arange(11) < torch.tensor([[11], [6]]))[:, None, None]
    for scope, part_bytes, dropout in product((None, key_mask), (1, 2 * 11 * 11 * 4, 1 << 20), (0.0, 0.2)):
        monkeypatch.setattr(cpu_attention, "_PART_BYTES", part_bytes)
        inputs = [torch.randn(2, 3, 11, 4, requires_grad=True) for _ in range(3)]
        query, key, value = inputs
        torch.manual_seed(5)
        actual = attend(query, key, value, scope, dropout)
        torch.manual_seed(5)
        kept = draw_kept((6, 11, 11), dropout)
        scores = query @ key.transpose(2, 3) / 2.0
        weights = torch.softmax(scores if scope is None else scores.masked_fill(~scope, -torch.inf), -1)
        expected = (weights * kept.mask.view(2, 3, 11, 11) * kept.scale) @ value
        assert_same_with_gradients(actual, expected, inputs)
        if not dropout:
            assert_same_with_gradients(actual, unwrap(attend)(*inputs, scope, dropout), inputs)
            bf16 = [x.bfloat16() for x in inputs]
            found, wanted = attend(*bf16, scope, dropout), unwrap(attend)(*bf16, scope, dropout)
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2)


def test_attention_with_a_bias_of_distances_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded or not, packed, and with the scores of two heads at a time; gradients of gate and table too."""
    monkeypatch.setattr(cpu_attention, "_PART_BYTES", 2 * 11 * 11 * 4)
    torch.manual_seed(2)
    query, key, value = (torch.randn(2, 3, 11, 4, requires_grad=True) for _ in range(3))
    gate, table = torch.randn(2, 3, 11, requires_grad=True), torch.randn(3, 11, 11, requires_grad=True)
    inputs = [query, key, value, gate, table]
    mask = (torch.arange(11) < torch.tensor([[11], [4]]))[:, None, None]
    for scope in (None, mask):
        bias = GatedTable(gate, table)
        expected = unwrap(attend)(query, key, value, scope, 0.0, bias)
        assert_same_with_gradients(attend(query, key, value, scope, 0.0, bias), expected, inputs)
        bf16 = [x.bfloat16() for x in inputs]
        found, wanted = (run(*bf16[:3], scope, 0.0, GatedTable(*bf16[3:])) for run in (attend, unwrap(attend)))
        torch.testing.assert_close(found, wanted, rtol=0, atol=4e-2)
    packing = Packing((4, 0, 7), 9)
    packed = [x[:1].detach().requires_grad_() for x in (query, key, value, gate)] + [table]
    rows = [
        unwrap(attend)(*(x[:, :, row] for x in packed[:3]), None, 0.0, GatedTable(packed[3], table).cut(row))
        for row, count in zip(packing.slices, packing.num_frames, strict=True)
        if count
    ]
    found = attend(*packed[:3], packing, 0.0, GatedTable(packed[3], table))
    assert_same_with_gradients(found, torch.cat(rows, 2), packed)


def test_a_network_with_a_bias_of_distances_is_the_same_packed_and_alone() -> None:
    config = ModelConfig(num_layers=2, model_dim=16, ffn_dim=32, num_heads=2, position_kernel=8, position_groups=2)
    transformer = Transformer(replace(config, position_buckets=8, position_max_distance=10)).eval()
    x, num_frames = torch.randn(3, 20, 16), torch.tensor([20, 7, 13])
    with torch.no_grad():
        together, _ = transformer(x, num_frames)
        for row, alone, count in zip(together, x, num_frames.tolist(), strict=True):
            torch.testing.assert_close(row[:count], transformer(alone[None, :count], None)[0][0], rtol=0, atol=2e-6)


def test_rotations_and_depthwise_convolutions_are_the_references() -> None:
    """Padded or not, and packed: rows of several lengths, one of them empty, against each row alone."""
    config = ModelConfig(model_dim=32, num_heads=2, block_kernel=7)
    conv = ConvolutionModule(config).depthwise
    nn.init.normal_(conv.bias)
    weights = list(conv.parameters())
    x = torch.randn(2, 11, 32, requires_grad=True)
    key_mask = (torch.arange(11) < torch.tensor([[11], [2]]))[:, None, None]
    for scope in (None, key_mask):
        expected = unwrap(convolve_depthwise)(x, conv, scope)
        assert_same_with_gradients(convolve_depthwise(x, conv, scope), expected, [x, *weights])
    packing = Packing((5, 0, 11, 1), 11)
    packed = torch.randn(1, 17, 32, requires_grad=True)
    rows = [unwrap(convolve_depthwise)(packed[:, row], conv, None) for row in packing.slices if row.start < row.stop]
    assert_same_with_gradients(convolve_depthwise(packed, conv, packing), torch.cat(rows, 1), [packed, *weights])
    heads = torch.randn(2, 11, 2, 16, requires_grad=True)
    rotation = make_rotation(None, 11, 16, heads.device)
    assert_same_with_gradients(rotate(heads, rotation), unwrap(rotate)(heads, rotation), [heads])
    low = heads.detach().bfloat16()
    torch.testing.assert_close(rotate(low, rotation), unwrap(rotate)(low, rotation), atol=2e-2, rtol=0)


def test_the_norm_and_the_positions_are_the_references_in_float32() -> None:
    """In bf16 they are right where torch's are wrong (test_precision.py)."""
    x, norm = torch.randn(2, 9, 32, requires_grad=True), LayerNorm(32)
    assert_same_with_gradients(layer_norm(x, norm), unwrap(layer_norm)(x, norm), [x, *norm.parameters()], 0.0)
    for groups in (2, 4):
        conv = nn.Conv1d(32, 32, 6, groups=groups)
        given = (x.transpose(1, 2)[:, :, None], conv.weight[:, :, None], conv.bias, 3, groups)
        expected = unwrap(grouped_convolution)(*given)
        assert_same_with_gradients(grouped_convolution(*given), expected, [x, *conv.parameters()], 0.0)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_row_shorter_than_a_frame_has_no_frames_and_changes_nothing(
    bf16: bool, training: bool, tiny_model_config: ModelConfig
) -> None:
    torch.manual_seed(3)
    config = replace(tiny_model_config, attention_dropout=0.1, dropout=0.0, input_dropout=0.0, layer_drop_prob=0.0)
    model, waveforms = SpeechModel(config).train(training), torch.randn(2, 16_000)
    found, gradients = [], []
    for num_samples in ([16_000, 300], [16_000]):
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            frames = model(waveforms[: len(num_samples)], torch.tensor(num_samples))
        assert frames.num_frames.tolist() == [49, 0][: len(num_samples)]
        frames.last.float().square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        found.append(frames.last.detach())
    assert not found[0][1].any()
    torch.testing.assert_close(found[0][:1], found[1], atol=0, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_dropout_keeps_its_share_and_the_mean() -> None:
    torch.manual_seed(0)
    for kind, prob in product((Dropout, PooledDropout), (0.05, 0.1, 0.5)):
        module, x = kind(prob), torch.ones(1_000_003, requires_grad=True)
        y = module(x)
        share = float((y == 0).double().mean())
        assert abs(share - prob) < 5 * (prob * (1 - prob) / len(x)) ** 0.5 + 2**-17
        assert float(y.detach().max()) == pytest.approx(1 / (1 - prob), rel=1e-4)
        y.sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        assert torch.equal(x.grad, y.detach()), "what was dropped has no gradient, and the rest is scaled"
        assert not torch.equal(module(x), y), "every call draws"
        assert module.eval()(x) is x


def test_masks_from_a_pool_are_those_of_the_generator() -> None:
    """The same seed, the same mask; in bf16, too, the mean stays; what is too large for the pool is drawn."""
    x, module = torch.ones(1_000, 2_000, dtype=torch.bfloat16), PooledDropout(0.1)
    torch.manual_seed(3)
    first = module(x)
    assert not torch.equal(module(x), first)
    torch.manual_seed(3)
    assert torch.equal(module(x), first)
    assert float(first.double().mean()) == pytest.approx(1.0, abs=2e-3)
    large = module(torch.ones(1 << 22))
    assert float((large == 0).double().mean()) == pytest.approx(0.1, abs=1e-3)


def test_neighbours_are_dropped_independently() -> None:
    """Four numbers come from one 64-bit draw: they must not be dropped together."""
    torch.manual_seed(0)
    dropped = ~draw_kept((250_000, 4), 0.25).mask
    correlation = torch.corrcoef(dropped.double().T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.01


def test_the_encoder_is_the_references() -> None:
    """Padded or not; a bias before group norm has no effect, and a gradient of zero but for rounding."""
    waveforms, num_samples = 0.1 * torch.randn(2, 4000), torch.tensor([4000, 2500])
    for norm, bias, frames in product(("group", "layer"), (False, True), ("valid", "all")):
        torch.manual_seed(2)
        config = ModelConfig(conv_channels=[16] * 7, conv_norm=norm, conv_bias=bias, group_norm_frames=frames)
        encoder = FeatureEncoder(config)
        norms = list(encoder.layer_norms) or [encoder.group_norm, *[None] * 6]
        for lengths in (None, num_samples):
            actual, expected = (
                run(waveforms, lengths, list(encoder.convs), norms) for run in (convolve, unwrap(convolve))
            )
            counts = config.count_frames(torch.full((2,), 4000) if lengths is None else lengths)
            valid = torch.arange(actual.shape[1]) < counts[:, None]
            is_idle = {"convs.0.bias"} if norm == "group" else set()
            inputs = [p for name, p in encoder.named_parameters() if name not in is_idle]
            assert_same_with_gradients(actual[valid], expected[valid], inputs, 3e-5)
            if is_idle and bias:
                (gradient,) = torch.autograd.grad(actual.square().sum(), [encoder.convs[0].bias])
                assert not gradient.any()


def test_a_skipped_block_is_not_computed_and_gets_zero_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(num_layers=2, model_dim=16, ffn_dim=32, num_heads=2, position_kernel=8, position_groups=2)
    model, x = Transformer(config), torch.randn(1, 9, 16)
    calls: list[int] = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    y, states = model(x, None, keep=torch.tensor([False, True]))
    assert calls == [1] and torch.equal(states[0], states[1]) and torch.equal(y, states[2])
    y.square().sum().backward()
    gradients = [parameter.grad for parameter in model.blocks[0].parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_parts_may_be_frozen() -> None:
    """One parameter alone gets the gradient that it gets with all others."""
    torch.manual_seed(3)
    encoder, waveforms = FeatureEncoder(ModelConfig(conv_channels=[8] * 7)), 0.1 * torch.randn(1, 2000)
    encoder(waveforms, None)[0].square().sum().backward()
    expected = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    for trained in ("convs.0.weight", "group_norm.weight", "group_norm.bias", "convs.3.weight"):
        encoder.zero_grad(set_to_none=True)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name == trained)
        encoder(waveforms, None)[0].square().sum().backward()
        found = {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}
        assert list(found) == [trained]
        torch.testing.assert_close(found[trained], expected[trained])


def test_checkpointed_blocks_give_the_same_gradients(tiny_model_config: ModelConfig) -> None:
    """To the bit, with dropout on and a block skipped: the draws of a block are made again."""
    config = replace(tiny_model_config, dropout=0.2, attention_dropout=0.2, activation_dropout=0.2)
    model, x = Transformer(config), torch.randn(2, 20, config.model_dim)
    keep = torch.arange(config.num_layers) != 1
    gradients = []
    for is_on in (False, True):
        model.activation_checkpointing = is_on
        model.zero_grad(set_to_none=True)
        torch.manual_seed(4)
        model(x, torch.tensor([20, 12]), keep)[0].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_checkpointed_blocks_keep_only_their_inputs(tiny_model_config: ModelConfig) -> None:
    model = Transformer(tiny_model_config)
    x = torch.randn(1, 50, tiny_model_config.model_dim)
    sizes = []
    for is_on in (False, True):
        model.activation_checkpointing = is_on
        saved: dict[int, int] = {}

        def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(x, None)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        sizes.append(sum(size for pointer, size in saved.items() if pointer not in own))
    assert sizes[1] < 0.6 * sizes[0], sizes
