"""A run that was killed or stopped is the undisturbed run, to the bit (targets R1, R2, R3, R7, R8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import jobs
from tests.reliability.harness import CRASH_POINTS, ForkServer, Run, find_differences, make_manifests, read_outcome


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(
    server: ForkServer, manifests: Path, tmp_path: Path
) -> None:
    assert jobs.repeat_runs(server, manifests, tmp_path, 3, workers_of=(0, 0, 2))["differing"] == []


def test_another_seed_gives_another_run(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    """The comparison can see: of every kind of thing it compares, something differs."""
    keys = {"training.max_updates": 2, "data.num_workers": 0}
    one, other = (
        read_outcome(jobs.finish(Run(server, manifests, tmp_path / str(seed), {**keys, "seed": seed})))
        for seed in (1, 2)
    )
    kinds = {name.partition("/")[0] for name in find_differences(one, other)}
    assert kinds == {"weights", "ema", "optimizer", "objective", "guard", "log", "progress"}


def test_saving_beside_the_training_changes_nothing(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    outcomes = []
    for every in (1, 1000):
        keys = {"training.max_updates": 6, "training.checkpoint_every": every}
        outcomes.append(read_outcome(jobs.finish(Run(server, manifests, tmp_path / f"every-{every}", keys))))
    assert find_differences(*outcomes) == []


def test_a_run_goes_on_from_wherever_it_was_stopped(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    figures = jobs.stop_everywhere(server, manifests, tmp_path, updates=3, stride=5)
    assert figures["differing"] == []
    assert figures["stops"] >= 3


@pytest.mark.slow
def test_a_run_goes_on_from_every_point_of_two_epochs(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    figures = jobs.stop_everywhere(server, manifests, tmp_path, updates=5)
    assert figures["differing"] == []
    assert figures["stops"] >= 20


def test_a_killed_run_is_the_undisturbed_one(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    check_kills(jobs.kill_at_random(server, manifests, tmp_path, kills=2))


@pytest.mark.slow
def test_a_killed_run_with_damaged_files_is_the_undisturbed_one(server: ForkServer, tmp_path: Path) -> None:
    """They are left out of the same updates, whichever process meets them."""
    made = make_manifests(tmp_path / "data")
    for path in sorted(made.rglob("train/*/1/*.flac"))[:3]:
        path.write_bytes(bytes(path.stat().st_size))
    figures = jobs.kill_at_random(server, made, tmp_path, kills=1, seed="damaged")
    check_kills(figures)
    tables = {path.read_text() for path in tmp_path.glob("*/left_out.tsv")}
    assert len(tables) == 1
    assert len(tables.pop().splitlines()) == 1 + 3


@pytest.mark.slow
def test_a_run_that_is_killed_often_is_the_undisturbed_one(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    check_kills(jobs.kill_at_random(server, manifests, tmp_path, kills=10))
    assert jobs.kill_processes(manifests, tmp_path, kills=2)["differing"] == []


def check_kills(figures: jobs.Figures) -> None:
    assert figures["differing"] == []
    assert figures["unreadable"] == 0
    # An interval, and the updates that were made while the last save was under way.
    assert figures["lost"] <= 6


@pytest.mark.slow
def test_death_at_each_point_of_a_save(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    figures = jobs.crash_at_points(server, manifests, tmp_path)
    assert figures == {"points": len(CRASH_POINTS), "unreadable": 0, "leftovers": 0, "differing": []}
