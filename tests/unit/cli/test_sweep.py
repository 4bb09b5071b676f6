"""`-m`: one job for each point, job n in `out/n`; what fails, what is run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speechssl.cli import run
from speechssl.cli.main import main
from speechssl.cli.words import Request, read_words
from speechssl.durable import write_result
from speechssl.errors import ConfigError, StoppedOnRequest


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the seeds of the jobs that ran; the one of seed 2 is refused."""
    seeds: list[int] = []

    def run_request(request: Request) -> dict[str, Any]:
        seeds.append(request.values["seed"])
        if request.values["seed"] == 2:
            raise ConfigError("`seed` must be 1 or 3, but is 2")
        out = Path(request.values["out"])
        out.mkdir(parents=True, exist_ok=True)
        result = {"out": str(out), "wer": 10.0 + request.values["seed"]}
        write_result(out, result)
        return result

    monkeypatch.setattr(run, "run_request", run_request)
    return seeds


def test_a_sweep_is_one_request_for_each_point() -> None:
    requests = read_words("evaluate", ["x", "seed=1,2", "num_resamples=range(10,30,10)"])
    points = [(request.values["seed"], request.values["num_resamples"]) for request in requests]
    assert points == [(1, 10), (1, 20), (2, 10), (2, 20)]


def test_job_n_goes_to_out_n_and_one_failure_leaves_the_others(
    tmp_path: Path, started: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "x", f"out={tmp_path}", "seed=1,2,3", "-m"]
    assert main(words) == 2
    captured = capsys.readouterr()
    jobs = json.loads(captured.out)["jobs"]
    assert [job.get("out") for job in jobs] == [str(tmp_path / "0"), None, str(tmp_path / "2")]
    assert [job["values"] for job in jobs] == [{"seed": 1}, {"seed": 2}, {"seed": 3}]
    assert (jobs[1]["error"], jobs[1]["exit_code"]) == ("`seed` must be 1 or 3, but is 2", 2)
    assert "job 1 (seed=2): `seed` must be 1 or 3" in captured.err
    table = captured.err.splitlines()[-4:]
    assert [line.split() for line in table] == [
        ["job", "seed", "wer"],
        ["0", "1", "11"],
        ["1", "2", "failed"],
        ["2", "3", "13"],
    ]
    # Again: what is finished is not run again, and says the same.
    assert main(words) == 2
    assert json.loads(capsys.readouterr().out)["jobs"] == jobs
    assert started == [1, 2, 3, 2]
    assert main([*words, "num_resamples=10"]) == 2
    assert "holds another sweep" in capsys.readouterr().err
    assert main([*words, "num_resamples=10", "overwrite=true"]) == 2
    assert started == [1, 2, 3, 2, 1, 2, 3]


def test_a_stop_ends_a_sweep_with_its_own_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(request: Request) -> None:
        raise StoppedOnRequest("saved", 75)

    monkeypatch.setattr(run, "run_request", stop)
    assert main(["evaluate", "x", f"out={tmp_path}", "seed=1,2", "-m"]) == 75


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, problem in (
        (["evaluate", "x", f"out={tmp_path}", "seed=interval(1,3)", "-m"], "`seed` must be a list or a range"),
        (["pretrain", "model=tiny", "seed=1,2", "-m"], "`out` must be given with -m (job n goes to out/n)"),
        (["doctor", "-m"], "-m must be used with a verb that writes to `out`, but `doctor` does not"),
        (["evaluate", "x", "seed=1,2"], "a list of values such as seed=1,2 must come with -m, which runs 2 jobs"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert problem in error
        assert error.count("\n") == 1


def test_a_sweep_for_real(librispeech_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", str(librispeech_tree / "train"), "folder", f"out={tmp_path}", "valid_share=0.2,2.0", "-m"]
    assert main(words) == 2
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert jobs[0]["manifests"]["train"]["num_utterances"] > 0
    assert jobs[1]["error"].startswith("`valid_share` must be at least 0")
