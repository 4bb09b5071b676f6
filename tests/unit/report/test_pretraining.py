from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechssl.report.pretraining import describe_pretraining, make_learning, make_machinery, pick_values
from speechssl.report.run_folder import RunFolder, load_run


def row(update: int, split: str, loss: float, accuracy: float = 0.1) -> dict[str, Any]:
    return {"update": update, "split": split, "loss_contrastive": loss, "accuracy": accuracy, "hours_seen": update / 10}


def make_run(rows: list[dict[str, Any]]) -> RunFolder:
    return RunFolder(Path("run"), "pretrain", config={"objective": {"num_negatives": 100}}, metrics=rows)


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [(6.9, "has not left chance"), (6.5, "just left chance"), (4.66, "learned 2.00 bits"), (float("nan"), "no longer")],
)
def test_the_verdict_is_measured_from_chance(loss: float, verdict: str) -> None:
    summary, _ = describe_pretraining(make_run([row(10, "valid", loss)]))
    assert verdict in summary


def test_chance_is_what_guessing_costs_among_the_negatives_that_are_left() -> None:
    dead = make_run([{**row(10, "valid", 6.25), "loss_of_guessing": 6.248}])
    summary, stats = describe_pretraining(dead)
    assert "has not left chance" in summary
    assert stats[1].comparison == "chance 6.25 bits"


def test_a_validation_before_the_first_update_does_not_speak_for_the_run() -> None:
    rows = [row(0, "valid", 6.66, 0.01), *(row(k, "train", 5.0, 0.2) for k in range(1, 30))]
    summary, stats = describe_pretraining(make_run(rows))
    assert "its training speech" in summary
    assert "2.90 hours" in summary
    assert stats[0].value == "20\u202f%"


def test_held_out_figures_come_with_the_hours_of_their_own_update() -> None:
    summary, _ = describe_pretraining(make_run([row(10, "valid", 5.0), *(row(k, "train", 4.0) for k in range(1, 30))]))
    assert "held-out speech" in summary
    assert "after 1 hour of speech" in summary


def test_elements_of_lists_are_picked() -> None:
    run = make_run([{"update": 2, "split": "train", "p": [1.0, 2.0]}, {"update": 1, "split": "train", "p": [3.0]}])
    assert pick_values(run, "train", "p", 0) == ([1.0, 2.0], [3.0, 1.0])
    assert pick_values(run, "train", "p", 1) == ([2.0], [2.0])


def test_every_metric_has_its_chart(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.pretrain(tmp_path / "run"))
    assert make_learning(run).count("<svg") == 3
    assert make_machinery(run).count("<svg") == 10
    assert "all 12 codes alike" in make_learning(run)
