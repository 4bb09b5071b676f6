"""A stop on request saves, ends within seconds with its code, and costs nothing (target R5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import jobs
from tests.reliability.harness import ForkServer, Run, list_unreadable


@pytest.mark.slow
def test_signals_save_and_end_with_their_codes(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    check(jobs.send_signals(server, manifests, tmp_path, each=1, updates=8, seed="few"), least=1)


@pytest.mark.slow
def test_many_signals_save_and_end_with_their_codes(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    check(jobs.send_signals(server, manifests, tmp_path, each=4), least=8)


def check(figures: jobs.Figures, least: int) -> None:
    assert figures["stops"] >= least
    assert figures["wrong"] == 0
    assert figures["slowest_s"] < 10
    assert figures["lost"] == 0
    assert figures["differing"] == []


def test_the_time_limit_saves_and_ends_with_75(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    keys = {"training.max_updates": 100_000, "training.validate_every": 100_000, "data.num_workers": 0}
    run = Run(server, manifests, tmp_path / "limited", {**keys, "training.max_hours": 4 / 3600})
    assert run.finish() == 75
    assert "stopped by training.max_hours after update" in run.log.read_text()
    assert not list_unreadable(run)
    first = run.read_update()
    assert run.finish() == 75
    assert run.find_resumed() == first


def test_a_stop_inside_a_validation_does_not_wait_for_its_end(
    server: ForkServer, manifests: Path, tmp_path: Path
) -> None:
    """The first look is before the first batch of the first validation."""
    run = Run(server, manifests, tmp_path / "stopped", {"data.num_workers": 0})
    assert run.finish(look=1) == 75
    assert "valid 0/" not in run.log.read_text()
