"""A crash ends the command with its traceback, also where it happens in a loader worker, which ignores SIGTERM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_training import manifests  # noqa: F401  (a fixture)

SCRIPT = """
import sys
from speechssl.cli.main import main
from speechssl.data import loader
from speechssl.training.guard import NumericalGuard

def crash(*given):
    raise RuntimeError("a bug in the test")

where, manifest, out = sys.argv[1:]
if where == "worker":
    loader.read_sub_batch = crash
else:
    NumericalGuard.judge = crash
sys.exit(main(["pretrain", "tiny", f"data.train={manifest}", f"out={out}", "device=cpu", "data.num_workers=2"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["worker", "trainer"])
def test_a_crash_ends_the_process(manifests: Path, tmp_path: Path, where: str) -> None:  # noqa: F811
    words = [where, str(manifests / "train.tsv"), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "RuntimeError: a bug in the test" in done.stderr
