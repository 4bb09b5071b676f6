"""A long run does not grow (target P3; the full size is `tools/soak`'s)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import jobs
from tests.reliability.harness import ForkServer


@pytest.mark.slow
def test_memory_files_and_threads_stay(server: ForkServer, manifests: Path, tmp_path: Path) -> None:
    figures = jobs.soak(server, manifests, tmp_path, updates=400)
    assert figures["more_mib"] < 8
    assert figures["more_handles"] <= 0
    assert figures["more_threads"] <= 0
