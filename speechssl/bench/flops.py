"""How many floating-point operations the model's matrix products and convolutions take, from its configuration.

A multiplication and its addition are two operations. Counted is what the mathematics asks for: norms, activations,
dropout and softmax are left out, and so is what an implementation computes a second time. In training a block is
skipped with probability `model.layer_drop_prob` and then not computed: `keep_share` says which share to count.
"""

from __future__ import annotations

from speechssl.config.model import ModelConfig, count_windows
from speechssl.model.log_mel import FFT_SAMPLES

BACKWARD = 2.0
"""Backward costs twice its forward: one product for the gradient of the input, one for that of the weight (in
attention: one for each of the two factors)."""


def count_front_end(config: ModelConfig, num_samples: int) -> list[float]:
    """Count the forward operations of each convolution of the front-end, for one row.

    Before those over mel bands, if there are any, stands the product of the spectrum with the filters; the Fourier
    transform is left out.

    Args:
        config: the network.
        num_samples: length of the row at 16 kHz.
    """
    if config.front_end != "convolutions":
        return _count_mel(config, num_samples)
    counts, length, width = [], num_samples, 1
    for channels, kernel, stride in zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True):
        length = (length - kernel) // stride + 1
        counts.append(2.0 * length * width * kernel * channels)
        width = channels
    return counts


def _count_mel(config: ModelConfig, num_samples: int) -> list[float]:
    length = config.count_frames(num_samples, depth=1)
    counts, width = [2.0 * length * (FFT_SAMPLES // 2 + 1) * config.num_mels], config.num_mels
    if config.front_end == "kaldi_fbank":
        return counts
    for channels, kernel, stride in zip(config.mel_widths, config.mel_kernels, config.mel_strides, strict=True):
        length = count_windows(length, [1], [stride])
        counts.append(2.0 * length * width * kernel * channels)
        width = channels
    return counts


def count_transformer(config: ModelConfig, num_frames: int) -> dict[str, float]:
    """Count the forward operations of everything between the convolutions and the heads, for one row.

    Returns:
        `projection` (features to D), `positions` (grouped convolution), `blocks` (the linear layers and convolutions
        of each block) and `attention` (scores, those of relative positions and weighted sum, quadratic in the frames).
    """
    width, features = config.model_dim, config.feature_dim
    num_products = 3 if config.positions == "relative" else 2
    return {
        "projection": 2.0 * num_frames * features * width * (features != width),
        "positions": 2.0 * num_frames * config.num_position_weights,
        "blocks": 2.0 * config.num_layers * num_frames * config.num_block_weights,
        "attention": 2.0 * config.num_layers * num_products * num_frames * num_frames * width,
    }


def count_length_adapter(config: ModelConfig, num_frames: int) -> float:
    """Count the forward operations of what makes fewer frames of those of the blocks, for one row."""
    width, kernel = config.model_dim, config.length_adapter_kernel
    count = 4.0 * num_frames * width * config.ffn_dim * config.length_adapter_ffn
    for _ in range(config.length_adapter_layers):
        num_frames = config.shorten(num_frames)
        count += num_frames * (8.0 * width**2 * (kernel + 1) + 4.0 * width * config.ffn_dim + 4.0 * num_frames * width)
    return count


def count_pretraining_heads(config: ModelConfig, num_masked: float) -> float:
    """Count the forward operations of the quantizer, the projections and the similarities, for one row.

    Args:
        config: the network.
        num_masked: masked frames of the row; only these pass through the heads.
    """
    quantizer = config.quantizer
    codes = quantizer.num_groups * quantizer.num_codes
    vectors = quantizer.num_codes * quantizer.codevector_dim
    projections = (quantizer.codevector_dim + config.model_dim) * config.target_dim
    per_frame = config.feature_dim * codes + vectors + projections + num_masked * config.target_dim
    return 2.0 * num_masked * per_frame


def keep_share(config: ModelConfig) -> float:
    """Give the share of blocks that a training computes: the expectation over updates, of which each draws its own."""
    return 1.0 - config.layer_drop_prob


def count_row(
    config: ModelConfig, num_samples: int, heads: float = 0.0, backward: bool = True, kept: float = 1.0
) -> float:
    """Count the operations of one row, forward and, in training, backward.

    The first convolution needs no gradient of its input, and mel filters need none at all. With
    `model.feature_gradient_scale=0` the convolutions run forward only.

    Args:
        config: the network.
        num_samples: length of the row at 16 kHz.
        heads: forward operations of what stands on top of the transformer.
        backward: whether it is trained.
        kept: share of the blocks that are computed, attention included: 1, or `keep_share` in training.
    """
    front_end = count_front_end(config, num_samples)
    num_frames = config.count_frames(num_samples)
    parts = count_transformer(config, num_frames)
    rest = parts["projection"] + parts["positions"] + kept * (parts["blocks"] + parts["attention"]) + heads
    rest += count_length_adapter(config, num_frames)
    forward = sum(front_end) + rest
    if not backward:
        return forward
    convolutions = front_end if config.front_end == "convolutions" else front_end[1:]
    learned = BACKWARD * sum(convolutions[1:]) + (BACKWARD - 1.0) * sum(convolutions[:1])
    return forward + BACKWARD * rest + (learned if config.feature_gradient_scale > 0 else 0.0)
