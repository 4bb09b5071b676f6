import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.audio import waveform
from speechssl.audio.reading import (
    AudioInfo,
    convert_waveform,
    load_audio,
    num_samples_at_16k,
    read_info,
    suggest_ffmpeg,
)
from speechssl.errors import DataError
from tests.cases import each_case

Speech = Callable[..., np.ndarray]


@pytest.fixture
def flac(tmp_path: Path, speech: Speech) -> Path:
    path = tmp_path / "a.flac"
    soundfile.write(path, speech(2.0, 1), 16_000)
    return path


def test_the_header_says_rate_channels_and_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((441, 2)), 44_100)
    assert read_info(tmp_path / "a.wav") == AudioInfo(44_100, 2, 441)


@each_case("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@each_case("num_samples", [1, 2_001, 20_000])
def test_any_rate_gives_the_announced_number_of_samples(tmp_path: Path, rate: int, num_samples: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(num_samples), rate)
    audio = load_audio(tmp_path / "a.wav")
    assert audio.dtype == np.float32
    assert audio.shape == (num_samples_at_16k(num_samples, rate),)
    assert abs(len(audio) - num_samples * 16_000 / rate) <= 0.5


@each_case("rate", [8_000, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_height(rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(rate) / rate)
    expected = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)
    assert np.abs(convert_waveform(tone, rate) - expected)[500:-500].max() < 1e-3


def test_a_tone_above_the_new_band_does_not_fold_back() -> None:
    tone = np.sin(2 * np.pi * 9_000 * np.arange(44_100) / 44_100)
    assert np.abs(convert_waveform(tone, 44_100))[500:-500].max() < 1e-3


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1), 16_000, "FLOAT")
    assert load_audio(tmp_path / "a.wav") == pytest.approx(np.full(100, 0.125))


@each_case("suffix", ["flac", "wav", "ogg"])
@each_case("offset, count", [(0, 1), (0, 16_000), (7_001, 9_000), (31_000, 1_000), (32_000, 0)])
def test_a_partial_read_is_a_slice_of_the_whole(
    tmp_path: Path, speech: Speech, suffix: str, offset: int, count: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, speech(2.0, 3), 16_000)
    whole = load_audio(path)
    assert len(whole) == 32_000
    part = load_audio(path, offset, count)
    assert len(part) == count
    # Vorbis decodes a block from its neighbours, so that the last bits depend on where the decoder starts.
    assert part == pytest.approx(whole[offset : offset + count], abs=1e-6)


def test_a_partial_read_of_another_rate_counts_in_the_files_own_samples(tmp_path: Path, speech: Speech) -> None:
    soundfile.write(tmp_path / "a.wav", speech(2.0, 3, 120.0, 44_100), 44_100)
    assert len(load_audio(tmp_path / "a.wav", 4_410, 44_100)) == 16_000
    whole, part = load_audio(tmp_path / "a.wav"), load_audio(tmp_path / "a.wav", 22_050)
    assert part[200:] == pytest.approx(whole[8_200:], abs=1e-3)


@each_case("offset, count", [(-1, 5), (0, 32_001), (32_001, None), (5, -1)])
def test_a_stretch_outside_the_file_is_refused(flac: Path, offset: int, count: int | None) -> None:
    with pytest.raises(DataError, match=r"a\.flac must hold the samples .* but has 32000"):
        load_audio(flac, offset, count)


def test_a_truncated_flac_is_refused_and_not_padded(flac: Path) -> None:
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    for read in (read_info, load_audio, lambda path: load_audio(path, 20_000, 12_000)):
        with pytest.raises(DataError, match=r"a\.flac must be whole, but"):
            read(flac)


def test_files_that_are_no_audio_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("This is no sound at all, but a sentence that is long enough.\n" * 20)
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16_000)
    with pytest.raises(DataError, match=r"text\.wav must be audio that libsndfile reads"):
        read_info(tmp_path / "text.wav")
    with pytest.raises(DataError, match=r"empty\.wav must hold audio, but is empty"):
        read_info(tmp_path / "empty.wav")
    with pytest.raises(DataError, match=r"nothing\.wav must hold audio, but has 0 samples"):
        read_info(tmp_path / "nothing.wav")


def test_a_format_that_is_not_read_comes_with_the_ffmpeg_command(tmp_path: Path) -> None:
    (tmp_path / "my talk.m4a").write_bytes(b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00" + bytes(200))
    with pytest.raises(DataError, match=r"holds MP4 .*: ffmpeg -i '.*my talk\.m4a' -ac 1 -ar 16000 '.*my talk\.flac'$"):
        load_audio(tmp_path / "my talk.m4a")


def test_what_is_no_regular_file_is_refused_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(DataError, match=r"pipe\.wav must be a regular file, but is not one"):
        read_info(tmp_path / "pipe.wav")
    with pytest.raises(DataError, match="must be a regular file, but is a folder"):
        read_info(tmp_path)
    with pytest.raises(DataError, match=r"none\.wav must be readable, but is not: No such file"):
        read_info(tmp_path / "none.wav")


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    samples = np.zeros(100, dtype=np.float32)
    samples[50] = np.nan
    with pytest.raises(DataError, match="must be finite"):
        convert_waveform(samples, 16_000)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, "FLOAT")
    with pytest.raises(DataError, match=r"a\.wav must hold finite samples"):
        load_audio(tmp_path / "a.wav")


def test_integers_are_scaled_by_their_range() -> None:
    assert convert_waveform(np.array([-32_768, 0, 16_384], dtype=np.int16), 16_000).tolist() == [-1.0, 0.0, 0.5]
    with pytest.raises(DataError, match="must have the shape"):
        convert_waveform(np.zeros((2, 3, 4)), 16_000)


def test_8_bits_of_a_wav_have_their_silence_at_128() -> None:
    assert convert_waveform(np.array([0, 128, 192], dtype=np.uint8), 16_000).tolist() == [-1.0, 0.0, 0.5]


@each_case("dtype", [np.uint16, np.uint32, bool, complex])
def test_types_that_have_no_range_are_refused(dtype: type) -> None:
    with pytest.raises(DataError, match="a waveform must be of floats, signed integers or uint8, but is of "):
        convert_waveform(np.zeros(800, dtype=dtype), 16_000)


@each_case("name", ["a.wav", "a.aiff", "a.au"])
@each_case("subtype", ["PCM_16", "FLOAT"])
def test_a_file_that_was_cut_off_is_not_whole(tmp_path: Path, speech: Speech, name: str, subtype: str) -> None:
    path = tmp_path / name
    soundfile.write(path, speech(1.0, 3), 16_000, subtype)
    assert read_info(path).num_samples == 16_000
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for read in (read_info, load_audio):
        with pytest.raises(DataError, match=rf"{name} must be whole, but has .* it was cut off"):
            read(path)


def test_a_stream_of_unknown_length_is_whole(tmp_path: Path, speech: Speech) -> None:
    """ffmpeg writes 0xFFFFFFFF where it cannot go back to write the length."""
    path = tmp_path / "a.wav"
    soundfile.write(path, speech(1.0, 3), 16_000, "PCM_16")
    whole = bytearray(path.read_bytes())
    place = whole.index(b"data") + 4
    for length in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x7f"):
        whole[place : place + 4] = length
        path.write_bytes(whole)
        assert read_info(path).num_samples == 16_000


def test_a_stretch_is_counted_at_the_rate_that_the_file_has(tmp_path: Path, speech: Speech) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, speech(1.0, 3), 16_000)
    assert len(load_audio(path, 0, 8_000, 16_000)) == 8_000
    with pytest.raises(DataError, match="must have the 8000 Hz that the manifest names, but has 16000"):
        load_audio(path, 0, 8_000, 8_000)


@each_case("shape", [(1, 16_000), (2, 16_000)])
def test_channels_come_last(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"\(samples, channels\), but has \("):
        convert_waveform(np.zeros(shape), 16_000)
    assert len(convert_waveform(np.zeros(shape).T, 16_000)) == 16_000


def test_a_waveform_has_a_rate() -> None:
    with pytest.raises(DataError, match="`sample_rate` must be between 2000 and 768000 Hz, but is 0"):
        convert_waveform(np.zeros(10), 0)


@each_case("name", ["a.au", "a.snd", "a.gsm", "a.vox", "a.raw", "a.wav", "a.mp3", "a"])
@each_case("content", [b"<html><body>404 Not Found</body></html>\n" * 400, bytes(range(256)) * 40])
def test_bytes_are_no_speech_whatever_they_are_called(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="must be audio that libsndfile reads"):
        read_info(tmp_path / name)


def test_gsm_frames_alone_are_read_by_their_name(tmp_path: Path, speech: Speech) -> None:
    path = tmp_path / "a.gsm"
    soundfile.write(path, speech(2.0, 1, 120.0, 8_000), 8_000, format="RAW", subtype="GSM610")
    assert read_info(path) == AudioInfo(8_000, 1, 16_000)
    assert len(load_audio(path)) == 32_000


@each_case("rate", [1, 1_999, 1_000_000])
def test_rates_at_which_there_is_no_speech_are_refused_before_anything_is_decoded(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), rate)
    for read in (read_info, load_audio, lambda path: load_audio(path, 0, 10)):
        with pytest.raises(DataError, match=f"must have a sample rate between 2000 and 768000 Hz, but has {rate}$"):
            read(tmp_path / "a.wav")


def test_rates_at_the_edges_are_read(tmp_path: Path) -> None:
    for rate in (2_000, 768_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(rate // 10), rate)
        assert len(load_audio(tmp_path / "a.wav")) == 1_600


@each_case(
    "content, says",
    [
        (b"\xff\xf1\x50\x80" + bytes(200), "holds AAC in ADTS: ffmpeg"),
        (b"OggS\0\2" + bytes(22) + b"\x7fFLAC" + bytes(60), "holds FLAC in Ogg: ffmpeg"),
        (b"OggS\0\2" + bytes(22) + b"Speex   " + bytes(60), "holds Speex in Ogg: ffmpeg"),
        (b"\x1aE\xdf\xa3" + bytes(200), "holds Matroska or WebM: ffmpeg"),
        (b"version https://git-lfs.github.com/spec/v1\n", "holds a pointer of Git LFS.*git lfs pull$"),
        (bytes(500), "holds nothing but zeros$"),
        (b"", "must hold audio, but is empty"),
    ],
)
def test_what_a_file_holds_is_named_whatever_it_is_called(tmp_path: Path, content: bytes, says: str) -> None:
    for name in ("a.mp3", "a.flac", "a.wav"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=says):
            read_info(tmp_path / name)


NAMES = ("$(touch pwned).m4a", "-i.m4a", "it's a talk.m4a", "a:b.m4a", "a.FLAC", "dir/-x.m4a", "a;b&c|d.m4a", "`x`.m4a")


@each_case("name", NAMES)
def test_the_ffmpeg_command_names_its_files_to_a_shell(tmp_path: Path, name: str) -> None:
    """A shell that runs the command with a stand-in for ffmpeg shows what ffmpeg would get."""
    command = suggest_ffmpeg(name, "-ignore_length 1")
    shown = subprocess.run(
        ["/bin/sh", "-c", f"ffmpeg() {{ printf '%s\\n' \"$@\"; }}; {command}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert shown[:3] == ["-ignore_length", "1", "-i"] and shown[4:8] == ["-ac", "1", "-ar", "16000"]
    source, target = shown[3], shown[8]
    assert os.path.normpath(source) == name and not source.startswith("-") and ":" not in source.split("/")[0]
    assert target.lower().endswith(".flac") and target.lower() != source.lower()
    assert list(tmp_path.iterdir()) == []


def test_one_channel_can_be_chosen(tmp_path: Path) -> None:
    left, right = np.full(100, 0.5), np.full(100, -0.25)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, "FLOAT")
    assert load_audio(tmp_path / "a.wav", channel=1) == pytest.approx(left)
    assert load_audio(tmp_path / "a.wav", 10, 50, channel=2) == pytest.approx(right[:50])
    with pytest.raises(DataError, match=r"a\.wav must have the channel 3 that `channel` names, but has 2"):
        load_audio(tmp_path / "a.wav", channel=3)


@each_case(
    "mix, cancels",
    [("opposite", True), ("nearly opposite", True), ("alike", False), ("unrelated", False), ("one silent", False)],
)
def test_channels_that_cancel_are_said_once(
    tmp_path: Path,
    speech: Speech,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mix: str,
    cancels: bool,
) -> None:
    monkeypatch.setattr(waveform, "_noted", mmap.mmap(-1, 4096))
    one = speech(2.0, 1)
    other = {
        "opposite": -one,
        "nearly opposite": -0.9 * one,
        "alike": one,
        "unrelated": speech(2.0, 9),
        "one silent": 0 * one,
    }
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.stack([one, other[mix]], axis=1), 16_000)
        load_audio(tmp_path / name)
        load_audio(tmp_path / name, channel=1)
    said = [record for record in caplog.records if "cancel" in record.message]
    assert len(said) == cancels and all(str(tmp_path / "a.wav") in record.message for record in said)
