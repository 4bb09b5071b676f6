"""A child hears of its parent's end, however that comes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechssl.processes import SPIN_KEYS

PARENT = """
import os, signal, time
from speechssl.processes import signal_at_parents_end
child = os.fork()
if child == 0:
    signal_at_parents_end(signal.SIGKILL)
    os.close(1), os.close(2)  # or whoever reads them would wait for this process
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do it")
def test_a_child_ends_with_a_parent_that_was_killed() -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=False)
    child = int(parent.stdout)
    deadline = time.monotonic() + 5.0
    while is_there(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_there(child)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_waiting_threads_sleep_unless_the_user_has_said_how_they_wait() -> None:
    """Before torch is there; what runs later inherits it."""
    look = "import os; print([os.environ.get(key) for key in ('GOMP_SPINCOUNT', 'KMP_BLOCKTIME')])"
    for before, given, found in (
        ("import speechssl", {}, ["1000", "0"]),
        ("import speechssl", {"GOMP_SPINCOUNT": "7"}, ["7", None]),
        ("import speechssl", {"OMP_WAIT_POLICY": "active"}, [None, None]),
        ("import sys; sys.modules['torch'] = sys; import speechssl", {}, [None, None]),
    ):
        environment = {key: value for key, value in os.environ.items() if key not in SPIN_KEYS}
        command = [sys.executable, "-c", f"{before}\n{look}"]
        done = subprocess.run(command, env=environment | given, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(found), (before, given)
