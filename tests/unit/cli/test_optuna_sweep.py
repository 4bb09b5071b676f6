"""Values that are drawn by what earlier jobs came to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from speechssl.cli.jobs import Job
from speechssl.cli.optuna_sweep import check_metric, run_optuna
from speechssl.errors import ConfigError

pytest.importorskip("optuna", reason="optuna is not installed (extra `sweep`)")

BEST = 0.02


class Bench:
    """Stands for the jobs: the error rate is least where lr is 0.02 and the case is lower; some fail."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        self.fails, self.ran = fails, list[int]()

    def __call__(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.ran.append(job.number)
            stored = json.loads(job.path.read_text())
            values = stored["request"]["values"]
            wer = 10 + 1_000 * abs(values["training.lr"] - BEST) + 5 * (values["text.case"] == "upper")
            if job.number not in self.fails:
                stored["result"] = {"valid": {"wer": wer}}
            job.path.write_text(json.dumps(stored))


def optimise(folder: Path, bench: Bench, **keys: Any) -> dict[str, Any]:
    words = [f"out={folder}", "data.train=x.tsv", "training.lr=tag(log,interval(1e-4,1e-1))", "text.case=upper,lower"]
    return run_optuna("finetune", words, {"n_trials": 6, **keys}, bench)


@pytest.mark.slow
def test_it_finds_the_better_values(tmp_path: Path) -> None:
    bench = Bench()
    result = optimise(tmp_path, bench, n_trials=20)
    assert bench.ran == list(range(20))
    best = result["best"]
    assert best["values"]["text.case"] == "lower"
    assert best["valid.wer"] == min(job["valid"]["wer"] for job in result["jobs"]) < 13.0
    last = [job["values"]["training.lr"] for job in result["jobs"][-8:]]
    assert sum(0.005 < value < 0.06 for value in last) >= 4
    assert len({job["values"]["training.lr"] for job in result["jobs"]}) == 20


@pytest.mark.slow
def test_the_same_command_draws_the_same_and_runs_only_what_is_missing(tmp_path: Path) -> None:
    first = optimise(tmp_path / "a", Bench(), n_jobs=2)
    assert [job["values"] for job in optimise(tmp_path / "b", Bench(), n_jobs=2)["jobs"]] == [
        job["values"] for job in first["jobs"]
    ]
    bench = Bench()
    assert optimise(tmp_path / "a", bench, n_jobs=2) == first
    assert bench.ran == []
    longer = optimise(tmp_path / "a", bench, n_jobs=2, n_trials=8)
    assert bench.ran == [6, 7]
    assert longer["jobs"][:6] == first["jobs"]


def test_a_failed_trial_is_no_best_one_and_runs_again(tmp_path: Path) -> None:
    result = optimise(tmp_path, Bench(fails=[3]), n_trials=5)
    assert "error" in result["jobs"][3]
    assert result["best"]["job"] != 3
    bench = Bench()
    optimise(tmp_path, bench, n_trials=4)
    assert bench.ran == [3]


def test_a_metric_that_no_result_has_is_said_after_the_first_jobs(tmp_path: Path) -> None:
    bench = Bench(fails=[0])
    with pytest.raises(ConfigError, match="is valid.loss_contrastive, and job 1 has valid.wer$"):
        optimise(tmp_path, bench, metric="valid.loss_contrastive")
    assert bench.ran == [0, 1], "a job that failed says nothing of the metric"


def test_a_figure_that_was_not_finite_is_a_failed_trial() -> None:
    rows = [{"job": 0, "values": {}, "valid": {"wer": None}}, {"job": 1, "values": {"wer": 3}, "error": "stopped"}]
    check_metric("finetune", rows, "valid.wer")
    for result in ({"valid": None}, {"valid": {"wer": [1.0]}}, {"valid": {"wer": "12"}}):
        with pytest.raises(ConfigError, match="`hydra.sweeper.metric` must name a figure of the result of `finetune`"):
            check_metric("finetune", [{"job": 0, "values": {"valid.wer": 1}, **result}], "valid.wer")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"n_trial": 3}, "`hydra.sweeper.n_trial` must be a key of hydra/sweeper=optuna"),
        ({"direction": "up"}, "`hydra.sweeper.direction` must be minimize or maximize"),
        ({"n_trials": 0}, "`hydra.sweeper.n_trials` must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        optimise(tmp_path, Bench(), **keys)


def test_there_must_be_something_to_draw_and_a_figure_to_go_by(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be given keys to draw"):
        run_optuna("finetune", [f"out={tmp_path}", "training.lr=1e-3"], {}, Bench())
    with pytest.raises(ConfigError, match=r"`hydra.sweeper.metric` must name a figure of the result of `prepare`"):
        run_optuna("prepare", ["x", f"out={tmp_path}", "seed=1,2"], {}, Bench())
