import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.data.inputs import expand_audio
from speechssl.data.manifest import save_manifest
from speechssl.errors import DataError


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Give a folder with b.wav, deep/a.FLAC and a text that is no audio."""
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "b.wav", np.zeros(160), 16_000)
    soundfile.write(folder / "deep" / "a.FLAC", np.zeros(441), 44_100)
    (folder / "notes.md").write_text("no audio")
    return folder


def list_ids(*audio: str | Path) -> list[str]:
    return expand_audio([str(item) for item in audio]).column("id")


def test_a_file_a_folder_and_a_glob(clips: Path) -> None:
    assert list_ids(clips / "b.wav") == ["b"]
    assert list_ids(clips) == ["b", "deep/a"]
    assert list_ids(f"{clips}/**/*.[fF]*") == ["a"]
    assert list_ids(clips / "deep" / "a.FLAC", clips / "b.wav") == ["deep/a", "b"]
    row = expand_audio([str(clips / "deep")])[0]
    assert (row.path, row.sample_rate, row.num_samples) == (clips / "deep" / "a.FLAC", 44_100, 441)


def test_a_manifest_and_a_list_of_paths(clips: Path) -> None:
    save_manifest(expand_audio([str(clips)]), clips.parent / "m.tsv")
    assert list_ids(clips.parent / "m.tsv") == ["b", "deep/a"]
    (clips.parent / "list.txt").write_text("clips/deep/a.FLAC\n\nclips/b.wav\n")
    assert list_ids(clips.parent / "list.txt") == ["deep/a", "b"]


def test_the_same_file_twice_is_one_row_and_like_names_are_told_apart(clips: Path) -> None:
    soundfile.write(clips / "b.flac", np.zeros(160), 16_000)
    assert list_ids(clips, clips / "b.wav") == ["b.flac", "b.wav", "deep/a"]


def test_rows_come_in_the_order_given(clips: Path) -> None:
    for name in ("c", "d"):
        soundfile.write(clips / f"{name}.wav", np.zeros(160), 16_000)
    save_manifest(expand_audio([str(clips / "deep"), str(clips / "d.wav")]), clips.parent / "m.tsv")
    manifest = clips.parent / "m.tsv"
    assert list_ids(clips / "c.wav", manifest, clips / "b.wav") == ["c", "deep/a", "d", "b"]
    assert list_ids(clips / "c.wav", clips / "b.wav", clips / "c.wav", manifest) == ["c", "b", "deep/a", "d"]
    items = [str(clips / name) for name in ("c.wav", "b.wav", "c.wav", "c.wav")]
    repeated = expand_audio(items, keep_repeats=True)
    assert repeated.column("id") == ["c", "b", "c", "c"]
    assert [repeated[k].path for k in range(4)] == [Path(item) for item in items]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_name_in_another_encoding_gets_a_sentence(clips: Path) -> None:
    (clips / "b.wav").rename(os.fsdecode(os.fsencode(clips) + b"/caf\xe9.wav"))
    with pytest.raises(DataError, match=r"`audio` must have paths in UTF-8, but has '.*caf\\udce9.wav'"):
        list_ids(clips)


def test_linked_files_keep_their_own_names_and_linked_folders_are_searched(clips: Path, tmp_path: Path) -> None:
    """As stores that are made of links have them (git-annex, DVC, a Hub's cache)."""
    links = tmp_path / "links"
    links.mkdir()
    for name in ("alice", "bob"):
        (links / f"{name}.wav").symlink_to(clips / "b.wav")
    assert list_ids(links / "alice.wav", links / "bob.wav") == ["alice", "bob"]
    (links / "more").symlink_to(clips / "deep")
    assert list_ids(links) == ["alice", "bob", "more/a"]
    # Behind a link `..` is the folder above what it points to.
    assert list_ids(links / "more" / ".." / "b.wav") == ["b"]


def test_one_file_named_in_two_ways_is_one_row(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clips)
    assert list_ids("b.wav", clips / "b.wav", "deep/../b.wav") == ["b"]


def test_files_that_are_left_out_are_named(clips: Path, caplog: pytest.LogCaptureFixture) -> None:
    (clips / "phone.m4a").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "speechssl"):
        assert list_ids(clips) == ["b", "deep/a"]
    assert "phone.m4a -ac 1 -ar 16000 " in caplog.text
    (clips / "only").mkdir()
    (clips / "only" / "x.m4a").write_bytes(b"")
    with pytest.raises(DataError, match="holds none: 1 files such as x.m4a must be converted"):
        list_ids(clips / "only")


def test_a_list_may_begin_with_a_mark(clips: Path) -> None:
    (clips / "list.txt").write_text("b.wav\n", encoding="utf-8-sig")
    assert list_ids(clips / "list.txt") == ["b"]


def test_an_existing_name_with_brackets_is_no_glob(clips: Path) -> None:
    os.rename(clips / "b.wav", clips / "b [1].wav")
    assert list_ids(clips / "b [1].wav") == ["b [1]"]


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        ([], "`audio` must be files, folders, globs or a manifest, but is not given"),
        (["none.wav"], "`audio` must name audio that is there, but .*none.wav does not exist"),
        (["*.mp3"], r"`audio` must match files, but the glob .*\*\.mp3 matches none"),
        (["empty"], "`audio` must name audio, but the folder .*empty holds none"),
        (["notes.md"], "notes.md must be audio that libsndfile reads"),
        (["none.tsv"], "`audio` must be a manifest .* but .*none.tsv does not exist"),
        (["list.txt"], "`audio` must name audio, but .*list.txt lists no paths"),
    ],
)
def test_what_names_no_audio_gets_a_sentence(clips: Path, audio: list[str], sentence: str) -> None:
    (clips / "empty").mkdir()
    (clips / "list.txt").write_text("\n")
    with pytest.raises(DataError, match=sentence):
        expand_audio([str(clips / item) for item in audio])
