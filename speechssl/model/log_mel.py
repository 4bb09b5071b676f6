"""Raw waveform to latent frames through log-mel bands: a fixed spectrum and convolutions over time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.model import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES, ModelConfig, count_windows
from speechssl.model.layers import normalize_valid, scale_gradient
from speechssl.model.lengths import make_valid_mask

FFT_SAMPLES = 512
"""The window is padded to this with zeros, half on each side."""

LOG_FLOOR = 1e-10
"""Least power of a band: below that of 16-bit rounding, so that digital silence is the quietest sound, and finite."""

_VARIANCE_EPSILON = 1e-5


class LogMelEncoder(nn.Module):
    """Log-mel bands every 10 ms, normalised for each utterance, then convolutions and GELU to frames of 20 or 40 ms.

    At 50 Hz there are as many frames as the published convolutions give, and frame k is centred on the same 25 ms, from
    0.020·k s on; with the default kernels it sees 20 ms more on either side. At 25 Hz one more convolution has a stride
    of 2, and frame k is the one that would be 2·k.

    Args:
        config: `frame_rate`, `num_mels`, `mel_*` and `feature_gradient_scale`.

    Initialisation: weights Kaiming normal (fan in, gain √2), biases as in `Conv1d`.

    Source: bands, window, hop, and two convolutions of kernel 3 with biases and GELU, the second of stride 2, as in
    Whisper (arXiv 2212.04356 §2.2); for wav2vec 2.0 Parcollet et al. 2023 and for HuBERT Fast-HuBERT (arXiv
    2309.13860) found such inputs as good as raw waveforms.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_scale, self.is_trained = config.feature_gradient_scale, config.feature_gradient_scale > 0
        # Fixed, and made from the configuration: a checkpoint has no need of them.
        self.register_buffer("window", make_window(), persistent=False)
        self.register_buffer("filters", make_mel_filters(config.num_mels), persistent=False)
        inputs = [config.num_mels, *config.mel_widths[:-1]]
        layers = zip(inputs, config.mel_widths, config.mel_kernels, config.mel_strides, strict=True)
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, stride, padding=k // 2) for i, o, k, stride in layers)
        for conv in self.convs.children():
            assert isinstance(conv, nn.Conv1d), f"a convolution, not {type(conv)}"
            nn.init.kaiming_normal_(conv.weight)

    def forward(
        self, waveforms: Float[Tensor, "B N"], num_samples: Int[Tensor, " B"] | None
    ) -> tuple[Float[Tensor, "B T C"], Int[Tensor, " B"] | None]:
        """Turn waveforms into frames.

        Args:
            waveforms: (B, N) at 16 kHz.
            num_samples: (B,) valid samples of each row; None where nothing is padded.

        Returns:
            Features (B, T, C) and the valid frames of each row (None where nothing is padded). Frames beyond them
            hold no meaning. A row's valid frames do not depend on its batch: statistics are those of its own valid
            bands, and convolutions see zeros beyond its end as if it were alone.
        """
        num_valid = None if num_samples is None else self.config.count_frames(num_samples, depth=1)
        power = compute_mel_power(waveforms, self.filters, self.window)
        x = normalize_valid(power.clamp(min=LOG_FLOOR).log(), num_valid, _VARIANCE_EPSILON)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trained):
            for conv, stride in zip(self.convs.children(), self.config.mel_strides, strict=True):
                x = F.gelu(conv(_silence(x, num_valid)))
                num_valid = None if num_valid is None else count_windows(num_valid, [1], [stride])
        return scale_gradient(x.transpose(1, 2), self.gradient_scale), num_valid


@torch.no_grad()
def compute_mel_power(
    waveforms: Float[Tensor, "*B N"],
    filters: Float[Tensor, "mels bins"],
    window: Float[Tensor, " W"],
    hop_samples: int = MEL_HOP_SAMPLES,
) -> Float[Tensor, "*B mels times"]:
    """Compute the power in mel bands, in float32: every log-mel of the package is a logarithm of it.

    Band s sees the samples from s · hop to s · hop + W; nothing is padded at the ends.

    Args:
        waveforms: (…, N) at 16 kHz, N ≥ W.
        filters: (mels, bins) from `make_mel_filters`, which says how long the Fourier transform is.
        window: (W,) no longer than the transform; zeros stand on both sides of it.
        hop_samples: from one column to the next.
    """
    fft_samples = 2 * (filters.shape[1] - 1)
    margin = (fft_samples - len(window)) // 2
    if torch.compiler.is_exporting():
        return filters.float() @ transform_by_convolution(waveforms, window.float(), fft_samples, hop_samples)
    with torch.autocast(waveforms.device.type, enabled=False):
        spectrum = torch.stft(
            F.pad(waveforms.float(), (margin, margin)),
            n_fft=fft_samples,
            hop_length=hop_samples,
            win_length=len(window),
            window=window.float(),
            center=False,
            return_complex=True,
        )
        return filters.float() @ torch.view_as_real(spectrum).square().sum(-1)


def transform_by_convolution(
    waveforms: Float[Tensor, "B N"], window: Float[Tensor, " W"], fft_samples: int, hop_samples: int
) -> Float[Tensor, "B bins times"]:
    """Compute the power of each frequency as a convolution with windowed cosines and sines: a graph for any runtime.

    onnxruntime took 22 ms for 30 s, and 57 ms with its own short-time Fourier transform (one thread, 2026-11-30), and
    bands of speech are closer to float64 (1e-4 in the logarithm, 4e-4).
    """
    margin = (fft_samples - len(window)) // 2
    # Whole turns are left out before the product with 2π, which float64 then has exactly enough.
    turns = np.outer(np.arange(fft_samples // 2 + 1), margin + np.arange(len(window))) % fft_samples / fft_samples
    waves = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)]).astype(np.float32)
    kernels = torch.from_numpy(waves).to(window.device) * window
    cosines, sines = F.conv1d(waveforms.float()[:, None], kernels[:, None], stride=hop_samples).square().chunk(2, 1)
    return cosines + sines


def compute_log_mel(
    waveform: npt.NDArray[np.float32],
    num_mels: int = 80,
    hop_samples: int = MEL_HOP_SAMPLES,
    fft_samples: int = FFT_SAMPLES,
    min_hz: float = 0.0,
) -> npt.NDArray[np.float32]:
    """Compute log-mel bands of one waveform, for looking at: windows of 25 ms, natural logarithm of the power.

    Args:
        waveform: (N,) at 16 kHz, N ≥ 400. Column s is centred on sample s · hop + 200.
        num_mels: bands.
        hop_samples: from one column to the next.
        fft_samples: length of the Fourier transform: longer than the window, low bands look smoother.
        min_hz: where the lowest band begins.

    Returns:
        (mels, times), low frequencies first; times 10 / ln 10 it is decibels.
    """
    filters, window = make_mel_filters(num_mels, fft_samples, min_hz), make_window()
    power = compute_mel_power(torch.from_numpy(waveform), filters, window, hop_samples)
    log_mel: npt.NDArray[np.float32] = power.clamp(min=LOG_FLOOR).log().numpy()
    return log_mel


def make_window() -> Float[Tensor, " W"]:
    """Make the periodic Hann window of 25 ms."""
    return torch.hann_window(MEL_WINDOW_SAMPLES, device="cpu")


def make_mel_filters(num_mels: int, fft_samples: int = FFT_SAMPLES, min_hz: float = 0.0) -> Float[Tensor, "mels bins"]:
    """Make triangular filters from `min_hz` to 8 kHz with equal areas, on Slaney's mel scale (librosa's default)."""
    from librosa.filters import mel

    return torch.from_numpy(mel(sr=SAMPLE_RATE, n_fft=fft_samples, n_mels=num_mels, fmin=min_hz))


def _silence(x: Float[Tensor, "B C times"], num_valid: Int[Tensor, " B"] | None) -> Float[Tensor, "B C times"]:
    """Set everything beyond the valid times of each row to zero."""
    if num_valid is None:
        return x
    return torch.where(make_valid_mask(num_valid, x.shape[2])[:, None], x, 0.0)
