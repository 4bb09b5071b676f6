"""Raw waveform to frames without learning: pairs of Kaldi's log-mel bands, as w2v-BERT 2.0 takes them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.model import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES, ModelConfig
from speechssl.model.layers import normalize_valid
from speechssl.model.log_mel import FFT_SAMPLES

SCALE = 2.0**15
"""Kaldi's samples are 16-bit numbers."""

PREEMPHASIS, WINDOW_POWER, MIN_HZ = 0.97, 0.85, 20.0

POWER_FLOOR = 1.192092955078125e-07
"""Least power of a band: float32's epsilon."""

_VARIANCE_EPSILON = 1e-7


class KaldiFbank(nn.Module):
    """Kaldi's log-mel bands every 10 ms, each normalised over the utterance, two of them side by side a frame.

    An odd last 10 ms counts in the normalisation and is no frame. The spectrum is computed in float64, since quiet
    bands would otherwise hold the rounding of loud ones.

    Args:
        config: `num_mels`.

    Source: Hugging Face's `SeamlessM4TFeatureExtractor`, which is Kaldi's `compute-fbank-feats` without dither.
    """

    filters: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Fixed, and made from the configuration: a checkpoint has no need of them.
        self.register_buffer("filters", make_kaldi_filters(config.num_mels), persistent=False)

    @torch.no_grad()
    def forward(
        self, waveforms: Float[Tensor, "B N"], num_samples: Int[Tensor, " B"] | None
    ) -> tuple[Float[Tensor, "B T C"], Int[Tensor, " B"] | None]:
        """Turn waveforms into frames of 20 ms.

        Args:
            waveforms: (B, N) at 16 kHz.
            num_samples: (B,) valid samples of each row; None where nothing is padded.

        Returns:
            Features (B, T, 2 · mels) and the valid frames of each row (None where nothing is padded). A row's valid
            frames do not depend on its batch; those beyond hold no meaning.
        """
        num_bands = None if num_samples is None else self.config.count_frames(num_samples, depth=1)
        power = compute_kaldi_power(waveforms, self.filters)
        x = normalize_valid(power.clamp(min=POWER_FLOOR).log(), num_bands, _VARIANCE_EPSILON, correction=1)
        x = x.to(waveforms.dtype if waveforms.dtype == torch.float64 else torch.float32)
        # By number: an export for all lengths loses the count of a slice of what is counted already.
        length = (waveforms.shape[1] - self.config.receptive_field) // self.config.hop_samples + 1
        first = 2 * torch.arange(length, device=x.device)
        frames = torch.cat([x[..., first], x[..., first + 1]], 1).transpose(1, 2).contiguous()
        return frames, None if num_samples is None else self.config.count_frames(num_samples)


def compute_kaldi_power(
    waveforms: Float[Tensor, "B N"], filters: Float[Tensor, "mels bins"]
) -> Float[Tensor, "B mels times"]:
    """Compute the power in mel bands as Kaldi does, in float64: of each 25 ms without their mean, with pre-emphasis.

    Args:
        waveforms: (B, N) in [-1, 1] at 16 kHz, N ≥ 400; nothing is padded at the ends.
        filters: (mels, bins) from `make_kaldi_filters`.
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        pieces = (SCALE * waveforms.double()).unfold(1, MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES)
        pieces = pieces - pieces.mean(-1, keepdim=True)
        # The first sample of a piece stands for the one before it.
        pieces = pieces - PREEMPHASIS * torch.cat([pieces[..., :1], pieces[..., :-1]], -1)
        window = torch.hann_window(MEL_WINDOW_SAMPLES, periodic=False, dtype=torch.float64, device=pieces.device)
        pieces = pieces * window**WINDOW_POWER
        if torch.compiler.is_exporting():
            cosines, sines = (pieces @ make_waves().to(pieces.device)).square().chunk(2, -1)
            return filters.double() @ (cosines + sines).transpose(1, 2)
        spectrum = torch.fft.rfft(pieces, FFT_SAMPLES)
        return filters.double() @ torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)


def make_waves() -> Float[Tensor, "W double_bins"]:
    """Make (400, 514) cosines and sines of each frequency: the Fourier transform as a product, in float64."""
    # Whole turns are left out before the product with 2π, which float64 then has exactly enough.
    turns = np.outer(np.arange(MEL_WINDOW_SAMPLES), np.arange(FFT_SAMPLES // 2 + 1)) % FFT_SAMPLES / FFT_SAMPLES
    return torch.from_numpy(np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], 1))


def make_kaldi_filters(num_mels: int) -> Float[Tensor, "mels bins"]:
    """Make (mels, 257) triangular filters of height 1 from 20 Hz to 8 kHz, with straight sides on Kaldi's mel scale."""
    lowest, highest = _to_mel(np.array([MIN_HZ, SAMPLE_RATE / 2]))
    edges = np.linspace(lowest, highest, num_mels + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    mel = _to_mel(np.arange(FFT_SAMPLES // 2 + 1) * (SAMPLE_RATE / FFT_SAMPLES))
    sides = np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre))
    return torch.from_numpy(sides.clip(min=0.0))


def _to_mel(hertz: np.ndarray) -> np.ndarray:
    return np.asarray(1127.0 * np.log(1.0 + hertz / 700.0))
