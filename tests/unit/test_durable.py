"""What we write goes nowhere else, is never there by half, and a disk that refuses is one sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from speechssl.durable import REFUSALS, Appender, open_own, remove, save_tensors, write_in_one_step, writing
from speechssl.errors import ConfigError
from tests.cases import each_case


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@each_case("number", [*REFUSALS, errno.EIO, errno.EACCES, errno.ESTALE])
def test_what_a_disk_refuses_is_one_sentence(tmp_path: Path, number: int) -> None:
    sentence = "`out` must be a place that can be written, but .*x could not be"
    with pytest.raises(ConfigError, match=sentence), writing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass_where_only_refusals_are_meant(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path, only=REFUSALS):
        (tmp_path / "none").read_text()


@each_case("kind", ["link", "dangling link", "second name", "pipe", "folder"])
def test_only_a_file_of_its_own_is_opened(tmp_path: Path, victim: Path, kind: str) -> None:
    path = tmp_path / "own"
    match kind:
        case "link":
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(tmp_path / "none")
        case "second name":
            path.hardlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(OSError, match="own"):
        open_own(path, os.O_WRONLY)
    with pytest.raises(ConfigError, match="own could not be"):
        Appender(path)
    if kind != "folder":
        write_in_one_step(path, "new")
        assert path.read_text() == "new" and not path.is_symlink()
    assert victim.read_text() == "precious" and not (tmp_path / "none").exists()


def test_a_link_where_the_scratch_file_goes_is_not_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".x.part").symlink_to(victim)
    write_in_one_step(tmp_path / "x", "new")
    assert (victim.read_text(), (tmp_path / "x").read_text()) == ("precious", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim", "x"]


def test_what_cannot_be_written_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ConfigError, match=r"x could not be \(No space left on device\)"):
        write_in_one_step(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_no_utf8_is_spelt_as_json_spells_it(tmp_path: Path) -> None:
    write_in_one_step(tmp_path / "x", '"\udcff"')
    assert (tmp_path / "x").read_bytes() == b'"\\udcff"'


def test_a_piece_that_is_refused_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write = Appender(tmp_path / "x"), os.write
    file.write(b"first\n")

    def write_half(handle: int, piece: bytes) -> int:
        if len(piece) < 4:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return write(handle, bytes(piece)[:4])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_half)
        with pytest.raises(ConfigError, match="Disk quota exceeded"):
            file.write(b"second\n")
    file.write(b"third\n")
    file.close()
    assert (tmp_path / "x").read_text() == "first\nthird\n"


def test_a_file_that_was_deleted_meanwhile_is_missed(tmp_path: Path) -> None:
    file = Appender(tmp_path / "x")
    (tmp_path / "x").unlink()
    with pytest.raises(ConfigError, match="it was deleted meanwhile"):
        file.write(b"line\n")
    file.close()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(victim)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert (tmp_path / "folder" / "link").is_symlink()
    remove(tmp_path / "folder")
    remove(tmp_path / "none")
    assert list(tmp_path.iterdir()) == [victim]


def fail_as_torch_does(path: Path) -> None:
    with writing(path, also=(RuntimeError,)):
        try:
            raise RuntimeError("file write failed")
        except RuntimeError:
            # Its writer complains once more when it is closed.
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904


def test_what_a_library_says_of_a_full_disk_is_the_same_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x could not be \(file write failed\)"):
        fail_as_torch_does(tmp_path / "x")


def test_tensors_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
    modes = [(tmp_path / name).stat().st_mode for name in ("text", "x.safetensors")]
    assert modes[0] == modes[1]
