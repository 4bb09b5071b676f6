"""Networks of speechssl that transformers has no class for: log-mel input, Conformer blocks, rotary positions.

    from transformers import AutoModelForCTC, AutoProcessor

    model = AutoModelForCTC.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(waveform, sampling_rate=16_000, return_tensors="pt")  # several: padding=True
    texts = processor.batch_decode(model(**inputs).logits.argmax(-1))

For inference: there is no dropout, no mask and no loss here. speechssl trains such a network, and reads this folder.
This file needs torch and transformers alone. Letters: B rows, N samples, T frames, D width, V symbols.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

MEL_WINDOW, MEL_HOP, FFT = 400, 160, 512
LOG_FLOOR, EPSILON = 1e-10, 1e-5


class SpeechSSLConfig(PretrainedConfig):
    """What speechssl says of a network: `speechssl` holds `model` (its keys), `vocabulary` and `update`."""

    model_type = "speechssl"

    def __init__(self, speechssl: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.speechssl = speechssl or {"model": {}, "vocabulary": None}
        super().__init__(**kwargs)

    @property
    def network(self) -> SimpleNamespace:
        """The network's keys."""
        return SimpleNamespace(**self.speechssl["model"])

    @property
    def num_symbols(self) -> int:
        """Outputs V of the CTC head; 0 without one."""
        vocabulary = self.speechssl["vocabulary"]
        return len(vocabulary["symbols"]) if vocabulary else 0

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples from one frame to the next."""
        hop = 1
        for _, stride in list_windows(self.network):
            hop *= stride
        return hop


class SpeechSSLModel(PreTrainedModel):
    """Waveforms to frames; a recogniser's head is there too, since blocks may be told what it makes of them."""

    config_class = SpeechSSLConfig
    main_input_name = "input_values"
    _keys_to_ignore_on_load_unexpected = [r"^pretraining\."]  # noqa: RUF012  # the heads of pretraining

    def __init__(self, config: SpeechSSLConfig) -> None:
        super().__init__(config)
        net = config.network
        self.backbone = Backbone(net)
        self.head = Head(net.model_dim, config.num_symbols) if config.num_symbols else None
        tells = bool(config.num_symbols and net.self_conditioning)
        self.conditioning = nn.Linear(config.num_symbols, net.model_dim) if tells else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave weights as torch draws them: all of them are in the folder."""

    def _get_feat_extract_output_lengths(self, input_lengths: Any) -> Any:
        """Count the frames of so many samples."""
        for kernel, stride in list_windows(self.config.network):
            input_lengths = count_windows(input_lengths, kernel, stride)
        return input_lengths

    def run(self, waveforms: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Give the output (B, T, D) and the L + 1 states: what enters the first block, and what each gives.

        Args:
            waveforms: (B, N) at 16 kHz in [-1, 1], padded at the end.
            attention_mask: (B, N), 1 where a sample is valid; None: all are.
        """
        net, (rows, length) = self.config.network, waveforms.shape
        num_samples = torch.full((rows,), length, device=waveforms.device)
        if attention_mask is not None:
            num_samples = attention_mask.long().sum(-1)
        waveforms = waveforms.float()
        if net.normalize_waveform:
            waveforms = standardise(waveforms, num_samples, net.waveform_epsilon)
        features = self.backbone.encoder(waveforms, num_samples)
        num_frames = None if attention_mask is None else self._get_feat_extract_output_lengths(num_samples)
        x = self.backbone.projection(self.backbone.feature_norm(features))
        return self.backbone.transformer(x, num_frames, self.tell if self.conditioning is not None else None)

    def tell(self, num_blocks: int, x: Tensor) -> Tensor:
        """Add what the head makes of frames after the block of `self_conditioning` (arXiv 2104.02724)."""
        if num_blocks != self.config.network.self_conditioning:
            return x
        normed = self.backbone.transformer.norm(x) if self.config.network.norm_first else x
        return x + self.conditioning(self.head(normed).softmax(-1))

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Give `last_hidden_state` (B, T, D), after the final norm where there is one, and all states where asked."""
        last, states = self.run(input_values, attention_mask)
        out = BaseModelOutput(last_hidden_state=last, hidden_states=states if output_hidden_states else None)
        return out.to_tuple() if return_dict is False else out


class SpeechSSLForCTC(SpeechSSLModel):
    """A recogniser."""

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Give `logits` (B, T, V), symbol 0 the CTC blank, and all states where asked."""
        last, states = self.run(input_values, attention_mask)
        out = CausalLMOutput(logits=self.head(last), hidden_states=states if output_hidden_states else None)
        return out.to_tuple() if return_dict is False else out


class Head(nn.Module):
    """One linear layer to the symbols."""

    def __init__(self, dim: int, num_symbols: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits of each frame."""
        return self.linear(x)


class Backbone(nn.Module):
    """Front-end, projection and blocks."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        self.encoder = LogMelEncoder(net) if net.front_end == "log_mel" else WaveformEncoder(net)
        channels = self.encoder.convs[-1].out_channels
        self.feature_norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, net.model_dim) if channels != net.model_dim else nn.Identity()
        self.mask_embedding = nn.Parameter(torch.zeros(net.model_dim))  # for training alone
        self.transformer = Transformer(net)


class LogMelEncoder(nn.Module):
    """Log-mel bands every 10 ms, normalised for each utterance, then convolutions over time."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        widths = net.mel_channels or [net.conv_channels[-1]] * 2
        self.strides = list_mel_strides(net)
        self.register_buffer("window", torch.zeros(MEL_WINDOW))
        self.register_buffer("filters", torch.zeros(net.num_mels, FFT // 2 + 1))
        layers = zip([net.num_mels, *widths], widths, net.mel_kernels, self.strides, strict=False)
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, s, padding=k // 2) for i, o, k, s in layers)

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Turn waveforms (B, N) into features (B, T, C)."""
        margin, window = (FFT - MEL_WINDOW) // 2, self.window.float()
        padded = F.pad(waveforms, (margin, margin))
        spectrum = torch.stft(padded, FFT, MEL_HOP, MEL_WINDOW, window, center=False, return_complex=True)
        power = self.filters.float() @ torch.view_as_real(spectrum).square().sum(-1)
        num_valid = count_windows(num_samples, MEL_WINDOW, MEL_HOP)
        x = standardise(power.clamp(min=LOG_FLOOR).log(), num_valid, EPSILON).to(self.convs[0].weight.dtype)
        for conv, stride in zip(self.convs, self.strides, strict=True):
            x = F.gelu(conv(torch.where(mark_valid(num_valid, x.shape[2])[:, None], x, 0.0)))
            num_valid = count_windows(num_valid, 1, stride)
        return x.transpose(1, 2)


class WaveformEncoder(nn.Module):
    """Unpadded convolutions over the waveform, with a group norm after the first or a layer norm after each."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        self.sees_padding, widths = net.group_norm_frames == "all", net.conv_channels
        layers = zip([1, *widths], widths, net.conv_kernels, net.conv_strides, strict=False)
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, s, bias=net.conv_bias) for i, o, k, s in layers)
        self.group_norm = nn.GroupNorm(widths[0], widths[0]) if net.conv_norm == "group" else None
        self.layer_norms = nn.ModuleList(nn.LayerNorm(c) for c in widths if net.conv_norm == "layer")

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Turn waveforms (B, N) into features (B, T, C)."""
        x = waveforms[:, None].to(self.convs[0].weight.dtype)
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if self.layer_norms:
                x = self.layer_norms[index](x.transpose(1, 2)).transpose(1, 2)
            elif index == 0:
                x = self._normalise(x, count_windows(num_samples, conv.kernel_size[0], conv.stride[0]))
            x = F.gelu(x)
        return x.transpose(1, 2)

    def _normalise(self, x: Tensor, num_valid: Tensor) -> Tensor:
        norm = self.group_norm
        if self.sees_padding:
            return norm(x)
        return (standardise(x, num_valid, norm.eps) * norm.weight[:, None] + norm.bias[:, None]).to(x.dtype)


class Transformer(nn.Module):
    """Positions, blocks, and a final norm where blocks begin with one."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        self.norm_first = net.norm_first
        self.position = Position(net) if net.positions == "convolutional" else None
        self.rotary_dim = net.model_dim // net.num_heads if net.positions == "rotary" else 0
        self.norm = nn.LayerNorm(net.model_dim)
        make_block = ConformerBlock if net.block == "conformer" else TransformerBlock
        self.blocks = nn.ModuleList(make_block(net) for _ in range(net.num_layers))

    def forward(self, x: Tensor, num_frames: Tensor | None, adjust: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Contextualise frames (B, T, D); `num_frames` (B,) is None where all are valid."""
        valid = None if num_frames is None else mark_valid(num_frames, x.shape[1])
        x = x if valid is None else torch.where(valid[..., None], x, 0.0)
        x = x if self.position is None else x + self.position(x)
        x = x if self.norm_first else self.norm(x)
        rotation = make_rotation(x.shape[1], self.rotary_dim, x.device) if self.rotary_dim else None
        states = [x]
        for index, block in enumerate(self.blocks):
            x = x if adjust is None or index == 0 else adjust(index, x)
            x = block(x, valid, rotation)
            states.append(x)
        return (self.norm(x) if self.norm_first else x), tuple(states)


class Position(nn.Module):
    """A grouped convolution over time in place of position embeddings."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        dim, kernel = net.model_dim, net.position_kernel
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=net.position_groups)
        self.conv = parametrizations.weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Give what is added to frames."""
        return F.gelu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        self.num_heads = net.num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(net.model_dim, net.model_dim) for _ in range(4))

    def forward(self, x: Tensor, valid: Tensor | None, rotation: Tensor | None) -> Tensor:
        """Attend to valid frames."""
        heads = (*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads)
        query, key, value = (part(x).view(heads) for part in (self.query, self.key, self.value))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        scope = None if valid is None else valid[:, None, None]
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=scope)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Adapter(nn.Module):
    """A narrow layer with ReLU, and a layer back, added to a block's output."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        dim, width = net.model_dim, net.adapter_dim
        self.norm, self.down, self.up = nn.LayerNorm(dim), nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Change each frame."""
        return x + self.up(F.relu(self.down(self.norm(x))))


class TransformerBlock(nn.Module):
    """Attention and feed-forward with residuals; a norm before or after each."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        self.norm_first, dim = net.norm_first, net.model_dim
        self.attention, self.attention_norm = Attention(net), nn.LayerNorm(dim)
        self.inner, self.outer, self.ffn_norm = (
            nn.Linear(dim, net.ffn_dim),
            nn.Linear(net.ffn_dim, dim),
            nn.LayerNorm(dim),
        )
        self.adapter = Adapter(net) if net.adapter_dim else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None, rotation: Tensor | None) -> Tensor:
        """Transform frames."""
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), valid, rotation)
            return self.adapter(x + self.outer(F.gelu(self.inner(self.ffn_norm(x)))))
        x = self.attention_norm(x + self.attention(x, valid, rotation))
        return self.adapter(self.ffn_norm(x + self.outer(F.gelu(self.inner(x)))))


class ConformerBlock(nn.Module):
    """Attention, convolution module and feed-forward, pre-norm; half of a feed-forward around them with `macaron`."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        dim = net.model_dim
        self.first = FeedForward(net) if net.macaron else None
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(net)
        self.convolution_norm, self.convolution = nn.LayerNorm(dim), ConvolutionModule(net)
        self.last = FeedForward(net)
        self.norm = nn.LayerNorm(dim) if net.macaron else None
        self.adapter = Adapter(net) if net.adapter_dim else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None, rotation: Tensor | None) -> Tensor:
        """Transform frames."""
        x = x if self.first is None else x + 0.5 * self.first(x)
        x = x + self.attention(self.attention_norm(x), valid, rotation)
        x = x + self.convolution(self.convolution_norm(x), valid)
        return self.adapter(x + self.last(x) if self.norm is None else self.norm(x + 0.5 * self.last(x)))


class FeedForward(nn.Module):
    """Norm, a wide linear layer, SiLU, and a linear layer back."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(net.model_dim)
        self.inner, self.outer = nn.Linear(net.model_dim, net.ffn_dim), nn.Linear(net.ffn_dim, net.model_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each frame."""
        return self.outer(F.silu(self.inner(self.norm(x))))


class ConvolutionModule(nn.Module):
    """Gates, a depth-wise convolution over time, a norm, SiLU and a linear layer."""

    def __init__(self, net: SimpleNamespace) -> None:
        super().__init__()
        dim, kernel = net.model_dim, net.block_kernel
        self.gates = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = BatchNorm(dim) if net.block_norm == "batch" else nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Transform frames; the convolution sees zeros beyond each row's end."""
        x = F.glu(self.gates(x), -1)
        x = x if valid is None else torch.where(valid[..., None], x, 0.0)
        return self.out(F.silu(self.norm(self.depthwise(x.transpose(1, 2)).transpose(1, 2))))


class BatchNorm(nn.Module):
    """Batch norm by the averages of training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of (B, T, D)."""
        return (x - self.running_mean) * (torch.rsqrt(self.running_var + EPSILON) * self.weight) + self.bias


def make_rotation(length: int, dim: int, device: torch.device) -> Tensor:
    """Make cosine and sine (2, T, dim / 2) of rotary positions (arXiv 2104.09864)."""
    places = torch.arange(length, device=device)
    angles = places[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2, device=device) / dim)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of numbers of (B, T, H, d)."""
    cosine, sine = rotation[:, :, None]
    first, second = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1)
    return turned.flatten(-2).to(x.dtype)


def standardise(x: Tensor, num_valid: Tensor, epsilon: float) -> Tensor:
    """Give each row of (B, …, T) zero mean and unit variance over its valid positions; beyond it is zero."""
    shape = (len(x), *[1] * (x.ndim - 2), -1)
    valid, count = mark_valid(num_valid, x.shape[-1]).view(shape), num_valid.clamp(min=1).view(shape)
    mean = torch.where(valid, x.float(), 0.0).sum(-1, keepdim=True) / count
    centred = torch.where(valid, x.float() - mean, 0.0)
    return centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + epsilon)


def mark_valid(num_valid: Tensor, length: int) -> Tensor:
    """Mark the first `num_valid[b]` of `length` positions of each row."""
    return torch.arange(length, device=num_valid.device) < num_valid[:, None]


def list_mel_strides(net: SimpleNamespace) -> list[int]:
    """List the strides of the convolutions over mel bands."""
    halvings = 2 if net.frame_rate == 25 else 1
    return [1] * (len(net.mel_kernels) - halvings) + [2] * halvings


def list_windows(net: SimpleNamespace) -> list[tuple[int, int]]:
    """List kernel and stride of the unpadded windows by which frames are counted."""
    if net.front_end == "log_mel":
        return [(MEL_WINDOW, MEL_HOP), *((1, stride) for stride in list_mel_strides(net))]
    return list(zip(net.conv_kernels, net.conv_strides, strict=True))


def count_windows(length: Any, kernel: int, stride: int) -> Any:
    """Count windows, of a number or a tensor of numbers."""
    count = (length - kernel) // stride + 1
    return count * (count > 0)
