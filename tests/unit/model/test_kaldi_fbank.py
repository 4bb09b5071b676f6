"""Kaldi's bands against torchaudio's, and rows that stand alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torchaudio.compliance import kaldi

from speechssl.bench.flops import count_front_end
from speechssl.config.model import ModelConfig
from speechssl.model.kaldi_fbank import SCALE, KaldiFbank, compute_kaldi_power, make_kaldi_filters


def test_bands_are_kaldis(speech: Callable[..., np.ndarray]) -> None:
    sound = torch.from_numpy(speech(0.5, 1))[None]
    theirs = kaldi.fbank((SCALE * sound).double(), num_mel_bins=80, window_type="povey", dither=0.0)
    ours = compute_kaldi_power(sound, make_kaldi_filters(80)).log()[0].T
    # Its filters are computed in float32.
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_each_band_is_normalised_and_two_times_are_a_frame(speech: Callable[..., np.ndarray]) -> None:
    encoder = KaldiFbank(ModelConfig(front_end="kaldi_fbank", num_mels=20))
    sound = torch.from_numpy(speech(1.0, 2))[None]
    frames, counts = encoder(sound, None)
    assert counts is None and frames.shape == (1, 49, 40) and frames.dtype == torch.float32
    bands = frames.reshape(98, 20)
    torch.testing.assert_close(bands.mean(0), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(bands.std(0), torch.ones(20), atol=1e-5, rtol=0)


def test_a_row_does_not_depend_on_padding_or_companions(speech: Callable[..., np.ndarray]) -> None:
    config = ModelConfig(front_end="kaldi_fbank")
    encoder, lengths = KaldiFbank(config), [16_000, 12_345, 560, 559, 0]
    batch = torch.randn(5, 16_000)
    rows = [torch.from_numpy(speech(1.0, seed))[:length] for seed, length in enumerate(lengths)]
    for row, sound in zip(batch, rows, strict=True):
        row[: len(sound)] = sound
    frames, counts = encoder(batch, torch.tensor(lengths))
    assert counts is not None and counts.tolist() == [49, 37, 1, 0, 0] == [config.count_frames(n) for n in lengths]
    for row, count in enumerate(counts.tolist()):
        if count:
            torch.testing.assert_close(frames[row, :count], encoder(rows[row][None], None)[0][0], atol=1e-6, rtol=0)
    assert frames.isfinite().all()


def test_silence_is_finite_and_frames_are_counted() -> None:
    config = ModelConfig(front_end="kaldi_fbank")
    assert not KaldiFbank(config)(torch.zeros(1, 1_600), None)[0].any()
    assert (config.receptive_field, config.hop_samples, config.feature_dim) == (560, 320, 160)
    assert config.num_front_end_weights == 0 and len(count_front_end(config, 16_000)) == 1
