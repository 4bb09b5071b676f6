"""What the proofs share: the fork server and the small corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.harness import ForkServer, make_manifests, serve_forks


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with serve_forks() as made:
        yield made


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_manifests(tmp_path_factory.mktemp("reliability"))
