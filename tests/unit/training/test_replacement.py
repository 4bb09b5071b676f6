"""What lay in a run folder comes back unless the new run has a checkpoint of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechssl.training.replacement import ASIDE, Replacement, drop_replaced, recover


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


@pytest.mark.parametrize("moved", [1, 2, 9])
def test_after_a_kill_the_earlier_run_is_there_again(run: Path, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    """Wherever the kill came: after so many of the files were set aside, and the new ones were written or not."""
    before, done = read(run), []
    rename = Path.rename

    def stop(path: Path, target: Path) -> Path:
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
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
