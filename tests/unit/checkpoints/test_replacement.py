"""What lay in a run folder comes back unless the new run has a checkpoint of its own."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from speechssl.checkpoints.replacement import ASIDE, Replacement, drop_replaced, recover
from tests.cases import each_case


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give the folder of a finished run, with a file that is not the run's."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "update-0000005").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "result.json", "metrics.jsonl", "notes.txt"):
        (folder / name).write_text(f"old {name}")
    return folder


def read(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_new(folder: Path) -> None:
    (folder / "result.json").unlink(missing_ok=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).write_text(f"new {name}")


def stop_after(patch: pytest.MonkeyPatch, method: str, moved: int) -> None:
    """Let so many moves of `Path.rename` or `Path.replace` be made, and then the process be killed."""
    move, done = getattr(Path, method), []

    def stop(path: Path, target: Path) -> Path:
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(path)
        return Path(move(path, target))

    patch.setattr(Path, method, stop)


def test_what_is_replaced_is_out_of_the_way_and_comes_back(run: Path) -> None:
    before = read(run)
    replacement = Replacement(run, overwrite=True)
    replacement.begin()
    assert {path.name for path in run.iterdir()} == {ASIDE, "notes.txt"}
    write_new(run)
    replacement.undo()
    assert read(run) == before
    assert (run / "checkpoints" / "update-0000005").is_dir() and not (run / ASIDE).exists()


def test_a_run_that_goes_on_keeps_its_checkpoints_meanwhile(run: Path) -> None:
    replacement = Replacement(run, overwrite=False)
    replacement.begin()
    assert (run / "checkpoints" / "update-0000005").is_dir() and (run / "config.yaml").exists()
    write_new(run)
    replacement.undo()
    assert read(run) == {
        **{f"{n}": f"old {n}" for n in ("config.yaml", "environment.json", "result.json")},
        "metrics.jsonl": "new metrics.jsonl",
        "notes.txt": "old notes.txt",
    }


def test_a_new_run_leaves_nothing(tmp_path: Path) -> None:
    replacement = Replacement(tmp_path, overwrite=False)
    replacement.begin()
    write_new(tmp_path)
    replacement.undo()
    assert not any(tmp_path.iterdir())


@each_case("moved", [1, 2, 9])
def test_after_a_kill_the_earlier_run_is_there_again(run: Path, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    """Wherever the kill came: after so many of the files were set aside, and the new ones were written or not."""
    before = read(run)
    with monkeypatch.context() as patch:
        stop_after(patch, "rename", moved)
        try:
            Replacement(run, overwrite=True).begin()
            write_new(run)
        except KeyboardInterrupt:
            assert moved < 9
    recover(run)
    assert read(run) == before
    assert not (run / ASIDE).exists()


def test_a_checkpoint_of_its_own_ends_it(run: Path) -> None:
    Replacement(run, overwrite=True).begin()
    write_new(run)
    (run / "checkpoints" / "update-0000001").mkdir(parents=True)
    drop_replaced(run)
    recover(run)
    assert read(run) == {
        "config.yaml": "new config.yaml",
        "metrics.jsonl": "new metrics.jsonl",
        "notes.txt": "old notes.txt",
    }
    assert not (run / ASIDE).exists()


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    """As where `out` is the folder of a project of another toolkit."""
    for name in ("checkpoints", "wandb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    replacement = Replacement(tmp_path, overwrite=True)
    replacement.begin()
    assert not (tmp_path / ASIDE).exists()
    replacement.undo()
    assert read(tmp_path) == {"checkpoints/mine": "mine", "wandb/mine": "mine"}


@each_case("overwrite", [True, False])
def test_what_cannot_be_set_aside_stays(run: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    """A full disk, or checkpoints/ that is a mount: nothing that was found is removed for it."""
    before = read(run)
    (run / ASIDE).touch()
    replacement = Replacement(run, overwrite)
    with pytest.raises(FileExistsError):
        replacement.begin()
    (run / ASIDE).unlink()
    replacement.undo()
    assert read(run) == before and (run / "checkpoints" / "update-0000005").is_dir()

    def fill(source: Path, target: Path) -> None:
        target.touch()
        raise OSError("no space left")

    monkeypatch.setattr(shutil, "copy2", fill)
    monkeypatch.setattr(Path, "rename", lambda path, target: fill(path, Path("/dev/null")))
    with pytest.raises(OSError, match="no space left"):
        replacement.begin()
    monkeypatch.undo()
    replacement.undo()
    assert read(run) == before and (run / "checkpoints" / "update-0000005").is_dir()


def test_after_a_save_without_an_update_nothing_is_taken_away(run: Path) -> None:
    """A validation that was still due may save the same update again, and a stop may come then."""
    replacement = Replacement(run, overwrite=False)
    replacement.begin()
    write_new(run)
    drop_replaced(run)
    replacement.undo()
    assert (run / "config.yaml").read_text() == "new config.yaml" and (run / "environment.json").exists()
    assert (run / "checkpoints" / "update-0000005").is_dir()


def test_a_link_comes_back(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to("../elsewhere")
    replacement = Replacement(run, overwrite=True)
    replacement.begin()
    replacement.undo()
    assert (run / "checkpoints" / "update-0000005").is_dir() and (run / "checkpoints").is_symlink()


@each_case("moved", range(6))
def test_a_kill_while_the_earlier_run_comes_back_loses_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    before = read(run)
    Replacement(run, overwrite=True).begin()
    write_new(run)
    (run / "trackers.json").write_text("ids of the new run")
    with monkeypatch.context() as patch:
        stop_after(patch, "replace", moved)
        with suppress(KeyboardInterrupt):
            recover(run)
    recover(run)
    assert read(run) == before and (run / "checkpoints" / "update-0000005").is_dir()
