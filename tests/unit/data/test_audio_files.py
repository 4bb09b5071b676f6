"""What is found in a folder does not depend on the machine, and nothing is missed without a word."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from speechssl.data.files import find_audio, make_ids, walk_once
from speechssl.errors import DataError
from tests.cases import each_case


class Listing(nullcontext[None]):
    """What `os.scandir` gives, in an order that is chosen."""

    def __init__(self, place: str, backwards: bool) -> None:
        super().__init__()
        with SCAN(place) as entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    def __next__(self) -> os.DirEntry[str]:
        return next(self.entries)


SCAN = os.scandir


@each_case("backwards", [False, True])
def test_a_folder_and_the_links_to_it_have_one_name_in_any_order_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    for name in ("elsewhere/o.wav", "root/m/x.wav", "root/n/y.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    for link, target in (("a", "root/m"), ("z", "root/m"), ("b", "elsewhere"), ("c", "elsewhere")):
        (root / link).symlink_to(tmp_path / target)
    monkeypatch.setattr(os, "scandir", lambda place: Listing(place, backwards))
    assert [path.relative_to(root).as_posix() for path in find_audio(root)[0]] == ["b/o.wav", "m/x.wav", "n/y.wav"]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("open/x.wav", "closed/y.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def refuse(place: str) -> Any:
        if os.fspath(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", place)
        return SCAN(place)

    monkeypatch.setattr(os, "scandir", refuse)  # the superuser may read everything
    with caplog.at_level(logging.WARNING, "speechssl"):
        assert find_audio(tmp_path)[0] == [tmp_path / "open" / "x.wav"]
    told = f"left out: 1 folders that cannot be read, such as {tmp_path / 'closed'} (Permission denied)"
    assert caplog.messages == [told]
    with pytest.raises(DataError, match=r"/closed must be readable, but is not: Permission denied$"):
        find_audio(tmp_path / "closed")


@each_case(
    "names, ids",
    [
        (["a.wav", "a.mp3", "a.wav.mp3"], ["a.wav", "a.mp3", "a.wav.mp3"]),
        (["a.wav.mp3", "a.mp3.wav", "b.wav"], ["a.wav", "a.mp3", "b"]),
        (["a.wav", "a.wav/x.mp3", "a.wav/x.wav"], ["a", "a.wav/x.mp3", "a.wav/x.wav"]),
        (["a", "a.wav", "a.wav.flac"], ["a", "a.wav", "a.wav.flac"]),
        (["a", "a.b.c", "d/a.b"], ["a", "a.b", "d/a"]),
        (["A.wav", "a.WAV", "a.wav"], ["A", "a.WAV", "a.wav"]),
        (["x.wav.wav", "x.wav", "x.flac.wav", "x.flac"], ["x.wav.wav", "x.wav", "x.flac.wav", "x.flac"]),
        (["only/deep/a.wav", "only/deep/b.wav"], ["a", "b"]),
    ],
)
def test_no_two_files_have_one_id_whatever_their_order(names: list[str], ids: list[str]) -> None:
    files = [Path("/data") / name for name in names]
    assert make_ids(files) == ids
    assert make_ids(files[::-1]) == ids[::-1]
    assert len(set(ids)) == len(ids)


def test_links_that_go_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.wav").touch()
    for link, target in (("b.wav", "b.wav"), ("c.wav", "d.wav"), ("d.wav", "c.wav"), ("deep/up", ".."), ("e", "e")):
        (tmp_path / link).symlink_to(target)
    assert [path.name for path in find_audio(tmp_path)[0]] == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert [place for place, _ in walk_once(tmp_path, [])] == [str(tmp_path), str(tmp_path / "deep")]
