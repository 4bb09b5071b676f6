"""One folder, one run, with processes as a user starts them (target R12)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import jobs


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_dead_one_holds_nothing(manifests: Path, tmp_path: Path) -> None:
    figures = jobs.race(manifests, tmp_path, races=3)
    assert (figures["refused"], figures["named"], figures["free_after_kill"]) == (3, 3, True)
    # Two seconds on an idle machine; the tests may share it.
    assert figures["slowest_s"] < 5


@pytest.mark.slow
def test_of_two_that_start_together_one_wins(manifests: Path, tmp_path: Path) -> None:
    assert jobs.race_for_start(manifests, tmp_path, races=2)["one_winner"] == 2
