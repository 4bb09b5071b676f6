"""One folder, one run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from speechssl.errors import ConfigError
from speechssl.training.lock import LOCK, RETRY_S, hold_folder, hold_run

HOLD = """
import os, sys, time
from pathlib import Path
from speechssl.training.lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(0.2)
        print("child", flush=True)
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(20)
"""


def start_holder(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), how], stdout=subprocess.PIPE, text=True)


def test_a_second_run_is_refused_with_the_pid_and_host_of_the_first(tmp_path: Path) -> None:
    with start_holder(tmp_path, "alone") as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        start = time.monotonic()
        with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on \S+$"), hold_folder(tmp_path):
            pass
        assert time.monotonic() - start < 2
        holder.kill()
        holder.wait()
        with hold_folder(tmp_path):
            pass


def test_a_killed_run_holds_nothing_though_its_workers_live_on(tmp_path: Path) -> None:
    with start_holder(tmp_path, "fork") as holder:
        assert holder.stdout is not None
        assert {holder.stdout.readline(), holder.stdout.readline()} == {"held\n", "child\n"}
        holder.kill()
        holder.wait()
        with hold_folder(tmp_path):
            pass
        holder.stdout.close()


def test_a_report_that_looks_at_the_lock_in_that_instant_refuses_no_run(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    handle = os.open(tmp_path / LOCK, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    threading.Timer(RETRY_S / 4, os.close, [handle]).start()
    with hold_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_it_is_let_go_of_at_the_end(tmp_path: Path) -> None:
    for _ in range(2):
        with hold_folder(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            hold_folder(tmp_path).__enter__()


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_folder(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert "cannot be locked here (No locks available)" in caplog.text


def test_a_lock_that_leads_elsewhere_is_refused_and_nothing_there_changes(tmp_path: Path) -> None:
    victim, lock = tmp_path / "victim", tmp_path / LOCK
    victim.write_text("precious")
    kinds: tuple[Callable[[], object], ...] = (
        lambda: lock.symlink_to(victim), lambda: lock.symlink_to("none"), lambda: lock.hardlink_to(victim),
        lambda: os.mkfifo(lock),
    )  # fmt: skip
    for make in kinds:
        make()
        with pytest.raises(ConfigError, match=r"`out` must be a place that can be written, but .*\.lock could not be"):
            hold_folder(tmp_path).__enter__()
        assert victim.read_text() == "precious" and not (tmp_path / "none").exists()
        lock.unlink()


def test_the_folder_of_a_run_is_made_and_goes_again_where_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for out, left in (("mine/a/b", ["mine"]), ("mine", [".lock", "mine"])):
        with hold_run(str(tmp_path / out)):
            assert (tmp_path / out / LOCK).exists()
        assert sorted(path.name for path in tmp_path.rglob("*")) == left
    with hold_run(str(tmp_path / "c" / "d")):
        (tmp_path / "c" / "d" / "config.yaml").touch()
    assert (tmp_path / "c" / "d" / LOCK).exists()
    for out, problem in ((str(tmp_path / "c" / "d" / "config.yaml"), "is a file"), ("", "must be given")):
        with pytest.raises(ConfigError, match=f"`out` .*{problem}"), hold_run(out):
            pass


def test_of_several_processes_the_first_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with hold_run(str(tmp_path / "run")):
        assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(ConfigError, match=r"\.lock could not be \(No space left on device\)"), hold_folder(tmp_path):
        pass
    monkeypatch.undo()
    with hold_folder(tmp_path):
        pass
