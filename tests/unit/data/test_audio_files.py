"""What is found in a folder does not depend on the machine, and nothing is missed without a word."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from speechssl.data.audio_files import find_audio
from speechssl.errors import DataError


class Listing(nullcontext[None]):
    """What `os.scandir` gives, in an order that is chosen."""

    def __init__(self, place: str, backwards: bool) -> None:
        super().__init__()
        with SCAN(place) as entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    def __next__(self) -> os.DirEntry[str]:
        return next(self.entries)


SCAN = os.scandir


@pytest.mark.parametrize("backwards", [False, True])
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
