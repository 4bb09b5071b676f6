"""The network: published sizes and initialisation, and rows that do not depend on their batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from speechssl.cli.compose import compose
from speechssl.config.model import ModelConfig
from speechssl.errors import ConfigError
from speechssl.model.heads import CTCHead
from speechssl.model.pretraining import PretrainingModel
from speechssl.model.speech_model import SpeechModel
from speechssl.model.wav2vec2 import Wav2Vec2, normalize_waveforms

SIZES = {
    "base": (94_371_712, 95_044_608, 24_608),
    "large": (315_428_992, 317_380_864, 32_800),
    "large_lv60k": (315_438_720, 317_390_592, 32_800),
    "xls_r_1b": (962_497_408, 965_514_752, 40_992),
    "xls_r_2b": (2_159_259_648, 2_162_932_352, 61_472),
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    for name, sizes in SIZES.items():
        config = compose("pretrain", [f"model={name}", "out=x"]).model
        with torch.device("meta"):
            model, head = PretrainingModel(config), CTCHead(config.model_dim, 32)
        assert (count(model.backbone), count(model), count(head)) == sizes, name


def test_initialisation_is_the_references() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2(replace(ModelConfig(), num_layers=1))
    position = model.transformer.position.conv
    assert float(position.weight.detach().std()) == pytest.approx((4 / (128 * 768)) ** 0.5, rel=0.02)
    assert position.parametrizations.weight.original0.shape == (1, 1, 128)
    assert float(model.transformer.blocks[0].attention.query.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(model.encoder.convs[1].weight.detach().std()) == pytest.approx((2 / (512 * 3)) ** 0.5, rel=0.02)
    assert 0.0 <= float(model.mask_embedding.detach().min()) < float(model.mask_embedding.detach().max()) < 1.0
    bound = 512**-0.5
    assert float(model.projection.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)


def test_strides_must_multiply_to_the_hop(tiny_model_config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.conv_strides.*320"):
        Wav2Vec2(replace(tiny_model_config, conv_strides=[5, 2, 2, 2, 2, 2, 1]))


@pytest.mark.parametrize("front_end", ["convolutions", "log_mel"])
def test_a_row_does_not_depend_on_padding_or_companions(tiny_model_config: ModelConfig, front_end: str) -> None:
    for norm, norm_first in product(("group", "layer"), (False, True)):
        torch.manual_seed(0)
        config = replace(tiny_model_config, front_end=front_end, conv_norm=norm, norm_first=norm_first)
        model = Wav2Vec2(config).eval()
        short, long = torch.randn(1, 9_000), torch.randn(1, 20_000)
        batch = torch.cat([torch.cat([short, 100.0 * torch.randn(1, 11_000)], 1), long])
        features = model.encode(batch, torch.tensor([9_000, 20_000]))
        last, states = model.contextualise(features)
        alone = model.encode(short, None)
        last_alone, states_alone = model.contextualise(alone)
        frames = last_alone.shape[1]
        assert features.num_frames is not None
        assert features.num_frames.tolist() == [frames, last.shape[1]]
        torch.testing.assert_close(features.raw[:1, :frames], alone.raw, atol=1e-5, rtol=1e-5)
        for state, state_alone in zip([*states, last], [*states_alone, last_alone], strict=True):
            torch.testing.assert_close(state[:1, :frames], state_alone, atol=2e-5, rtol=1e-4)


def test_group_norm_over_all_frames_is_the_peers_leak(tiny_model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Wav2Vec2(replace(tiny_model_config, group_norm_frames="all")).eval()
    short = torch.randn(1, 9_000)
    padded = torch.cat([short, torch.zeros(1, 9_000)], dim=1)
    alone = model.encode(short, None).normed
    leaked = model.encode(padded, torch.tensor([9_000])).normed[:, : alone.shape[1]]
    assert float((alone - leaked).detach().abs().max()) > 0.05


def test_masked_frames_are_replaced_and_channels_zeroed(tiny_model_config: ModelConfig) -> None:
    model = Wav2Vec2(tiny_model_config).eval()
    features = model.encode(torch.randn(1, 8_000), None)
    frames = features.normed.shape[1]
    everything = torch.ones(1, frames, dtype=torch.bool)
    masked, _ = model.contextualise(features, everything)
    other, _ = model.contextualise(model.encode(torch.randn(1, 8_000), None), everything)
    torch.testing.assert_close(masked, other)
    channels = torch.ones(1, tiny_model_config.model_dim, dtype=torch.bool)
    zeroed, _ = model.contextualise(features, None, channels)
    nothing, _ = model.transformer(torch.zeros(1, frames, tiny_model_config.model_dim), None)
    torch.testing.assert_close(zeroed, nothing)


def test_dropped_layers_pass_through_and_still_get_gradients(tiny_model_config: ModelConfig) -> None:
    model = Wav2Vec2(tiny_model_config)
    features = model.encode(torch.randn(1, 8_000), None)
    last, states = model.contextualise(features, keep=torch.tensor([True, False]))
    assert torch.equal(states[2], states[1])
    last.sum().backward()
    assert all(parameter.grad is not None for parameter in model.transformer.blocks[1].parameters())
    assert float(model.transformer.blocks[1].inner.weight.grad.abs().sum()) == 0.0


@pytest.mark.parametrize("front_end", ["convolutions", "log_mel"])
def test_feature_gradient_scale(tiny_model_config: ModelConfig, front_end: str) -> None:
    gradients = {}
    for scale in (1.0, 0.1, 0.0):
        torch.manual_seed(0)
        config = replace(tiny_model_config, front_end=front_end, feature_gradient_scale=scale)
        model = Wav2Vec2(config).eval()
        features = model.encode(torch.linspace(-1, 1, 8_000)[None].sin(), None)
        model.contextualise(features)[0].square().sum().backward()
        gradients[scale] = model.encoder.convs[0].weight.grad
    torch.testing.assert_close(gradients[0.1], gradients[1.0] * 0.1, rtol=1e-4, atol=1e-9)
    assert gradients[0.0] is None


def test_waveform_normalisation_is_per_row_and_ignores_padding() -> None:
    rows = torch.randn(2, 1_000) * 3 + 1
    rows[0, 400:] = 77.0
    normed = normalize_waveforms(rows, torch.tensor([400, 1_000]))
    expected = torch.nn.functional.layer_norm(rows[0, :400], (400,))
    torch.testing.assert_close(normed[0, :400], expected, atol=1e-5, rtol=1e-4)
    assert float(normed[0, 400:].abs().max()) == 0.0
    torch.testing.assert_close(normed[1], torch.nn.functional.layer_norm(rows[1], (1_000,)), atol=1e-5, rtol=1e-4)


def test_the_epsilon_matters_where_speech_is_quiet(tiny_model_config: ModelConfig) -> None:
    quiet = torch.randn(1, 4_000) * 1e-3
    rms = [float(normalize_waveforms(quiet, None, epsilon).square().mean().sqrt()) for epsilon in (1e-5, 1e-7)]
    assert rms[0] == pytest.approx((1e-6 / 1.1e-5) ** 0.5, rel=0.1)
    assert rms[1] == pytest.approx((1e-6 / 1.1e-6) ** 0.5, rel=0.1)
    config = replace(tiny_model_config, normalize_waveform=True, waveform_epsilon=1e-7)
    torch.manual_seed(0)
    models = [SpeechModel(config), SpeechModel(replace(config, waveform_epsilon=1e-5))]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (model.eval()(quiet).last for model in models)
    assert not torch.equal(first, second)


def test_training_prepares_waveforms_as_the_model_does() -> None:
    from speechssl.data.dataset import normalize

    quiet = (torch.randn(4_000) * 1e-3).numpy()
    for epsilon in (1e-5, 1e-7):
        expected = normalize_waveforms(torch.from_numpy(quiet)[None], None, epsilon)[0]
        torch.testing.assert_close(torch.from_numpy(normalize(quiet, epsilon)), expected, atol=1e-6, rtol=1e-5)
