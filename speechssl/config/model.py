"""The network's keys: what `model.*` holds. `config.py` has all the others, and passes these on.

The defaults are wav2vec 2.0 BASE (arXiv 2006.11477 and fairseq's configuration); `F:` in a source means fairseq.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, ClassVar, TypeVar

from speechssl.config.knobs import check, check_choice, knob

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Count = TypeVar("Count", int, "np.ndarray", "Tensor")

MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES = 400, 160
"""Samples that a log-mel band sees (25 ms), and from one to the next (10 ms)."""

FRAME_RATES = (25, 50)
"""Frames a second that a model may have."""

FAMILIES = ("wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio", "wavlm", "wav2vec2-conformer", "wav2vec2-bert")
"""Published families of networks, by the name that Hugging Face has for them."""

MAX_LAYERS, MAX_CONVOLUTIONS, MAX_WIDTH = 256, 64, 65_536
"""Most transformer blocks and convolutions, and the most of any other size: far beyond every published network. A few
bytes of a stranger's configuration would otherwise ask for a network without end (docs/security.md)."""

MAX_MELS = 128
"""Most bands: narrower filters would miss every one of the spectrum's 257 frequencies."""


@dataclass(kw_only=True)
class MaskConfig:
    """Span masks over time and over channels (wav2vec 2.0 §3.1, §4.2)."""

    prob: float = knob(0.65, "span length × the probability that a frame starts a span (not the share masked)", "", "F: mask_prob")
    length: int = knob(10, "length of a span; a frame is 20 ms, or 40 ms at model.frame_rate=25", "frames", "§4.2")
    min_spans: int = knob(2, "smallest number of spans in a row", "", "F: min_masks")
    equalise: bool = knob(True, "give all rows of a sub-batch the same number of masked frames", "", "F: require_same_masks")
    channel_prob: float = knob(0.0, "as `prob`, for spans of channels, which are set to zero (fine-tuning)", "", "F: mask_channel_prob")
    channel_length: int = knob(64, "length of a span of channels", "channels", "F: mask_channel_length")

    def __post_init__(self) -> None:
        check(0.0 <= self.prob <= 1.0, "model.mask.prob", "between 0 and 1", self.prob)
        _check_size("mask.length", self.length)
        _check_size("mask.min_spans", self.min_spans, least=0)
        check(0.0 <= self.channel_prob <= 1.0, "model.mask.channel_prob", "between 0 and 1", self.channel_prob)
        _check_size("mask.channel_length", self.channel_length)


@dataclass(kw_only=True)
class QuantizerConfig:
    """The Gumbel product quantizer (§3.2)."""

    num_groups: int = knob(2, "codebooks G", "", "§4.2")
    num_codes: int = knob(320, "codes V in each codebook", "", "§4.2")
    codevector_dim: int = knob(256, "size of a code vector, all groups together", "", "F: latent_dim")
    temperature_start: float = knob(2.0, "Gumbel temperature before the first update", "", "§4.2")
    temperature_end: float = knob(0.5, "floor of the Gumbel temperature", "", "§4.2")
    temperature_decay: float = knob(0.999995, "factor on the Gumbel temperature after each update", "", "§4.2")
    temperature_reference_updates: int = knob(
        0, "stretch the decay of a run of this many updates over this run; 0: do not", "updates"
    )

    def __post_init__(self) -> None:
        _check_size("quantizer.num_groups", self.num_groups)
        _check_size("quantizer.num_codes", self.num_codes, least=2)
        _check_size("quantizer.codevector_dim", self.codevector_dim)
        divides = self.codevector_dim % self.num_groups == 0
        check(divides, "model.quantizer.codevector_dim", f"a multiple of {self.num_groups}", self.codevector_dim)
        check(self.temperature_start > 0, "model.quantizer.temperature_start", "positive", self.temperature_start)
        check(self.temperature_end > 0, "model.quantizer.temperature_end", "positive", self.temperature_end)
        check(0 < self.temperature_decay <= 1, "model.quantizer.temperature_decay", "positive and at most 1", self.temperature_decay)


@dataclass(kw_only=True)
class ModelConfig:
    """Feature encoder, context network and quantizer; the defaults are BASE."""

    name: str = knob("base", "name of the preset in conf/model")
    family: str = knob("wav2vec2", f"published family that the network is of: {', '.join(FAMILIES)}; it says what an export is called where several families have this network")
    front_end: str = knob("convolutions", "what turns waveforms into frames: `convolutions` of the waveform, `log_mel` bands with convolutions over them, or `kaldi_fbank`, pairs of Kaldi's log-mel bands side by side, where nothing is learnt", "", "kaldi_fbank: w2v-BERT 2.0, arXiv 2312.05187")
    frame_rate: int = knob(50, "frames a second: 50, or 25 (front_end=log_mel), which takes half the time of the blocks and less", "Hz")
    num_mels: int = knob(80, "mel bands of 25 ms every 10 ms (front_end=log_mel or kaldi_fbank)", "bands", "Whisper: n_mels, arXiv 2212.04356 §2.2")
    mel_channels: list[int] = knob([], "output channels of each convolution over mel bands; the last has stride 2, at frame_rate=25 the last two; empty: twice the last of conv_channels (front_end=log_mel)", "channels")
    mel_kernels: list[int] = knob([3, 3], "kernel of each convolution over mel bands, odd (front_end=log_mel)", "10 ms", "Whisper: §2.2")
    conv_channels: list[int] = knob([512] * 7, "output channels of each convolution", "channels", "§4.2")
    conv_kernels: list[int] = knob([10, 3, 3, 3, 3, 2, 2], "kernel of each convolution", "samples", "§4.2")
    conv_strides: list[int] = knob([5, 2, 2, 2, 2, 2, 2], "stride of each convolution; the product must be 320", "samples", "§4.2")
    conv_bias: bool = knob(False, "biases in the convolutions", "", "F: conv_bias")
    conv_norm: str = knob("group", "`group`: per-channel norm over time after the first layer; `layer`: over channels in all", "", "F: extractor_mode")
    group_norm_frames: str = knob("valid", "frames that group norm takes its statistics over, and a positional convolution of several or with batch norm sees: `valid`, or `all`, padding included, as fairseq and Hugging Face do")
    feature_norm: bool = knob(True, "layer norm of the features before they are projected", "", "Hugging Face: feat_proj_layer_norm")
    feature_gradient_scale: float = knob(0.1, "factor on the gradient that enters the feature encoder; 0 freezes it", "", "F: feature_grad_mult")
    normalize_waveform: bool = knob(False, "zero mean and unit variance for each utterance", "", "F: normalize")
    waveform_epsilon: float = knob(1e-5, "added to the variance that normalize_waveform divides by; Hugging Face has 1e-7", "", "F: layer_norm")
    num_layers: int = knob(12, "blocks", "", "§4.2")
    block: str = knob("transformer", "what a block is: `transformer` (attention and feed-forward), or `conformer` (a convolution module between them)")
    model_dim: int = knob(768, "width D of the transformer", "", "§4.2")
    ffn_dim: int = knob(3072, "inner width of the feed-forward part", "", "§4.2")
    num_heads: int = knob(12, "attention heads (the paper's text says 8, every released model has 12)", "", "F: encoder_attention_heads")
    norm_first: bool = knob(False, "layer norm before each part (pre-norm) instead of after it", "", "F: layer_norm_first")
    final_norm: bool = knob(True, "layer norm after the last block (norm_first=true; elsewhere it stands before the first)")
    macaron: bool = knob(False, "half of a feed-forward part before attention and half of one after the convolution, instead of one at the end (block=conformer)", "", "Conformer: arXiv 2005.08100 §2.4")
    block_kernel: int = knob(15, "kernel of the depth-wise convolution, odd (block=conformer)", "frames")
    adapter_dim: int = knob(0, "width of the adapter after each block, a small network that learns where all else is frozen (adapt=adapters makes it 16 where there is none); 0: none", "", "MMS: arXiv 2305.13516; Hugging Face: adapter_attn_dim")
    block_norm: str = knob("layer", "norm after the depth-wise convolution: `layer`, or `batch` over the valid frames of a forward (block=conformer)", "", "Conformer: §2.2 has batch")
    block_causal: bool = knob(False, "the depth-wise convolution sees no later frame (block=conformer)")
    block_bias: bool = knob(True, "biases in the convolution module (block=conformer)")
    block_activation: str = knob("silu", "`silu` or `gelu`, in the feed-forward parts and after the depth-wise convolution (block=conformer)")
    positions: str = knob("convolutional", "how frames know their places: `convolutional` (a convolution before the blocks), `rotary` (queries and keys are turned by their place), `rotary_input` (what queries and keys are made of is turned), `relative` (attention scores have a part for each distance, as Transformer-XL), `relative_key` (the same from a table that ends at position_left and position_right), or `none`", "", "§2; arXiv 2104.09864; 1901.02860; 1803.02155")
    position_kernel: int = knob(128, "kernel of the positional convolution (positions=convolutional)", "frames", "F: conv_pos")
    position_groups: int = knob(16, "groups of the positional convolution (positions=convolutional)", "", "F: conv_pos_groups")
    position_left: int = knob(64, "largest distance to an earlier frame that has a place of its own (positions=relative_key)", "frames", "w2v-BERT 2.0")
    position_right: int = knob(8, "largest distance to a later frame that has a place of its own (positions=relative_key)", "frames", "w2v-BERT 2.0")
    position_depth: int = knob(1, "positional convolutions, one after the other (positions=convolutional)", "", "F: pos_conv_depth; data2vec has 5")
    position_norm: str = knob("weight", "norm of the positional convolution: `weight` norm, `batch` norm before it, or `layer` norm without weights after each of them (positions=convolutional)", "", "F: conv_pos_batch_norm, pos_conv_depth")
    position_buckets: int = knob(0, "groups of distances between frames, for each of which attention learns a bias that each frame gates (WavLM); 0: no such bias", "", "WavLM: arXiv 2110.13900 §3.1, num_buckets 320")
    position_max_distance: int = knob(800, "distance from which on all are one group (position_buckets)", "frames", "WavLM: max_distance")
    length_adapter_layers: int = knob(0, "layers after the blocks that make fewer frames of theirs, each with attention; 0: none", "", "w2v-BERT 2.0; Hugging Face: num_adapter_layers")
    length_adapter_kernel: int = knob(3, "kernel of their convolutions (length_adapter_layers)", "frames", "Hugging Face: adapter_kernel_size")
    length_adapter_stride: int = knob(2, "of so many frames each of these layers makes one (length_adapter_layers)", "frames", "Hugging Face: adapter_stride")
    length_adapter_ffn: bool = knob(False, "half of a feed-forward part before them (length_adapter_layers)", "", "Hugging Face: use_intermediate_ffn_before_adapter")
    dropout: float = knob(0.1, "dropout after attention, feed-forward and the embedding", "", "§4.2")
    attention_dropout: float = knob(0.1, "dropout on attention weights", "", "F: attention_dropout")
    activation_dropout: float = knob(0.0, "dropout after the feed-forward activation", "", "F: activation_dropout")
    input_dropout: float = knob(0.1, "dropout on the projected features", "", "F: dropout_input")
    feature_dropout: float = knob(0.1, "dropout on the quantizer's input", "", "F: dropout_features")
    layer_drop_prob: float = knob(0.05, "probability that a block is skipped in an update", "", "§4.2")
    head_dropout: float = knob(0.0, "dropout before the CTC head", "", "F: final_dropout")
    self_conditioning: int = knob(0, "block after which the blocks that follow are told what the CTC head makes of the frames so far (fine-tuning); 0: none", "", "arXiv 2104.02724")
    target_dim: int = knob(256, "width of the space in which context and targets are compared", "", "F: final_dim")
    quantizer: QuantizerConfig = knob(QuantizerConfig, "the quantizer")
    mask: MaskConfig = knob(MaskConfig, "masks")

    is_chosen: ClassVar[bool] = True
    """False where a configuration was given no network: that of `init` then takes its place."""

    @classmethod
    def leave_open(cls) -> ModelConfig:
        """Make the network that a configuration has where none is given."""
        network = cls()
        # No field: two networks that are alike are equal, chosen or not.
        network.__dict__["is_chosen"] = False
        return network

    def __post_init__(self) -> None:
        for name in _SIZES:
            _check_size(name, getattr(self, name))
        for name in _CONVOLUTIONS:
            _check_convolutions(name, getattr(self, name))
        _check_size("num_layers", self.num_layers, most=MAX_LAYERS)
        _check_size("adapter_dim", self.adapter_dim, least=0)
        check(0 <= self.self_conditioning < self.num_layers, "model.self_conditioning", f"0, or a block before the last of {self.num_layers}", self.self_conditioning)
        check(self.model_dim % self.num_heads == 0, "model.model_dim", f"a multiple of model.num_heads ({self.num_heads})", self.model_dim)
        check(self.model_dim % self.position_groups == 0, "model.position_groups", f"a divisor of model.model_dim ({self.model_dim})", self.position_groups)
        check_choice("model.family", self.family, FAMILIES)
        check_choice("model.front_end", self.front_end, ("convolutions", "log_mel", "kaldi_fbank"))
        check(1 <= self.num_mels <= MAX_MELS, "model.num_mels", f"between 1 and {MAX_MELS}", self.num_mels)
        check_choice("model.conv_norm", self.conv_norm, ("group", "layer"))
        check_choice("model.group_norm_frames", self.group_norm_frames, ("valid", "all"))
        check(self.feature_gradient_scale >= 0, "model.feature_gradient_scale", "positive, or 0 to freeze", self.feature_gradient_scale)
        check(self.waveform_epsilon > 0, "model.waveform_epsilon", "positive", self.waveform_epsilon)
        same = len(self.conv_channels) == len(self.conv_kernels) == len(self.conv_strides) > 0
        check(same, "model.conv_kernels", f"as long as model.conv_channels ({len(self.conv_channels)})", self.conv_kernels)
        check(len(self.mel_widths) == len(self.mel_kernels) > 0, "model.mel_kernels", f"as long as model.mel_channels ({len(self.mel_widths)})", self.mel_kernels)
        check(all(kernel % 2 for kernel in self.mel_kernels), "model.mel_kernels", "odd", self.mel_kernels)
        self._check_frame_rate()
        self._check_block()
        self._check_positions()
        self._check_length_adapter()
        for name in _PROBABILITIES:
            check(0.0 <= getattr(self, name) < 1.0, f"model.{name}", "at least 0 and less than 1", getattr(self, name))

    def _check_frame_rate(self) -> None:
        check(self.frame_rate in FRAME_RATES, "model.frame_rate", "25 or 50", self.frame_rate)
        if self.frame_rate == 25:
            check(self.front_end == "log_mel", "model.front_end", "log_mel where model.frame_rate is 25", self.front_end)
            check(len(self.mel_kernels) > 1, "model.mel_kernels", "of two convolutions or more where model.frame_rate is 25", self.mel_kernels)

    def _check_block(self) -> None:
        check_choice("model.block", self.block, ("transformer", "conformer"))
        check_choice("model.block_norm", self.block_norm, ("layer", "batch"))
        check_choice("model.block_activation", self.block_activation, ("silu", "gelu"))
        check(self.block_kernel % 2 == 1, "model.block_kernel", "odd", self.block_kernel)
        if self.block == "conformer":
            check(self.norm_first, "model.norm_first", "true where model.block is conformer", self.norm_first)
        check(self.final_norm or self.norm_first, "model.final_norm", "true where model.norm_first is false", self.final_norm)

    def _check_positions(self) -> None:
        check_choice("model.positions", self.positions, _POSITIONS)
        check_choice("model.position_norm", self.position_norm, ("weight", "batch", "layer"))
        for name in ("position_left", "position_right", "position_buckets"):
            _check_size(name, getattr(self, name), least=0)
        _check_size("position_depth", self.position_depth, most=MAX_CONVOLUTIONS)
        one = self.position_depth == 1 or self.position_norm == "layer"
        check(one, "model.position_depth", f"1 where model.position_norm is {self.position_norm}", self.position_depth)
        check(self.position_buckets == 0 or self.position_buckets >= 4, "model.position_buckets", "0, or at least 4", self.position_buckets)
        far = self.position_max_distance > self.position_buckets // 4
        check(far, "model.position_max_distance", f"more than a quarter of model.position_buckets ({self.position_buckets})", self.position_max_distance)
        if self.positions not in ("convolutional", "none"):
            check(self.position_buckets == 0, "model.position_buckets", f"0 where model.positions is {self.positions}", self.position_buckets)
        if self.positions in ("rotary", "rotary_input"):
            check(self.head_dim % 2 == 0, "model.model_dim", f"an even multiple of model.num_heads ({self.num_heads}) where model.positions is {self.positions}", self.model_dim)
        if self.positions == "relative":
            check(self.model_dim % 2 == 0, "model.model_dim", "even where model.positions is relative", self.model_dim)

    def _check_length_adapter(self) -> None:
        layers, stride = self.length_adapter_layers, self.length_adapter_stride
        _check_size("length_adapter_layers", layers, least=0, most=MAX_CONVOLUTIONS)
        # A smaller one would make frames of the zeros beside a row alone.
        _check_size("length_adapter_kernel", self.length_adapter_kernel, least=stride + 1 - stride % 2)
        check(layers > 0 or not self.length_adapter_ffn, "model.length_adapter_ffn", "false where model.length_adapter_layers is 0", self.length_adapter_ffn)
        check(layers == 0 or not self.self_conditioning, "model.self_conditioning", "0 where model.length_adapter_layers is more", self.self_conditioning)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.model_dim // self.num_heads

    @property
    def feature_dim(self) -> int:
        """Channels C of a frame of the front-end: the quantizer's input."""
        if self.front_end == "kaldi_fbank":
            return 2 * self.num_mels
        return self.mel_widths[-1] if self.front_end == "log_mel" else self.conv_channels[-1]

    @property
    def mel_widths(self) -> list[int]:
        """Output channels of each convolution over mel bands."""
        return self.mel_channels or [self.conv_channels[-1]] * 2

    @property
    def mel_strides(self) -> list[int]:
        """Stride of each convolution over mel bands: 2 in the last, or the last two, from 100 bands a second to the frame rate."""
        num_halvings = 2 if self.frame_rate == 25 else 1
        return [1] * (len(self.mel_kernels) - num_halvings) + [2] * num_halvings

    def count_frames(self, num_samples: Count, depth: int | None = None) -> Count:
        """Count the frames that the front-end makes of so many samples.

        Args:
            num_samples: samples at 16 kHz, any shape.
            depth: count what comes out of so many of its layers; None: of all.

        Returns:
            Frames, in the type and shape of `num_samples`; 0 where a signal is shorter than the receptive field.
            For the published convolutions that is `floor((N - 400) / 320) + 1`.
        """
        kernels, strides = self.frame_windows
        return count_windows(num_samples, kernels[:depth], strides[:depth])

    def count_outputs(self, num_samples: Count) -> Count:
        """Count the frames of the model's output: those of the blocks, or what a length adapter leaves of them."""
        return count_windows(num_samples, *self.output_windows)

    def shorten(self, num_frames: Count) -> Count:
        """Count what a layer of the length adapter, padded by half of its stride, leaves of so many frames."""
        window = self.length_adapter_kernel - 2 * (self.length_adapter_stride // 2)
        return count_windows(num_frames, [window], [self.length_adapter_stride])

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees (400 for the published convolutions, 25 ms)."""
        return _find_field(*self.frame_windows)

    @property
    def output_field(self) -> int:
        """Samples that there must be for one frame of the output."""
        return _find_field(*self.output_windows)

    @property
    def output_hop(self) -> int:
        """Samples between the starts of two frames of the output."""
        return prod(self.output_windows[1])

    @property
    def output_windows(self) -> tuple[Sequence[int], Sequence[int]]:
        """As `frame_windows`, with those of the length adapter behind them."""
        (kernels, strides), depth, stride = self.frame_windows, self.length_adapter_layers, self.length_adapter_stride
        return [*kernels, *[self.length_adapter_kernel - 2 * (stride // 2)] * depth], [*strides, *[stride] * depth]

    @property
    def hop_samples(self) -> int:
        """Samples between the starts of two frames."""
        return prod(self.frame_windows[1])

    @property
    def frame_windows(self) -> tuple[Sequence[int], Sequence[int]]:
        """Kernels and strides of the unpadded windows by which frames are counted."""
        if self.front_end == "log_mel":
            halvings = [stride for stride in self.mel_strides if stride > 1]
            return [MEL_WINDOW_SAMPLES, *[1] * len(halvings)], [MEL_HOP_SAMPLES, *halvings]
        if self.front_end == "kaldi_fbank":
            return [MEL_WINDOW_SAMPLES, 2], [MEL_HOP_SAMPLES, 2]
        return self.conv_kernels, self.conv_strides

    @property
    def num_large_weights(self) -> int:
        """Count the weights of the large matrices, as the configuration has them: about all there are."""
        blocks, position, dim = self.num_layers * self.num_block_weights, self.num_position_weights, self.model_dim
        adapter = self.length_adapter_layers * (4 * dim**2 * (self.length_adapter_kernel + 1) + 2 * dim * self.ffn_dim)
        quantizer = self.quantizer
        codes = quantizer.num_groups * quantizer.num_codes * self.feature_dim + quantizer.num_codes * quantizer.codevector_dim
        return blocks + position + adapter + self.num_front_end_weights + codes + dim * (self.feature_dim + self.target_dim)

    @property
    def num_front_end_weights(self) -> int:
        """Count the weights of the front-end's convolutions."""
        if self.front_end == "kaldi_fbank":
            return 0
        is_mel = self.front_end == "log_mel"
        widths = [self.num_mels, *self.mel_widths] if is_mel else [1, *self.conv_channels]
        kernels = self.mel_kernels if is_mel else self.conv_kernels
        return sum(a * b * kernel for (a, b), kernel in zip(pairwise(widths), kernels, strict=True))

    @property
    def num_block_weights(self) -> int:
        """Count the weights of a block's products."""
        dim, count = self.model_dim, 4 * self.model_dim**2 + 2 * self.model_dim * (self.ffn_dim + self.adapter_dim)
        if self.block == "conformer":
            count += dim * (3 * dim + self.block_kernel) + 2 * dim * self.ffn_dim * self.macaron
        if self.positions == "relative_key":
            count += (self.position_left + 1 + self.position_right) * self.head_dim
        return count + dim**2 * (self.positions == "relative")

    @property
    def num_position_weights(self) -> int:
        """Count the weights of the positional convolutions; 0 where there is none."""
        count = self.position_depth * (self.positions == "convolutional")
        return count * self.model_dim**2 // self.position_groups * self.position_kernel

    @property
    def has_batch_norm(self) -> bool:
        """Whether a norm learns statistics while it trains, so that what else is in a forward matters."""
        is_block = self.block == "conformer" and self.block_norm == "batch"
        return is_block or self.has_position_batch_norm

    @property
    def has_position_batch_norm(self) -> bool:
        """Whether there is a batch norm before the positional convolution."""
        return self.positions == "convolutional" and self.position_norm == "batch"

    @property
    def has_group_norm(self) -> bool:
        """Whether the front-end has a group norm over time."""
        return self.front_end == "convolutions" and self.conv_norm == "group"

    @property
    def can_see_padding(self) -> bool:
        """Whether something before the blocks would see padding, so that `group_norm_frames` means something."""
        is_deep = self.positions == "convolutional" and self.position_depth > 1
        return self.has_group_norm or is_deep or self.has_position_batch_norm


def _find_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Find how much one window at the end of a stack sees of its beginning."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def count_windows(num_samples: Count, kernels: Sequence[int], strides: Sequence[int]) -> Count:
    """Count what a stack of unpadded windows makes of so many samples: `floor((n - k) / s + 1)` for each, at least 0.

    Source: wav2vec 2.0 §4.2.
    """
    for kernel, stride in zip(kernels, strides, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples * (num_samples > 0)


def _check_size(name: str, value: int, least: int = 1, most: int = MAX_WIDTH) -> None:
    is_one = isinstance(value, int) and least <= value <= most
    check(is_one, f"model.{name}", f"a whole number between {least} and {most}", value)


def _check_convolutions(name: str, values: list[int]) -> None:
    check(len(values) <= MAX_CONVOLUTIONS, f"model.{name}", f"of at most {MAX_CONVOLUTIONS} convolutions", len(values))
    for value in values:
        _check_size(name, value)


_POSITIONS = ("convolutional", "rotary", "rotary_input", "relative", "relative_key", "none")
_SIZES = ("model_dim", "ffn_dim", "num_heads", "block_kernel", "position_kernel", "position_groups", "position_max_distance", "target_dim", "length_adapter_stride")
_CONVOLUTIONS = ("conv_channels", "conv_kernels", "conv_strides", "mel_channels", "mel_kernels")
_PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "feature_dropout", "layer_drop_prob", "head_dropout")

SET_ANEW = ("mask", "feature_gradient_scale", "self_conditioning", *_PROBABILITIES)
"""Keys that are no part of what is pretrained: each training sets them for itself, fine-tuning otherwise than pretraining."""
