from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np

from speechssl.report.spectrogram import NUM_MELS, compute_log_mel, draw_spectrogram, encode_png


def test_a_tone_is_loudest_in_its_own_band_all_the_time() -> None:
    time = np.arange(16_000) / 16_000
    low = compute_log_mel(np.sin(2 * np.pi * 300 * time).astype(np.float32))
    high = compute_log_mel(np.sin(2 * np.pi * 5000 * time).astype(np.float32))
    assert low.shape == (NUM_MELS, 200)
    assert low.max() == 1.0
    assert low.min() >= 0.0
    assert np.ptp(low[:, 5:-5].argmax(0)) <= 1
    assert high[:, 100].argmax() > low[:, 100].argmax() + 40


def test_silence_is_drawn() -> None:
    assert np.isfinite(compute_log_mel(np.zeros(1000, dtype=np.float32))).all()


def test_the_png_is_what_was_put_in() -> None:
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    palette = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)], axis=1).astype(np.uint8)
    picture = _read_png(encode_png(levels, palette))
    assert (picture == palette[levels]).all()


def test_pictures_have_high_frequencies_on_top_and_their_own_palettes() -> None:
    log_mel = np.zeros((4, 2), dtype=np.float32)
    log_mel[3] = 1.0
    picture = draw_spectrogram(log_mel)
    light, dark = (_read_png(base64.b64decode(uri.split(",")[1])) for uri in (picture.light, picture.dark))
    assert light[0].mean() < light[-1].mean()
    assert dark[0].mean() > dark[-1].mean()


def _read_png(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    while header := file.read(8):
        size, kind = struct.unpack(">I4s", header)
        body = file.read(size)
        assert struct.unpack(">I", file.read(4))[0] == zlib.crc32(kind + body)
        chunks[kind] = body
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, width + 1)
    palette = np.frombuffer(chunks[b"PLTE"], dtype=np.uint8).reshape(-1, 3)
    return palette[rows[:, 1:]]
