"""How long a file is: what can be decoded of it, or a reason; never what a header guesses."""

import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.audio.reading import AudioFile, load_audio, read_info, stream_audio
from speechssl.errors import DataError
from tests.cases import each_case

Speech = Callable[..., np.ndarray]

RATES = {"MPEG 1": 44_100, "MPEG 2": 16_000, "MPEG 2.5": 8_000}


def write_mp3(path: Path, samples: np.ndarray, rate: int = 16_000, mode: str = "CONSTANT") -> bytes:
    kind = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": mode, "compression_level": 0.7}
    soundfile.write(path, samples, rate, **kind)
    return path.read_bytes()


def write_vorbis(path: Path, samples: np.ndarray, rate: int) -> None:
    """In pieces: libsndfile crashes on a long one."""
    with soundfile.SoundFile(path, "w", rate, 1, format="OGG", subtype="VORBIS") as file:
        for at in range(0, len(samples), rate):
            file.write(samples[at : at + rate])


def read_header(data: bytes, at: int) -> int:
    """The length of an MP3 frame of layer 3."""
    version, speed = data[at + 1] >> 3 & 3, data[at + 2] >> 4
    rates = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}[version]
    first = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    second = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    kbps = first[speed] if version == 3 else second[speed]
    return (144 if version == 3 else 72) * kbps * 1000 // rates[data[at + 2] >> 2 & 3] + (data[at + 2] >> 1 & 1)


def drop_xing(data: bytes) -> bytes:
    """What ffmpeg writes into a pipe, and Common Voice's clips are: frames without the header that counts them."""
    assert b"Xing" in data[:200] or b"Info" in data[:200]
    return data[read_header(data, 0) :]


def count_frames(data: bytes) -> int:
    at = count = 0
    while at + 4 <= len(data) and at + (length := read_header(data, at)) <= len(data):
        at, count = at + length, count + 1
    return count


@each_case("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@each_case("rate", RATES.values())
def test_mp3_without_a_header_is_read_to_its_end(tmp_path: Path, speech: Speech, rate: int, mode: str) -> None:
    # Silence first: the first frame is then far shorter than the others, and libmpg123's guess far off.
    samples = np.concatenate([np.zeros(rate), speech(3.0, 1, 120.0, rate)])
    data = drop_xing(write_mp3(tmp_path / "a.mp3", samples, rate, mode))
    (tmp_path / "a.mp3").write_bytes(data)
    expected = count_frames(data) * (1152 if rate == 44_100 else 576)
    assert read_info(tmp_path / "a.mp3").num_samples == expected
    with AudioFile(tmp_path / "a.mp3") as file:
        assert len(file.read(0, expected)) == expected
    assert np.abs(load_audio(tmp_path / "a.mp3")[-16_000:]).max() > 0.1


def test_a_header_that_counts_the_frames_is_kept_with_the_delay_that_it_names(tmp_path: Path, speech: Speech) -> None:
    data = write_mp3(tmp_path / "a.mp3", speech(2.0, 1))
    tag = b"ID3\x03\0\0\0\0\x08\0" + bytes(1024)
    for content in (data, tag + data, data + b"TAG" + bytes(125), tag + data + b"APETAGEX" + bytes(24) + b"junk"):
        (tmp_path / "a.mp3").write_bytes(content)
        assert read_info(tmp_path / "a.mp3").num_samples == 32_000
        assert len(load_audio(tmp_path / "a.mp3")) == 32_000


def test_joined_mp3_is_read_whole(tmp_path: Path, speech: Speech) -> None:
    data = write_mp3(tmp_path / "a.mp3", speech(2.0, 1))
    bare = drop_xing(data)
    for content, frames in ((bare + bare, 2 * count_frames(bare)), (data + data, 2 * count_frames(bare) + 1)):
        (tmp_path / "a.mp3").write_bytes(content)
        assert read_info(tmp_path / "a.mp3").num_samples == frames * 576
        assert len(load_audio(tmp_path / "a.mp3")) == frames * 576
        assert np.abs(load_audio(tmp_path / "a.mp3", frames * 288 + 2_000, 20_000)).max() > 0.1


def test_mp3_that_was_cut_damaged_or_joined_of_two_kinds_is_refused(tmp_path: Path, speech: Speech) -> None:
    path = tmp_path / "a.mp3"
    data = write_mp3(path, speech(2.0, 1))
    stereo = drop_xing(write_mp3(path, np.stack([speech(1.0, 1)] * 2, axis=1)))
    middle = len(data) // 2
    noise = np.random.default_rng(1).integers(0, 250, 300, dtype=np.uint8).tobytes()
    contents = {
        "has .* frames where its header says .*: it was cut off": data[:middle],
        "is damaged from byte": data[:middle] + noise + data[middle + 300 :],
        "changes from 16000 Hz, 1 channels to 16000 Hz, 2 channels": drop_xing(data) + stereo,
    }
    for reason, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.mp3 must be whole, but {reason}"):
            read_info(path)


def test_frames_behind_junk_are_found_in_a_file_called_mp3(tmp_path: Path, speech: Speech) -> None:
    bare = drop_xing(write_mp3(tmp_path / "a.mp3", speech(2.0, 1)))
    (tmp_path / "a.mp3").write_bytes(b"some junk " * 30 + bare)
    assert read_info(tmp_path / "a.mp3").num_samples == count_frames(bare) * 576


@each_case("mode", ["CONSTANT", "VARIABLE"])
def test_a_stretch_of_mp3_is_that_of_the_whole(tmp_path: Path, speech: Speech, mode: str) -> None:
    path = tmp_path / "a.mp3"
    for header in (True, False):
        data = write_mp3(path, speech(6.0, 1, 120.0, 48_000), 48_000, mode)
        path.write_bytes(data if header else drop_xing(data))
        with AudioFile(path) as file:
            whole = file.read(0, file.num_samples)
        for offset in (1, 529, 1_152, 50_001, 130_111, len(whole) - 300):
            with AudioFile(path) as file:
                assert file.read(offset, 300) == pytest.approx(whole[offset : offset + 300], abs=1e-6)


def test_libmpg123_does_not_write_to_stderr(tmp_path: Path, speech: Speech, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.mp3"
    data = bytearray(write_mp3(path, speech(2.0, 1)))
    for at in range(1_000, len(data), 217):
        data[at] = 0x55
    path.write_bytes(data)
    with suppress(DataError):
        load_audio(path)
    assert capfd.readouterr().err == ""


def test_a_stretch_at_the_end_of_vorbis_is_that_of_the_whole(tmp_path: Path, speech: Speech) -> None:
    """libsndfile's seek to the last page, which is cut to the end, lands some hundred samples off."""
    path = tmp_path / "a.ogg"
    write_vorbis(path, speech(40.0, 1, 120.0, 44_100), 44_100)
    with AudioFile(path) as file:
        whole = file.read(0, file.num_samples)
    for back in (200, 1_000, 5_000, 20_000, 100_000):
        with AudioFile(path) as file:
            first = len(whole) - back
            assert file.read(first, 200) == pytest.approx(whole[first : first + 200], abs=1e-6)


@each_case(
    "container, subtype",
    [
        ("WAV", "GSM610"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "MS_ADPCM"),
        ("WAV", "G721_32"),
        ("AU", "G723_24"),
        ("CAF", "ALAC_16"),
    ],
)
def test_codecs_that_cannot_seek_are_read_and_dropped(
    tmp_path: Path, speech: Speech, container: str, subtype: str
) -> None:
    path = tmp_path / "a"
    soundfile.write(path, speech(2.0, 1, 120.0, 8_000), 8_000, format=container, subtype=subtype)
    info = read_info(path)
    assert info.num_samples >= 16_000
    with AudioFile(path) as file:
        whole = file.read(0, info.num_samples)
        assert np.array_equal(file.read(3_001, 500), whole[3_001:3_501])
        assert np.array_equal(file.read(9_000, 500), whole[9_000:9_500])
        assert np.array_equal(file.read(100, 500), whole[100:600])
    assert len(load_audio(path)) == 2 * info.num_samples


@each_case("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "VOC", "FLAC", "OGG", "MP3"])
def test_whole_files_are_taken_and_files_that_were_cut_off_are_not(tmp_path: Path, speech: Speech, kind: str) -> None:
    path = tmp_path / "a"
    samples = speech(4.0, 1)
    soundfile.write(path, samples, 16_000, format=kind)
    whole = path.read_bytes()
    assert read_info(path).num_samples == len(samples)
    for share in (0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=r"must be whole, but .*(cut off|cannot be decoded)"):
            read_info(path)


@each_case("kind", ["WAV", "FLAC", "OGG", "W64"])
def test_joined_files_of_which_one_would_be_read_are_refused(tmp_path: Path, speech: Speech, kind: str) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    soundfile.write(path, speech(2.0, 1), 16_000, format=kind)
    soundfile.write(other, speech(3.0, 2), 16_000, format=kind)
    whole = path.read_bytes()
    for second in (whole, other.read_bytes()):
        path.write_bytes(whole + second)
        with pytest.raises(DataError, match="must be whole, but .* joined"):
            read_info(path)


def change_wav(path: Path, length: int) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", length)
    path.write_bytes(content)


@each_case(
    "length, reason",
    [
        (0, "its header says that it holds no samples where 32000 bytes follow: it was never finished"),
        (2_000_000_000, "has 32044 bytes where its header says 2000000044: it was cut off, or its length was never"),
        (8_000, "24000 bytes follow what its header accounts for: its length is wrong"),
    ],
)
def test_a_wav_with_a_wrong_length_is_refused_with_what_reads_it(
    tmp_path: Path, speech: Speech, length: int, reason: str
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, speech(1.0, 1), 16_000)
    change_wav(path, length)
    with pytest.raises(DataError, match=rf"{reason}.*; .* ffmpeg -ignore_length 1 -i .*a\.wav"):
        read_info(path)


def test_a_length_that_wrapped_around_is_seen_in_a_sparse_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    count = 4_500_000_000
    head = b"RIFF" + struct.pack("<I", (36 + count) % 2**32) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 2, 44_100, 176_400, 4, 16) + b"data" + struct.pack("<I", count % 2**32)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(44 + count)
    with pytest.raises(DataError, match="4294967296 bytes follow what its header accounts for"):
        read_info(path)


def test_chunks_tags_and_padding_after_the_samples_are_no_fault(tmp_path: Path, speech: Speech) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, speech(1.0, 1)[:-1].astype(np.float32), 16_000, subtype="PCM_U8")
    whole = path.read_bytes()[: 44 + 15_999]
    extra = b"LIST" + struct.pack("<I", 300) + bytes(300)
    for tail in (b"", b"\0" + extra, extra, b"\0" + extra + extra, b"\0TAG" + bytes(125), bytes(4_096)):
        path.write_bytes(whole + tail)
        assert read_info(path).num_samples == 15_999


@each_case("total", [5_000, 30_000, 90_000])
def test_a_flac_whose_header_is_wrong_is_refused(tmp_path: Path, speech: Speech, total: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, speech(4.0, 1), 16_000)
    content = bytearray(path.read_bytes())
    bits = int.from_bytes(content[21:26], "big") & ~(2**36 - 1)
    content[21:26] = (bits | total).to_bytes(5, "big")
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"must be whole, but ends at sample 64000 where its header says {total}"):
        read_info(path)


@each_case("seed", range(40))
def test_any_flac_that_is_whole_is_taken(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, channels = int(rng.integers(1, 30_000)), int(rng.integers(1, 4))
    samples = rng.normal(0, 10.0 ** -rng.integers(0, 5), (count, channels)).clip(-1, 1)
    rate = int(rng.choice([8_000, 11_025, 16_000, 37_800, 44_100, 96_000]))
    soundfile.write(tmp_path / "a.flac", samples, rate, subtype=str(rng.choice(["PCM_S8", "PCM_16", "PCM_24"])))
    assert read_info(tmp_path / "a.flac").num_samples == count


def test_an_ogg_with_a_hole_is_refused(tmp_path: Path, speech: Speech) -> None:
    """libsndfile reads on behind a page that is missing as if nothing were."""
    path = tmp_path / "a.ogg"
    write_vorbis(path, speech(30.0, 1), 16_000)
    whole = path.read_bytes()
    pages = [match.start() for match in re.finditer(b"OggS", whole)]
    path.write_bytes(whole[: pages[4]] + whole[pages[5] :])
    with pytest.raises(DataError, match="must be whole, but 1 pages are missing before byte"):
        read_info(path)


def test_flac_behind_a_tag_is_read_and_its_stretches_too(tmp_path: Path, speech: Speech) -> None:
    """libsndfile reads such a file from its start, and cannot seek in it."""
    path = tmp_path / "a.flac"
    soundfile.write(path, speech(2.0, 1), 16_000)
    whole = load_audio(path)
    path.write_bytes(b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + path.read_bytes())
    assert read_info(path).num_samples == len(whole)
    assert np.array_equal(load_audio(path), whole)
    assert np.array_equal(load_audio(path, 20_001, 300), whole[20_001:20_301])


@each_case("rate", [1, 100, 1_999, 768_001])
def test_a_rate_at_which_nothing_is_speech_costs_nothing(tmp_path: Path, rate: int) -> None:
    """A minute of noise said to be at 1 Hz would become sixteen thousand minutes."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(1).uniform(-1, 1, 960_000).astype(np.float32), rate)
    tracemalloc.start()
    start = time.process_time()
    for read in (read_info, load_audio):
        with pytest.raises(DataError, match=f"must have a sample rate between 2000 and 768000 Hz, but has {rate}"):
            read(path)
    assert time.process_time() - start < 1.0
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@each_case("length", [2**63 - 1, -(2**63), -2, 2**40])
@each_case("kind", ["CAF", "W64"])
def test_a_chunk_that_leads_out_of_the_file_is_a_sentence_or_no_fault(
    tmp_path: Path, speech: Speech, kind: str, length: int
) -> None:
    path = tmp_path / "a"
    soundfile.write(path, speech(1.0, 1), 16_000, format=kind)
    data = bytearray(path.read_bytes())
    at, order = (12, ">q") if kind == "CAF" else (56, "<q")
    data[at : at + 8] = struct.pack(order, length)
    path.write_bytes(data)
    with suppress(DataError):
        assert read_info(path).num_samples == 16_000


@each_case("rate", [8_000, 16_000, 44_100, 48_000])
@each_case("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_pieces_are_the_whole(
    tmp_path: Path, speech: Speech, kind: str, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel and two, all of it and a stretch, resampled without a seam."""
    monkeypatch.setattr("speechssl.audio.reading.BLOCK", 2**14)
    path, mono = tmp_path / "a", speech(6.0, 1, 120.0, rate)
    for samples in (mono, np.stack([mono, 0.5 * mono], axis=1)):
        soundfile.write(path, samples, rate, format=kind)
        for offset, count in ((0, None), (rate + 1, 4 * rate - 3)):
            pieces = list(stream_audio(path, offset, count, rate))
            assert len(pieces) > 1
            assert np.concatenate(pieces) == pytest.approx(load_audio(path, offset, count), abs=2e-6)


def test_pieces_are_refused_as_the_whole_is(tmp_path: Path, speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssl.audio.reading.BLOCK", 2**14)
    path, samples = tmp_path / "a.wav", speech(6.0, 1, 120.0, 16_000).copy()
    samples[50_000] = np.nan
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    cases = {"finite samples": (), "has 96000": (90_000, 9_000), "8000 Hz that": (0, None, 8_000)}
    cases |= {"the channel 2": (0, None, 16_000, 2)}
    for sentence, given in cases.items():
        pieces = stream_audio(path, *given)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=sentence):
            list(pieces)
