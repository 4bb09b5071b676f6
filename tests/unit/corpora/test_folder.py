import os
from pathlib import Path

import pytest

from speechssl.corpora.folder import drop_sample_numbers, read_folder
from speechssl.errors import ConfigError, DataError
from tests.cases import each_case


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder of empty files with audio names: one at the top, two of Ann's, one of Bob's."""
    for name in ("top.wav", "ann/a_1.wav", "ann/a_2.flac", "bob/b_1.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "ann" / "a_1.txt").write_text("\ufeffHello,\n  world \n", encoding="utf-8")
    (tmp_path / "ann" / "a_2.txt").write_text(" \n")
    (tmp_path / "bob" / "b_1.TXT").write_text("Bye")
    return tmp_path


def test_speakers_are_the_parent_folders_and_transcripts_lie_beside(folder: Path) -> None:
    recordings = read_folder(folder, "")
    assert [(r.id, r.speaker, r.text) for r in recordings] == [
        ("ann/a_1", "ann", "Hello, world"),
        ("ann/a_2", "ann", None),
        ("bob/b_1", "bob", "Bye"),
        ("top", None, None),
    ]


def test_a_pattern_finds_the_speaker(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [r.speaker for r in read_folder(folder, r"(\w)_\d")] == ["a", "a", "b", None]
    assert "speaker_pattern does not match 1 files, such as" in caplog.text


@each_case(
    "pattern, sentence",
    [
        ("(", r"`speaker_pattern` must be a regular expression, but \("),
        (r"\w", r"`speaker_pattern` must have one group, .* has 0"),
        (r"(\w)(\d)", "has 2"),
        (r"spk(\d+)", "`speaker_pattern` must match the paths, but .* matches none"),
    ],
)
def test_a_pattern_that_finds_nothing_gets_a_sentence(folder: Path, pattern: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_folder(folder, pattern)


def test_formats_that_are_not_read_are_named_with_the_command(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "talk.m4a").touch()
    assert len(read_folder(folder, "")) == 4
    assert "left out: 1 files such as talk.m4a must be converted first, each with ffmpeg -i " in caplog.text
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "x.mp4").touch()
    with pytest.raises(DataError, match=r"has none: 1 files such as x\.mp4 .* ffmpeg -i "):
        read_folder(tmp_path / "phone", "")


def test_a_transcript_in_another_encoding_is_named(folder: Path) -> None:
    (folder / "top.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match=r"top\.txt must be text in UTF-8"):
        read_folder(folder, "")


@each_case("suffix", [".txt", ".TXT"])
def test_what_is_no_file_where_a_transcript_should_be_is_named(folder: Path, suffix: str) -> None:
    beside = folder / f"top{suffix}"
    os.mkfifo(beside)
    with pytest.raises(DataError, match=rf"top{suffix} must be text in UTF-8, but cannot be read \(it is no regular"):
        read_folder(folder, "")
    beside.unlink()
    beside.mkdir()
    with pytest.raises(DataError, match=rf"top{suffix} .* cannot be read \(it is a folder"):
        read_folder(folder, "")
    beside.rmdir()
    beside.symlink_to("gone")
    with pytest.raises(DataError, match=rf"top{suffix} .* cannot be read \(No such file"):
        read_folder(folder, "")
    beside.unlink()


def test_the_sample_numbers_of_timit_are_not_words(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = "0 46797 She had your dark suit"
    spoken = ["0 46797 12 are digits", "0 12 is a year", "1 46797 is a pair", "0 46797", "She said 0 46797 times"]
    files = [folder / f"{k}.wav" for k in range(len(spoken) + 2)]
    texts = drop_sample_numbers([told, *spoken, None], files)
    assert texts == ["She had your dark suit", *spoken, None]
    assert "before the words of 1 transcripts, such as that of" in caplog.text
    (folder / "top.txt").write_text(told + "\n")
    assert "She had your dark suit" in {recording.text for recording in read_folder(folder, "")}
