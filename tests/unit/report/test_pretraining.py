from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechssl.report.pretraining import describe_pretraining, draw_learning, find_chance, make_machinery, pick_values
from speechssl.report.run_folder import RunFolder, load_run


def row(update: int, split: str, loss: float, accuracy: float = 0.1) -> dict[str, Any]:
    return {"update": update, "split": split, "loss_contrastive": loss, "accuracy": accuracy, "hours_seen": update / 10}


def make_run(rows: list[dict[str, Any]]) -> RunFolder:
    return RunFolder(Path("run"), "pretrain", config={"objective": {"num_negatives": 100}}, metrics=rows)


def test_there_is_one_chance_and_all_of_the_page_says_it(make: SimpleNamespace, tmp_path: Path) -> None:
    assert find_chance(make_run([row(10, "valid", 6.25)])).loss == pytest.approx(6.658, abs=1e-3)
    run = load_run(make.pretrain(tmp_path / "run"))
    for k, line in enumerate(run.metrics):
        line["loss_of_guessing"] = 6.0 + 0.25 * (k == len(run.metrics) - 1)
    run.metrics[-1]["split"], run.metrics[-1]["update"] = "valid", 400
    chance = find_chance(run)
    assert (chance.loss, chance.accuracy, chance.candidates) == (6.25, 2**-6.25, "76")
    summary, stats = describe_pretraining(run)
    assert "among 76 candidates" in summary and "guessing would find 1.3" in summary
    assert stats[1].comparison == "guessing 6.25 bits"
    loss, accuracy, _ = draw_learning(run)
    assert [figure.content.series[-1].y[0] for figure in (loss, accuracy)] == pytest.approx([6.25, 100 * 2**-6.25])


def test_a_validation_before_the_first_update_does_not_speak_for_the_run() -> None:
    rows = [row(0, "valid", 6.66, 0.01), *(row(k, "train", 5.0, 0.2) for k in range(1, 30))]
    summary, stats = describe_pretraining(make_run(rows))
    assert "its training speech" in summary and "2.90 hours" in summary
    assert stats[0].value == "20\u202f%"


def test_held_out_figures_come_with_the_hours_of_their_own_update() -> None:
    summary, _ = describe_pretraining(make_run([row(10, "valid", 5.0), *(row(k, "train", 4.0) for k in range(1, 30))]))
    assert "held-out speech" in summary and "after 1 hour of speech" in summary


def test_elements_of_lists_are_picked() -> None:
    run = make_run([{"update": 2, "split": "train", "p": [1.0, 2.0]}, {"update": 1, "split": "train", "p": [3.0]}])
    assert pick_values(run, "train", "p", 0) == ([1.0, 2.0], [3.0, 1.0])
    assert pick_values(run, "train", "p", 1) == ([2.0], [2.0])


def test_every_metric_has_its_chart_and_those_of_a_new_objective_too(make: SimpleNamespace, tmp_path: Path) -> None:
    run = load_run(make.pretrain(tmp_path / "run"))
    learning, (machinery,) = draw_learning(run), make_machinery(run)
    assert [figure.title for figure in learning] == ["Contrastive loss", "Accuracy", "Codebook perplexity"]
    assert learning[2].content.series[-1].label == "all 12 codes alike"
    assert len(machinery.figures) == 10
    others = {"split": "train", "lr": 0.1, "accuracy": 0.5, "energy_error": 0.5}
    other = make_run([{"update": k, "loss": 9.0 - k, **others} for k in range(1, 9)])
    learning, (machinery,) = draw_learning(other), make_machinery(other)
    assert [figure.title for figure in learning] == ["Loss", "accuracy", "energy_error"], "before the machine's figures"
    assert [figure.title for figure in machinery.figures] == ["Learning rate"]
    assert describe_pretraining(other)[0] == "Its loss on its training speech is 4.50."
