import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssl
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import save_manifest
from speechssl.errors import DataError
from tests.cases import each_case


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


@each_case(
    "audio, sentence",
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
    (clips / "empty").mkdir(exist_ok=True)
    (clips / "list.txt").write_text("\n")
    with pytest.raises(DataError, match=sentence):
        expand_audio([str(clips / item) for item in audio])


def test_a_list_that_is_no_text_gets_a_sentence(clips: Path) -> None:
    path = clips / "list.txt"
    for content, reason in ((b"caf\xe9.wav\n", "can't decode"), (b"a\0.wav\n", "it has NUL bytes")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"^`audio` \(.*list\.txt\) must be a list of paths in UTF-8.*{reason}"):
            list_ids(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="cannot be read .it is no regular file"):
        list_ids(path)


def test_ids_are_the_same_by_every_door(tmp_path: Path) -> None:
    """A folder, a glob, a list, Python's list of paths, `prepare` of a folder and of a table."""
    root = tmp_path / "clips"
    names = ["a.wav", "a.flac", "a.wav.flac", "d/e.wav", "d/e.flac", "d/f.g.wav", "a/x.wav"]
    for name in names:
        (root / "only" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "only" / name, np.zeros(800), 16_000)
    (tmp_path / "list.txt").write_text("".join(f"clips/only/{name}\n" for name in names))
    (tmp_path / "table.csv").write_text("path\n" + "".join(f"clips/only/{name}\n" for name in names))
    speechssl.prepare(root=str(root), corpus="folder", out=str(tmp_path / "folder"))
    speechssl.prepare(table=str(tmp_path / "table.csv"), corpus="table", out=str(tmp_path / "table"))
    doors = [
        [root],
        [f"{root}/**/*"],
        [f"{root}/only/*", f"{root}/only/*/*"],
        [tmp_path / "list.txt"],
        [root / "only" / name for name in names],
        [tmp_path / "folder" / "all.tsv"],
        [tmp_path / "table" / "all.tsv"],
    ]
    wanted = ["a.flac", "a.wav", "a.wav.flac", "a/x", "d/e.flac", "d/e.wav", "d/f.g"]
    for door in doors:
        assert sorted(list_ids(*door)) == wanted, door


def test_an_id_that_two_places_have_is_refused(clips: Path) -> None:
    save_manifest(expand_audio([str(clips / "b.wav")]), clips.parent / "m.tsv")
    with pytest.raises(DataError, match="`audio` must name each utterance once, but b is 2 times in"):
        list_ids(clips.parent / "m.tsv", clips / "b.wav")


def test_globs_end_where_links_go_in_a_circle(clips: Path) -> None:
    for link in ("deep/up", "deep/again", "more"):
        (clips / link).symlink_to(clips)
    assert list_ids(f"{clips}/**/*.wav") == ["b"]
    assert list_ids(f"{clips}/**/*.FLAC") == ["a"]
    (clips / "deep" / "c.wav").symlink_to("c.wav")
    left_out = LeftOut()
    assert expand_audio([f"{clips}/**/*.wav"], left_out=left_out).column("id") == ["b"]
    assert [(item.id, "symbolic links" in item.reason) for item in left_out.items] == [("deep/c", True)]


def test_what_cannot_be_used_is_left_out_with_its_id(clips: Path) -> None:
    (clips / "deep" / "a.wav").write_bytes(b"RIFF")
    left_out = LeftOut()
    assert expand_audio([str(clips)], left_out=left_out).column("id") == ["b", "deep/a.FLAC"]
    (item,) = left_out.items
    assert (item.id, item.path) == ("deep/a.wav", str(clips / "deep" / "a.wav"))
    with pytest.raises(DataError, match=r"a\.wav must be audio"):
        expand_audio([str(clips)])
    with pytest.raises(DataError, match=r"^.*a\.wav must be audio"):
        expand_audio([str(clips / "deep" / "a.wav")], left_out=LeftOut())
    save_manifest(expand_audio([str(clips / "b.wav")]), clips.parent / "m.tsv")
    mixed = [str(clips / "deep" / "a.wav"), str(clips.parent / "m.tsv")]
    assert expand_audio(mixed, left_out=LeftOut()).column("id") == ["b"]
