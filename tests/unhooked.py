"""Runs the cases of a file without the shape checks of conftest.py, which no compiler and no exporter can trace.

The checks are installed when the package is first imported, so that such cases need a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_unhooked(cases: Path, marks: str = "not slow") -> None:
    """Run pytest over a file of cases; what it prints is the failure."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--show-capture=no",
        "-p",
        "no:cacheprovider",
        "-m",
        marks,
        str(cases),
    ]
    environment = os.environ | {"JAXTYPING_DISABLE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
