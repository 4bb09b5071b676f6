"""The CPU's own products, attention and dropout against torch's operations, values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config.model import ModelConfig
from speechssl.model.cpu import attention as cpu_attention
from speechssl.model.cpu import products as cpu_products
from speechssl.model.cpu.attention import attend
from speechssl.model.cpu.dropout import Dropout, draw_kept
from speechssl.model.cpu.products import fold_group_norm, gelu_convolution, gelu_linear
from speechssl.model.feature_encoder import FeatureEncoder
from speechssl.model.speech_model import SpeechModel
from speechssl.model.transformer import Transformer


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


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (1, 1), (8, 4), (5, 2), (4, 4), (2, 3), (7, 3)])
@pytest.mark.parametrize("length", [23, 24, 25])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("part", [3, 2048])
def test_a_convolution_is_torchs(
    kernel: int, stride: int, length: int, bias: bool, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_products, "_PART_FRAMES", part)
    torch.manual_seed(kernel * 10 + stride)
    conv = nn.Conv1d(6, 5, kernel, stride, bias=bias)
    z = torch.randn(3, length, 6, requires_grad=True)
    expected = conv(F.gelu(z).transpose(1, 2)).transpose(1, 2)
    assert_same_with_gradients(gelu_convolution(z, conv), expected, [z, *conv.parameters()])


@pytest.mark.parametrize("num_valid", [None, [9, 30]])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_a_folded_norm_is_the_norm_of_the_convolution(
    num_valid: list[int] | None, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant offset of the waveform is what cancels in the covariance."""
    monkeypatch.setattr(cpu_products, "_PART_FRAMES", 7)
    torch.manual_seed(1)
    conv, norm, second = nn.Conv1d(1, 8, 10, 5, bias=False), nn.GroupNorm(8, 8), nn.Conv1d(8, 4, 3, 2, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    waveforms = 0.1 * torch.randn(2, 200) + offset
    lengths = None if num_valid is None else torch.tensor(num_valid)
    product = fold_group_norm(waveforms, conv, norm, lengths)
    convolved = conv(waveforms[:, None])
    count = convolved.shape[2]
    normed = torch.stack(
        [
            torch.cat([norm(row[None, :, :n])[0], torch.zeros(8, count - n)], 1)
            for row, n in zip(convolved, num_valid or [count] * 2, strict=True)
        ]
    ).transpose(1, 2)
    inputs = [conv.weight, norm.weight, norm.bias]
    for row, n in enumerate(num_valid or [count] * 2):
        assert_same_with_gradients(product.compute()[row, :n], normed[row, :n], inputs, 3e-5)
    used = ((num_valid or [count])[0] - 3) // 2 + 1
    expected = second(F.gelu(normed[:1]).transpose(1, 2)).transpose(1, 2)[:, :used]
    assert_same_with_gradients(gelu_convolution(product, second)[:1, :used], expected, [*inputs, second.weight], 3e-5)


def test_silence_stays_silent() -> None:
    """A variance of zero divides by the root of epsilon, as in torch."""
    conv, norm = nn.Conv1d(1, 4, 10, 5, bias=False), nn.GroupNorm(4, 4)
    product = fold_group_norm(torch.full((1, 100), 0.25), conv, norm, None)
    assert float(product.compute().detach().abs().max()) < 1e-4


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_linear_layer_after_gelu_is_torchs(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "_PART_FRAMES", 5)
    linear = nn.Linear(6, 4)
    z = torch.randn(2, 7, 6, requires_grad=True)
    torch.manual_seed(5)
    actual = gelu_linear(z, linear, dropout)
    torch.manual_seed(5)
    x = F.gelu(z)
    if dropout:
        kept = draw_kept(x.shape, dropout)
        x = x * kept.mask * kept.scale
    assert_same_with_gradients(actual, linear(x), [z, *linear.parameters()])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("part_bytes", [1, 2 * 11 * 11 * 4, 1 << 20])
@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_is_the_formula(
    is_masked: bool, part_bytes: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One matrix at a time, in twos, or all at once."""
    monkeypatch.setattr(cpu_attention, "_PART_BYTES", part_bytes)
    inputs = [torch.randn(2, 3, 11, 4, requires_grad=True) for _ in range(3)]
    query, key, value = inputs
    key_mask = (torch.arange(11) < torch.tensor([[11], [6]]))[:, None, None] if is_masked else None
    torch.manual_seed(5)
    actual = attend(query, key, value, key_mask, dropout)
    torch.manual_seed(5)
    kept = draw_kept((6, 11, 11), dropout)
    scores = query @ key.transpose(2, 3) / 2.0
    weights = torch.softmax(scores if key_mask is None else scores.masked_fill(~key_mask, -torch.inf), -1)
    assert_same_with_gradients(actual, (weights * kept.mask.view(2, 3, 11, 11) * kept.scale) @ value, inputs)


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


@pytest.mark.parametrize("prob", [0.05, 0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(prob: float) -> None:
    torch.manual_seed(0)
    module, x = Dropout(prob), torch.ones(1_000_003, requires_grad=True)
    y = module(x)
    share = float((y == 0).double().mean())
    assert abs(share - prob) < 5 * (prob * (1 - prob) / len(x)) ** 0.5 + 2**-17
    assert float(y.detach().max()) == pytest.approx(1 / (1 - prob), rel=1e-4)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(x.grad, y.detach()), "what was dropped has no gradient, and the rest is scaled"  # type: ignore[arg-type]
    assert not torch.equal(module(x), y), "every call draws"
    assert module.eval()(x) is x


def test_neighbours_are_dropped_independently() -> None:
    """Four numbers come from one 64-bit draw: they must not be dropped together."""
    torch.manual_seed(0)
    dropped = ~draw_kept((250_000, 4), 0.25).mask
    correlation = torch.corrcoef(dropped.double().T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.01


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_encoder_is_the_same_by_both_ways(norm: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that GPUs and compiled graphs take, and the CPU's own; a bias before group norm has no place in it."""
    torch.manual_seed(2)
    config = ModelConfig(conv_channels=(16,) * 7, conv_norm=norm, conv_bias=bias)
    encoder, waveforms = FeatureEncoder(config), 0.1 * torch.randn(2, 4000)
    lengths = torch.tensor([4000, 2500])
    actual, num_frames = encoder(waveforms, lengths)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureEncoder, "_choose_path", lambda encoder, *_: encoder._convolve)
        expected, _ = encoder(waveforms, lengths)
    valid = torch.arange(actual.shape[1]) < num_frames[:, None]
    inputs = [parameter for name, parameter in encoder.named_parameters() if name != "convs.0.bias" or norm == "layer"]
    assert_same_with_gradients(actual[valid], expected[valid], inputs, 3e-5)


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


@pytest.mark.parametrize("trained", ["convs.0.weight", "group_norm.weight", "group_norm.bias", "convs.3.weight"])
def test_parts_may_be_frozen(trained: str) -> None:
    """One parameter alone gets the gradient that it gets with all others."""
    torch.manual_seed(3)
    encoder, waveforms = FeatureEncoder(ModelConfig(conv_channels=(8,) * 7)), 0.1 * torch.randn(1, 2000)
    encoder(waveforms, None)[0].square().sum().backward()
    expected = {name: parameter.grad for name, parameter in encoder.named_parameters()}
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
