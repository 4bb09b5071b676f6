"""The command as a user runs it: help, exit codes, and the JSON line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import speechssl
from speechssl.cli import main as command
from speechssl.cli.verbs import LATER_VERBS, VERBS
from speechssl.errors import DataError, StoppedOnRequest

HEAVY = ("torch", "hydra", "omegaconf", "librosa", "torchaudio", "pyarrow", "numpy")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def run_main(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = command.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS), ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from speechssl.cli.main import main
assert main({words!r}) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run_python(code).stdout.splitlines()[-1] == "[]"


def test_import_and_help_take_less_than_half_a_second() -> None:
    # The best of five, since the machine may be busy with other things.
    took = []
    for _ in range(5):
        start = time.perf_counter()
        run_python("import speechssl, speechssl.cli.main; speechssl.cli.main.main(['pretrain', '--help'])")
        took.append(time.perf_counter() - start)
    assert min(took) < 0.5


def test_help_lists_the_verbs_of_this_version_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_main(["--help"], capsys)
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split()[0] in VERBS]
    assert code == 0
    assert listed == list(VERBS)
    assert not any(line.strip().startswith(LATER_VERBS) for line in out.splitlines())


def test_verb_help_has_every_key_with_default_unit_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_main(["pretrain", "--help"], capsys)
    assert "training.update_s=5600" in out
    assert "audio per update, over all processes and forward passes" in out
    assert "one of base, large, large_lv60k, small, tiny, xls_r_1b," in out
    assert out.count("  speechssl pretrain ") == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["--version"], capsys)[:2] == (0, f"speechssl {speechssl.__version__}\n")


@pytest.mark.parametrize("verb", LATER_VERBS)
def test_later_verbs_are_answered(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_main([verb, "x"], capsys)
    assert (code, out) == (2, "")
    assert "later version" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretran"], "the nearest is `pretrain`"),
        (["pretrain", "lr=1"], "`training.lr`"),
        (["pretrain", "model.maks.prob=0.5"], "`model.mask.prob`"),
        (
            ["pretrain", "model=bass"],
            "`model` must be one of base, large, large_lv60k, small, tiny, xls_r_1b, xls_r_2b, but 'bass' does not",
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
        (["evaluate", "x", "seed=1,2"], "-m"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_main(words, capsys)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "what"), [(["doctor"], "`doctor`"), (["pretrain", "seed=1,2", "-m"], "`pretrain` with -m")]
)
def test_only_trainings_run_in_several_processes(
    words: list[str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run_main(words, capsys)
    assert code == 2
    assert f"{what} must run in one process, without torchrun, but `WORLD_SIZE` is 2" in err


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (DataError("`x` must be y, but is z"), 2),
        (StoppedOnRequest("saved", 75), 75),
        (StoppedOnRequest("saved", 143), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(command, "run_request", fail)
    assert command.main(["doctor"]) == exit_code


@pytest.mark.parametrize(
    ("verb", "number", "exit_code"),
    [
        ("doctor", signal.SIGTERM, 143),
        ("doctor", signal.SIGINT, 130),
        ("pretrain", signal.SIGTERM, 143),
        ("pretrain", signal.SIGINT, 130),
        ("pretrain", signal.SIGUSR1, 75),
    ],
)
def test_signals_end_with_their_exit_code(verb: str, number: int, exit_code: int) -> None:
    """Also where a run is still being set up and nothing is to be saved."""
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
from speechssl.cli import main as command
command.run_request = lambda request: (print("ready", flush=True), time.sleep(20))
sys.exit(command.main(sys.argv[1:]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, verb], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
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


def test_doctor_ends_with_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_main(["doctor"], capsys)
    result = json.loads(out.splitlines()[-1])
    assert code == 0
    assert result["packages"]["torch"]["version"]
    assert "device=auto is" in err


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_a_disk_that_refuses_is_one_sentence_for_every_verb(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it writes with: here where `report` measures its page."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("speechssl.report.page.build_report", refuse)
    run = tmp_path / "run"
    run.mkdir()
    assert command.main(["report", str(run), f"out={tmp_path / 'page.html'}"]) == 2
    sentence = f"page.html could not be ({os.strerror(number)})"
    assert sentence in capsys.readouterr().err
