"""One job for each point of a sweep: folders, failures, what is run again, launchers and sweepers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from speechssl.cli import sweep
from speechssl.cli.jobs import Job, run_job
from speechssl.cli.launchers import choose_launcher, count_processes
from speechssl.cli.main import main
from speechssl.cli.sweep_plan import take_plan
from speechssl.cli.words import Request, read_words
from speechssl.errors import ConfigError


@pytest.fixture
def started() -> list[int]:
    return []


@pytest.fixture
def launcher(started: list[int]) -> Callable[[Sequence[Job]], None]:
    """Run jobs without a process each; job 1 ends without a result, as one that was killed."""

    def run(jobs: Sequence[Job]) -> None:
        for job in jobs:
            started.append(job.number)
            stored = json.loads(job.path.read_text())
            if job.number != 1:
                stored["result"] = {"out": stored["request"]["values"]["out"], "wer": 10.0 + job.number}
            job.path.write_text(json.dumps(stored))

    return run


def sweep_seeds(folder: Path, *more: str) -> list[Request]:
    return read_words("evaluate", ["x", f"out={folder}", "seed=1,2,3", *more])


def test_job_n_goes_to_out_n(tmp_path: Path, launcher: Any) -> None:
    result = sweep.run_sweep(sweep_seeds(tmp_path), launcher)
    assert [job.get("out") for job in result["jobs"]] == [str(tmp_path / "0"), None, str(tmp_path / "2")]
    assert [job["values"] for job in result["jobs"]] == [{"seed": 1}, {"seed": 2}, {"seed": 3}]


def test_one_failure_leaves_the_others_and_is_named(
    tmp_path: Path, launcher: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result = sweep.run_sweep(sweep_seeds(tmp_path), launcher)
    assert "without a result" in result["jobs"][1]["error"]
    assert sweep.find_exit_code(result["jobs"]) == 1
    assert result["table"] == [
        {"job": 0, "seed": 1, "wer": 10.0, "state": "done"},
        {"job": 1, "seed": 2, "wer": None, "state": "failed"},
        {"job": 2, "seed": 3, "wer": 12.0, "state": "done"},
    ]
    printed = capsys.readouterr().err
    assert "failed" in printed
    assert "12" in printed


def test_a_swept_key_that_is_called_job_leaves_the_number_alone() -> None:
    rows = [{"job": k, "values": {"job": name}, "audio_s_per_s": 5.0} for k, name in enumerate(("pretrain", "ctc"))]
    assert sweep.make_table("bench", rows) == [
        {"job": 0, "bench.job": "pretrain", "audio_s_per_s": 5.0, "state": "done"},
        {"job": 1, "bench.job": "ctc", "audio_s_per_s": 5.0, "state": "done"},
    ]


def test_finished_jobs_are_not_run_again(tmp_path: Path, launcher: Any, started: list[int]) -> None:
    first = sweep.run_sweep(sweep_seeds(tmp_path), launcher)
    assert sweep.run_sweep(sweep_seeds(tmp_path), launcher) == first
    assert started == [0, 1, 2, 1]
    sweep.run_sweep(sweep_seeds(tmp_path, "num_resamples=10"), launcher)
    assert started == [0, 1, 2, 1, 0, 1, 2]
    sweep.run_sweep(sweep_seeds(tmp_path, "num_resamples=10", "overwrite=true"), launcher)
    assert started[7:] == [0, 1, 2]


def test_exit_codes() -> None:
    failed, wrong, stopped = {"exit_code": 1}, {"exit_code": 2}, {"exit_code": 75}
    assert sweep.find_exit_code([{}, {}]) == 0
    assert sweep.find_exit_code([{}, stopped]) == 75
    assert sweep.find_exit_code([stopped, wrong]) == 2
    assert sweep.find_exit_code([wrong, failed, stopped]) == 1


def test_a_verb_without_out_has_nothing_to_sweep() -> None:
    with pytest.raises(ConfigError, match="`doctor` does not"):
        sweep.run_sweep([Request("doctor"), Request("doctor")])


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_training_is_told_that_out_is_missing(verb: str) -> None:
    with pytest.raises(ConfigError, match=r"`out` must be given with -m \(job n goes to out/n\), but is missing"):
        sweep.run_sweep(read_words(verb, ["model=tiny", "seed=1,2"]))


def test_words_about_the_sweep_are_taken_out() -> None:
    words = ["x", "hydra/launcher=joblib", "seed=1,2", "hydra.launcher.n_jobs=3", "hydra.sweeper.metric=valid.wer"]
    plan = take_plan(words)
    assert words == ["x", "seed=1,2"]
    assert plan.choices == {"launcher": "joblib", "sweeper": "basic"}
    assert plan.keys == {"launcher": {"n_jobs": 3}, "sweeper": {"metric": "valid.wer"}}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["hydra/launcher=ray", "-m"], "`hydra/launcher` must be one of basic, joblib"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib must come with -m"),
        (["hydra/launcher=joblib", "hydra.launcher.jobs=2", "-m"], "that has hydra.launcher.n_jobs"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "-m"], "`hydra.launcher.n_jobs` must be at least 1"),
        (["hydra/sweeper=ax", "-m"], "`hydra/sweeper` must be one of basic, optuna"),
        (["seed=interval(1,3)", "-m"], "`seed` must be a list or a range"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(tmp_path), "folder", f"out={tmp_path / 'out'}", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("speechssl: ")
    assert problem in error


def test_minus_one_is_a_process_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert count_processes(-1) == 7
    assert count_processes(2) == 2


@pytest.mark.parametrize("content", ["", "[1]", "{}"])
def test_a_damaged_job_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "0.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="`--job` must be a job's file"):
        run_job(path)


@pytest.fixture
def root(librispeech_tree: Path) -> str:
    return str(librispeech_tree / "train")


def run(*words: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run([sys.executable, "-m", "speechssl", *words], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_two_at_a_time_for_real_and_only_the_failed_one_again(root: str, tmp_path: Path) -> None:
    words = ["prepare", root, "folder", f"out={tmp_path}", "valid_share=0.2,2.0"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m"]
    code, result, log = run(*words)
    assert code == 2
    assert result["jobs"][0]["manifests"]["train"]["num_utterances"] > 0
    assert result["jobs"][1]["error"].startswith("`valid_share` must be at least 0")
    assert "speechssl: job 1 (valid_share=2.0): `valid_share` must be" in log
    assert "`valid_share` must be" in (tmp_path / "jobs" / "1.log").read_text()
    assert run(*words)[1] == result
    assert "job 0 of 2: valid_share=0.2 (finished before)" in run(*words)[2]


def test_submitit_runs_jobs_on_this_machine(root: str, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed (extra `sweep`)")
    words = ["prepare", root, "folder", f"out={tmp_path}", "valid_share=0.2,2.0", "hydra/launcher=submitit_local"]
    code, result, _ = run(*words, "hydra.launcher.timeout_min=2", "-m")
    assert code == 2
    assert result["jobs"][0]["manifests"]["train"]["num_utterances"] > 0
    assert result["jobs"][1]["error"].startswith("`valid_share` must be at least 0")


def test_submitit_parameters_are_checked(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed (extra `sweep`)")
    job = Job(0, tmp_path / "jobs" / "0.json", Request("prepare"), {})
    with pytest.raises(ConfigError, match="`hydra.launcher` must have parameters that submitit knows"):
        choose_launcher("submitit_local", {"timeout_minutes": 3})([job])
