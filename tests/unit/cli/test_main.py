"""The command as a user runs it: help, exit codes, and the JSON line."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import speechssl
from speechssl.cli import main as command
from speechssl.cli.verbs import VERBS, map_keys
from speechssl.errors import DataError, StoppedOnRequest

HEAVY = ("torch", "hydra", "omegaconf", "librosa", "torchaudio", "pyarrow", "numpy")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def run_main(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = command.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_is_quick_and_loads_nothing_that_it_does_not_need() -> None:
    code = f"""
import sys
from speechssl.cli.main import main
for words in ["--help"], ["--version"]:
    assert main(words) == 0
light = [name for name in {HEAVY!r} if name in sys.modules]
for verb in {list(VERBS)!r}:
    assert main([verb, "--help"]) == main([verb, "--help", "all"]) == 0
print(light, [name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run_python(code).stdout.splitlines()[-1] == "[] ['hydra', 'omegaconf']"
    # The best of three, since the machine may be busy with other things.
    took = []
    for _ in range(3):
        start = time.perf_counter()
        run_python("import speechssl, speechssl.cli.main; speechssl.cli.main.main(['--help'])")
        took.append(time.perf_counter() - start)
    assert min(took) < 0.5


def test_help_lists_the_verbs_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_main(["--help"], capsys)
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert listed == list(VERBS)


def test_help_has_the_values_of_the_chosen_presets(capsys: pytest.CaptureFixture[str]) -> None:
    _, base, _ = run_main(["pretrain", "--help"], capsys)
    _, small, _ = run_main(["pretrain", "small", "training.lr=2e-3", "--help"], capsys)
    assert "training.update_s=5600 " in base
    assert "training.update_s=48 " in small
    assert "training.lr=0.002 " in small
    assert "model=small  " in small
    assert "one of base, large, large_lv60k, medium, small," in small
    assert "audio per update, over all processes and forward passes" in small
    assert "every key: speechssl pretrain small training.lr=2e-3 --help all" in small
    assert run_main(["pretrain", "bass", "--help"], capsys)[0] == 2


def test_help_has_ten_keys_at_first_and_then_all(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, row in VERBS.items():
        _, few, _ = run_main([verb, "--help"], capsys)
        _, all_of_them, _ = run_main([verb, "--help", "all"], capsys)
        rows = [line for line in few.splitlines() if re.match(r"  [\w.]+=", line)]
        assert len(rows) == len(row.inputs) + len(row.first) <= 10
        assert "objective.name" not in all_of_them, "it is set by objective=… alone"
        missing = [key for key in map_keys(verb) if f"  {key}=" not in all_of_them and key != "objective.name"]
        if verb == "pretrain":
            assert missing, "the keys of an objective that was not chosen"
            _, others, _ = run_main([verb, "objective=masked_codes", "--help", "all"], capsys)
            missing = [key for key in missing if f"  {key}=" not in others]
        assert not missing, (verb, missing)
        assert all_of_them.count(f"\n  speechssl {verb}") == len(row.examples)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["--version"], capsys)[:2] == (0, f"speechssl {speechssl.__version__}\n")


MISTAKES = (
    (["pretran"], "the nearest is `pretrain`"),
    (["pretrain", "lr=1"], "`training.lr`"),
    (["pretrain", "model.maks.prob=0.5"], "`model.mask.prob`"),
    (
        ["pretrain", "model=bass"],
        "`model` must be one of base, large, large_lv60k, medium, small, tiny, xls_r_1b, xls_r_2b, but 'bass' does not",
    ),
    (["evaluate", "out=a(b"], "'out=\"a(b\"'"),
    (["evaluate", "x", "seed=abc"], "`seed` must be a whole number, but is 'abc'"),
    (["evaluate", "x", "overwrite=maybe"], "`overwrite` must be true or false"),
    (["evaluate", "x", "data=3"], "data.test=…"),
    (["evaluate", "data.test=m.tsv"], "`checkpoint` must be given"),
    (["evaluate", "x", "checkpoint=y"], "`checkpoint` must be given once"),
    (["evaluate", "x", "seed=1", "seed=2"], "`seed` must be given once"),
    (["embed", "x", "a.flac", "precision=bf17"], "`precision` must be one of float32, bf16, auto"),
    (["embed", "x", "layer=1", "a.flac"], "'a.flac' comes after 'layer=1'"),
    (["embed", "--layer", "1"], "'--layer'"),
    (["demo", "a", "1", "b"], "'b' is one more"),
    (["check", "m.tsv"], "the verb must be one of demo, prepare, "),
    (["evaluate", "x", "hydra.launcher.n_jobs=2"], "`hydra.launcher.n_jobs` must be hydra.searchpath"),
)


def test_a_mistake_is_one_sentence_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in MISTAKES:
        code, out, err = run_main(words, capsys)
        assert (code, out) == (2, "")
        assert expected in err
        assert err.count("\n") == 1


def test_only_trainings_run_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words, what in ((["doctor"], "`doctor`"), (["pretrain", "seed=1,2", "-m"], "`pretrain` with -m")):
        code, _, err = run_main(words, capsys)
        assert code == 2
        assert f"{what} must run in one process, without torchrun, but `WORLD_SIZE` is 2" in err


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, exit_code in (
        (DataError("`x` must be y, but is z"), 2),
        (StoppedOnRequest("saved", 75), 75),
        (StoppedOnRequest("saved", 143), 143),
        (KeyboardInterrupt(), 130),
    ):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(command, "run_request", fail)
        assert command.main(["doctor"]) == exit_code


def test_signals_end_with_their_exit_code() -> None:
    """Also where a run is still being set up and nothing is to be saved."""
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
from speechssl.cli import main as command
command.run_request = lambda request: (print("ready", flush=True), time.sleep(20))
sys.exit(command.main(sys.argv[1:]))
"""
    cases = (
        ("doctor", signal.SIGTERM, 143),
        ("doctor", signal.SIGINT, 130),
        ("pretrain", signal.SIGTERM, 143),
        ("pretrain", signal.SIGUSR1, 75),
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", code, verb], **pipes) for verb, _, _ in cases]
    for (_, number, exit_code), process in zip(cases, started, strict=True):
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(number)
            _, err = process.communicate(timeout=10)
        assert process.returncode == exit_code
        assert err.count(b"\n") == 1


def test_other_exceptions_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(command, "run_request", fail)
    with pytest.raises(ZeroDivisionError):
        command.main(["doctor"])


def test_the_json_line_is_for_scripts_and_a_table_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_main(["doctor"], capsys)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["packages"]["torch"]["version"]
    assert "device=auto is" in err
    result = {"texts": "stdout", "num_utterances": 3}
    monkeypatch.setattr(command, "run_request", lambda request: result)
    _, out, err = run_main(["transcribe", "x", "y"], capsys)
    assert (out, json.loads(err)) == ("", result)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run_main(["transcribe", "x", "y"], capsys)[1:] == ("", "")
    monkeypatch.setattr(command, "run_request", lambda request: {"wer": 1.0})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run_main(["evaluate", "x", "y"], capsys)[1] == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run_main(["evaluate", "x", "y", "--json"], capsys)[1] == '{"wer": 1.0}\n'


def test_a_reader_that_has_gone_is_no_error() -> None:
    command_line = f"{sys.executable} -m speechssl pretrain --help | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command_line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_speechssl(tmp_path: Path) -> None:
    command_line = [sys.executable, "-m", "speechssl", "evaluate", "runs/a", "m.tsv", "--cfg"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "checkpoint: runs/a" in done.stdout
    assert not list(tmp_path.iterdir()), "hydra wrote something of its own"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_stderr_that_is_full_changes_no_exit_code() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "speechssl", "no-such-verb"], stderr=full, timeout=60)
    assert done.returncode == 2


def test_a_disk_that_refuses_is_one_sentence_for_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it writes with: here where `report` measures its page."""
    run = tmp_path / "run"
    run.mkdir()
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("speechssl.report.page.build_report", refuse)
        assert command.main(["report", str(run), f"out={tmp_path / 'page.html'}"]) == 2
        assert f"page.html could not be ({os.strerror(number)})" in capsys.readouterr().err
