"""What stands in a folder of checkpoints and is none of ours to read: copies of links, stray files, folders gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from speechssl.checkpoints.layout import list_published
from speechssl.checkpoints.snapshot import Progress
from speechssl.checkpoints.store import CheckpointStore, find_problem
from speechssl.errors import CheckpointError
from speechssl.training.resume import TrainingState


def save(store: CheckpointStore, state: TrainingState, *updates: int) -> None:
    for update in updates:
        state.progress = Progress(update, best_value=1.0, best_update=updates[0])
        store.save(state.take_snapshot(), is_best=update == updates[0])


@pytest.fixture
def copy(state: TrainingState, tmp_path: Path) -> Path:
    """Give a run folder as `cp -rL` copies it: `best` and `last` are folders."""
    (tmp_path / "run").mkdir()
    save(CheckpointStore(tmp_path / "run", 3), state, 1, 2, 3)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=False)
    assert not (tmp_path / "copy" / "checkpoints" / "best").is_symlink()
    return tmp_path / "copy"


def go_on(copy: Path, state: TrainingState) -> Path | None:
    """Find what a run goes on from, load it, and save the next."""
    store = CheckpointStore(copy, 3)
    found = store.find_valid()
    if found is not None:
        store.load(found, state)
        state.progress.update = 4
        store.save(state.take_snapshot(), is_best=False)
        assert os.readlink(store.folder / "last") == "update-0000004"
    return found


def test_copies_of_links_become_links_again(copy: Path, state: TrainingState) -> None:
    found = go_on(copy, state)
    assert found is not None and found.name == "update-0000003"
    assert os.readlink(copy / "checkpoints" / "best") == "update-0000001"
    assert len(list_published(copy / "checkpoints")) == 4


def test_a_copy_takes_the_place_of_a_checkpoint_that_is_gone_or_damaged(copy: Path, state: TrainingState) -> None:
    shutil.rmtree(copy / "checkpoints" / "update-0000001")
    (copy / "checkpoints" / "update-0000003" / "model.safetensors").write_bytes(b"short")
    found = go_on(copy, state)
    assert found is not None and found.name == "update-0000003" and not find_problem(found)
    assert os.readlink(copy / "checkpoints" / "best") == "update-0000001"
    assert not find_problem(copy / "checkpoints" / "best")


def test_only_the_best_was_copied(copy: Path, state: TrainingState) -> None:
    for name in ("update-0000001", "update-0000002", "update-0000003", "last"):
        shutil.rmtree(copy / "checkpoints" / name)
    found = go_on(copy, state)
    assert found is not None and found.name == "update-0000001"


def test_what_does_not_say_which_it_is_is_no_reason_to_begin_again(copy: Path, state: TrainingState) -> None:
    for path in (copy / "checkpoints").iterdir():
        shutil.rmtree(path)
    (copy / "checkpoints" / "last").write_text("stray")
    with pytest.raises(CheckpointError, match="must hold a whole checkpoint to go on from"):
        go_on(copy, state)


def test_stray_files_are_no_obstacle(copy: Path, state: TrainingState, tmp_path: Path) -> None:
    folder, victim = copy / "checkpoints", tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    (folder / ".update-0000009.part").write_text("")
    (folder / ".update-0000003.replaced").symlink_to(victim)
    (folder / ".update-0000004.part").symlink_to(victim)
    (folder / "damaged-update-0000002").write_text("")
    (folder / "update-0000008").write_text("")
    (folder / ".last").symlink_to(victim)
    (folder / ".best").mkdir()
    found = go_on(copy, state)
    assert found is not None and found.name == "update-0000003"
    assert (victim / "file").read_text() == "precious"
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_run_folder_that_was_deleted_does_not_come_back_by_half(state: TrainingState, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be .*No such file"):
        save(CheckpointStore(tmp_path / "gone", 2), state, 1)
    assert not (tmp_path / "gone").exists()
