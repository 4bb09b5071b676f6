import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.corpora.librispeech import find_tree, list_splits, read_sexes, read_splits
from speechssl.errors import DataError
from tests.cases import each_case


def write_tree(root: Path) -> Path:
    """Write two splits: `train` with FLAC, Ogg and WAV by two speakers, `mine` without transcripts."""
    tree = root / "LibriSpeech"
    for name in ("train/84/1/84-1-0001.flac", "train/84/1/84-1-0000.ogg", "train/9/2/9-2-0000.wav"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tree / name, np.zeros(1600), 16_000)
    (tree / "mine/7/1").mkdir(parents=True)
    soundfile.write(tree / "mine/7/1/7-1-0000.flac", np.zeros(1600), 16_000)
    (tree / "train/84/1/84-1.trans.txt").write_text("84-1-0000 HELLO WORLD\n84-1-0001 IT'S ME\n84-1-0009 NOT HERE\n")
    (tree / "SPEAKERS.TXT").write_text(";ID |SEX| SUBSET | MINUTES | NAME\n84   | F | x | 25.1 | |CBW|Ann\n9 | M | x\n")
    (tree / "books").mkdir()
    return tree


def test_splits_have_speaker_sex_and_transcript_sorted_by_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = write_tree(tmp_path)
    splits = read_splits(tree, [])
    assert list(splits) == ["mine", "train"]
    assert [(r.id, r.speaker, r.text, r.extra["sex"]) for r in splits["train"]] == [
        ("84-1-0000", "84", "HELLO WORLD", "F"),
        ("84-1-0001", "84", "IT'S ME", "F"),
        ("9-2-0000", "9", None, "M"),
    ]
    assert [(r.id, r.text, r.extra["sex"]) for r in splits["mine"]] == [("7-1-0000", None, None)]
    assert "train: 1 transcripts have no audio, such as 84-1-0009" in caplog.text


def test_a_tree_is_found_by_itself_its_parent_or_a_split(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    assert find_tree(tree) == (tree, "")
    assert find_tree(tmp_path) == (tree, "")
    assert find_tree(tree / "train") == (tree, "train")
    (tmp_path / "other" / "split" / "ann" / "monday").mkdir(parents=True)
    soundfile.write(tmp_path / "other/split/ann/monday/1.wav", np.zeros(16), 16_000)
    assert find_tree(tmp_path / "other") is None
    assert list_splits(tmp_path / "other") == ["split"]


def test_a_split_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    assert list(read_splits(tree, ["train"])) == ["train"]
    with pytest.raises(DataError, match=r"`splits` must be .* has mine, train, not dev-clean"):
        read_splits(tree, ["dev-clean"])
    with pytest.raises(DataError, match="has no folder with SPEAKER/CHAPTER/audio files"):
        read_splits(tree / "books", [])


def test_audio_elsewhere_in_the_tree_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = write_tree(tmp_path)
    (tree / "train/84/1/84-1-0009.flac").touch()
    (tree / "raw").mkdir()
    (tree / "mine/7/1/7-1-0000.flac").rename(tree / "raw/7.flac")
    (tree / "mine/7/1/7-1-0000.flac").symlink_to(tree / "raw/7.flac")
    read_splits(tree, [])
    assert caplog.text == "", "the usual tree needs no words, nor what a link takes"
    for name in ("train/1/1-3-0000.wav", "train/84/1/deep/x.wav", "extra/x.wav", "y.ogg", "mine/7/1/talk.m4a"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    assert sum(map(len, read_splits(tree, []).values())) == 5
    example = tree / "extra/x.wav"
    assert f"left out: 4 audio files that are not SPLIT/SPEAKER/CHAPTER/file, such as {example}" in caplog.text
    assert "left out: 1 files such as talk.m4a must be converted first, each with ffmpeg" in caplog.text
    assert len(caplog.records) == 2


def test_splits_that_are_not_asked_for_are_not_searched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = write_tree(tmp_path)
    (tree / "train/84/1/84-1-0009.flac").touch()
    (tree / "mine/stray.wav").touch()
    (tree / "stray.wav").touch()
    read_splits(tree, ["train"])
    assert caplog.text == ""
    read_splits(tree, ["mine"])
    assert (
        f"left out: 1 audio files that are not SPLIT/SPEAKER/CHAPTER/file, such as {tree}/mine/stray.wav" in caplog.text
    )


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, scan = write_tree(tmp_path), os.scandir

    def refuse(place: Path) -> Any:
        if os.fspath(place).endswith("/84"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)  # the superuser may read everything
    with pytest.raises(DataError, match=r"/train/84 must be readable, but is not: Permission denied$"):
        read_splits(tree, [])


def test_the_same_name_twice_is_told_apart_by_its_path(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    soundfile.write(tree / "train/84/1/84-1-0000.flac", np.zeros(1600), 16_000)
    ids = [recording.id for recording in read_splits(tree, ["train"])["train"]]
    assert ids == ["84/1/84-1-0000.flac", "84/1/84-1-0000.ogg", "84/1/84-1-0001", "9/2/9-2-0000"]


def test_a_transcript_is_that_of_the_files_own_chapter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = tmp_path / "LibriSpeech"
    for speaker, chapter, text in (("1", "10", "SPEAKER ONE"), ("2", "20", "SPEAKER TWO"), ("3", "30", "")):
        folder = tree / "train" / speaker / chapter
        folder.mkdir(parents=True)
        soundfile.write(folder / "0000.ogg", np.zeros(1600), 16_000)
        if text:
            (folder / f"{speaker}-{chapter}.trans.txt").write_text(f"0000 {text}\n")
    (tree / "train/1/10/more.trans.txt").write_text("0001 NOBODY\n")
    (tree / "train/3/30/0001.ogg").write_bytes((tree / "train/3/30/0000.ogg").read_bytes())
    recordings = read_splits(tree, [])["train"]
    assert [(r.speaker, r.text) for r in recordings] == [
        ("1", "SPEAKER ONE"),
        ("2", "SPEAKER TWO"),
        ("3", None),
        ("3", None),
    ]
    assert "train: 1 transcripts have no audio, such as 0001" in caplog.text


def test_sexes_are_unknown_without_the_list(tmp_path: Path) -> None:
    assert read_sexes(tmp_path / "SPEAKERS.TXT") == {}


@each_case("name", ["train/84/1/84-1.trans.txt", "train/9/2/x.trans.txt", "SPEAKERS.TXT"])
def test_what_is_no_file_where_a_text_should_be_is_named(tmp_path: Path, name: str) -> None:
    tree = write_tree(tmp_path)
    (tree / name).unlink(missing_ok=True)
    os.mkfifo(tree / name)
    with pytest.raises(DataError, match=rf"{name} must be .*, but cannot be read \(it is no regular file\)"):
        read_splits(tree, [])
    (tree / name).unlink()
    (tree / name).mkdir()
    with pytest.raises(DataError, match=rf"{name} must be .*, but cannot be read \(it is a folder\)"):
        read_splits(tree, [])


def test_a_transcript_that_is_no_text_is_named(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    (tree / "train/84/1/84-1.trans.txt").write_bytes("84-1-0000 GRÜSSE".encode("latin-1"))
    with pytest.raises(DataError, match=r"84-1\.trans\.txt must be text in UTF-8, but is not \(.*can't decode"):
        read_splits(tree, [])
