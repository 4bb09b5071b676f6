import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.audio.reading import load_audio
from speechssl.data.dataset import AudioCache
from speechssl.data.manifest import Utterance


@pytest.fixture
def utterance(tmp_path: Path, speech: Callable[..., np.ndarray]) -> Utterance:
    """Give the second half second of a file at 44.1 kHz."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, speech(2.0, 1, 120.0, 44_100), 44_100)
    return Utterance("a", path, 44_100, 22_050, 22_050)


def test_the_cache_returns_what_the_file_holds(tmp_path: Path, utterance: Utterance) -> None:
    cache = AudioCache(str(tmp_path / "cache"))
    expected = load_audio(utterance.path, 22_050, 22_050)
    first = cache.read(utterance, 0, 8_000)
    assert first == pytest.approx(expected, abs=1 / 32_768)
    assert np.array_equal(cache.read(utterance, 0, 8_000), first)
    assert np.array_equal(cache.read(utterance, 1_000, 500), first[1_000:1_500])


def test_a_second_read_does_not_decode_again(tmp_path: Path, utterance: Utterance) -> None:
    cache = AudioCache(str(tmp_path / "cache"))
    first = cache.read(utterance, 0, 100)
    stamp = utterance.path.stat()
    utterance.path.write_bytes(b"no audio any more")
    os.utime(utterance.path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert np.array_equal(cache.read(utterance, 0, 100), first)


def test_a_changed_file_and_another_stretch_are_read_anew(tmp_path: Path, utterance: Utterance) -> None:
    cache = AudioCache(str(tmp_path / "cache"))
    first = cache.read(utterance, 0, 8_000)
    other = Utterance("b", utterance.path, 44_100, 22_050, 0)
    assert not np.array_equal(cache.read(other, 0, 8_000), first)
    soundfile.write(utterance.path, np.zeros(88_200), 44_100)
    os.utime(utterance.path, ns=(1, 1))
    assert np.abs(cache.read(utterance, 0, 8_000)).max() < 1e-3
    assert len(list((tmp_path / "cache").rglob("*.wav"))) == 3
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_what_is_louder_than_full_scale_is_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", np.full(100, 1.5), 16_000, "FLOAT")
    samples = AudioCache(str(tmp_path / "cache")).read(Utterance("a", tmp_path / "loud.wav", 16_000, 100), 0, 100)
    assert samples == pytest.approx(np.ones(100), abs=1e-4)
