from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.audio.reading import load_audio, read_info
from speechssl.corpora.scan import Recording, find_cuts, find_quietest, scan_recordings
from speechssl.data.files import find_audio, make_ids
from speechssl.errors import DataError
from tests.cases import each_case

RATE = 8_000


def write_noise(path: Path, seconds: float, pauses_s: tuple[float, ...] = ()) -> np.ndarray:
    """Write noise with half a second of silence around the given times."""
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
    for pause in pauses_s:
        samples[round((pause - 0.25) * RATE) : round((pause + 0.25) * RATE)] = 0.0
    soundfile.write(path, samples, RATE)
    return samples


def test_a_long_file_is_cut_in_its_pauses_and_nothing_is_lost(tmp_path: Path) -> None:
    write_noise(tmp_path / "talk.flac", 95.0, (5.0, 17.0, 40.0, 61.8, 80.0))
    scan = scan_recordings([Recording("talk", tmp_path / "talk.flac")], tmp_path, "all")
    rows = [scan.manifest[index] for index in range(len(scan.manifest))]
    assert [row.id for row in rows] == [f"talk-part{n:04d}" for n in range(5)]
    assert [round(row.offset / RATE) for row in rows] == [0, 17, 40, 62, 80]
    parts = [load_audio(row.path, row.offset, row.num_samples) for row in rows]
    assert sum(row.num_samples for row in rows) == read_info(tmp_path / "talk.flac").num_samples
    assert all(5 <= row.duration_s <= 25 or row is rows[-1] for row in rows)
    assert all(np.abs(part[-1_000:]).max() < 0.01 for part in parts[:-1])


@each_case("seconds", [30.01, 40.0, 50.3, 3600.7])
def test_rows_of_a_file_without_pauses_are_neither_long_nor_short(tmp_path: Path, seconds: float) -> None:
    write_noise(tmp_path / "a.wav", seconds)
    cuts = find_cuts(tmp_path / "a.wav", read_info(tmp_path / "a.wav"))
    lengths = np.diff(cuts) / RATE
    assert cuts[0] == 0 and cuts[-1] == round(seconds * RATE)
    assert lengths[:-1].min() >= 15 and lengths[:-1].max() <= 25
    assert 5 <= lengths[-1] <= 30


def test_only_the_stretches_of_the_cuts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(tmp_path / "a.wav", 300.0, (20.0, 40.0, 60.0))
    read, counted = soundfile.SoundFile.read, []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **kind: counted.append(n) or read(self, n, **kind))
    cuts = find_cuts(tmp_path / "a.wav", read_info(tmp_path / "a.wav"))
    assert counted == [10 * RATE] * (len(cuts) - 2)


def test_the_quietest_point_is_the_middle_of_the_pause() -> None:
    samples = np.ones(RATE, dtype=np.float32)
    samples[3_000:4_600] = 0.0
    assert find_quietest(samples, RATE) == pytest.approx(3_800, abs=80)


def test_a_file_with_a_transcript_and_a_short_one_stay_whole(tmp_path: Path) -> None:
    write_noise(tmp_path / "long.wav", 40.0)
    write_noise(tmp_path / "short.wav", 30.0)
    recordings = [Recording("l", tmp_path / "long.wav", "s", "SOME WORDS"), Recording("s", tmp_path / "short.wav")]
    manifest = scan_recordings(recordings, tmp_path, "all").manifest
    assert manifest.column("id") == ["l", "s"]
    assert not manifest.has("offset")
    assert manifest[0].text == "SOME WORDS"


def test_a_file_that_cannot_be_read_is_named_and_the_others_stay(tmp_path: Path) -> None:
    write_noise(tmp_path / "good.wav", 1.0)
    write_noise(tmp_path / "cut.flac", 60.0)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 4])
    (tmp_path / "text.wav").write_text("no sound")
    recordings = [Recording(name, tmp_path / name) for name in ("cut.flac", "good.wav", "text.wav", "none.wav")]
    scan = scan_recordings(recordings, tmp_path, "all")
    assert scan.manifest.column("id") == ["good.wav"]
    assert [item.path.name for item in scan.unreadable] == ["cut.flac", "text.wav", "none.wav"]
    assert "must be whole" in scan.unreadable[0].reason


def test_no_file_left_is_an_error_and_so_are_two_of_one_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train must hold audio files, but none of 1 can be read: .*none\.wav"):
        scan_recordings([Recording("a", tmp_path / "none.wav")], tmp_path, "train")
    with pytest.raises(DataError, match="train must hold audio files, but there is none"):
        scan_recordings([], tmp_path, "train")
    with pytest.raises(DataError, match="the ids of train must be unique, but 'a' stands for 2 files"):
        scan_recordings([Recording("a", tmp_path / n) for n in "xy"], tmp_path, "train")


def test_a_name_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    write_noise(tmp_path / "good.wav", 1.0)
    (tmp_path / name).hardlink_to(tmp_path / "good.wav")
    scan = scan_recordings([Recording("a", tmp_path / name), Recording("b", tmp_path / "good.wav")], tmp_path, "all")
    assert scan.manifest.column("id") == ["b"]
    assert "must have a name in UTF-8" in scan.unreadable[0].reason


def test_folders_are_searched_in_depth_and_links_once(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("b/c/2.FLAC", "b/1.wav", "a.mp3", "talk.m4a", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found, foreign = find_audio(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.mp3", "b/1.wav", "b/c/2.FLAC"]
    assert [path.name for path in foreign] == ["talk.m4a"]


def test_ids_are_paths_without_suffix_unless_two_are_alike(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.wav", "a.flac", "d/a.wav")]
    assert make_ids(files) == ["a.wav", "a.flac", "d/a"]


def test_a_chosen_channel_is_a_column_that_readers_follow(tmp_path: Path) -> None:
    left = np.random.default_rng(1).uniform(-0.5, 0.5, 40 * RATE)
    soundfile.write(tmp_path / "both.wav", np.stack([left, -left], axis=1), RATE)
    write_noise(tmp_path / "mono.wav", 1.0)
    recordings = [Recording(name, tmp_path / f"{name}.wav") for name in ("both", "mono")]
    scan = scan_recordings(recordings, tmp_path, "all", channel=2)
    assert [item.path.name for item in scan.unreadable] == ["mono.wav"]
    assert "must have the channel 2 that `channel` names, but has 1" in scan.unreadable[0].reason
    assert scan.manifest.column("channel") == [2] * len(scan.manifest)
    row = scan.manifest[0]
    read = load_audio(row.path, row.offset, row.num_samples, row.sample_rate, row.channel)
    assert np.abs(read).max() > 0.3
    assert not scan_recordings(recordings, tmp_path, "all").manifest.has("channel")
