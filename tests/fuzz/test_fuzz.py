"""No damaged file of any kind ends in a traceback, a hang or a bomb, nor is taken where a checksum covers it."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.mutator import INSIDE, TEXTS, mutate
from tests.fuzz.run import fuzz

SECONDS = 8.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_a_sentence(kind: str) -> None:
    outcome = fuzz(kind, seed=0, seconds=SECONDS)
    assert outcome.num_cases > 10
    assert not outcome.faults, outcome.describe()


@pytest.mark.parametrize("suffix", [*TEXTS, *INSIDE, ".wav"])
def test_a_case_is_decided_by_its_seed_and_changes_the_file(suffix: str) -> None:
    content = b'{"a": 1, "b": [true, "x"]}\n'
    damaged = [mutate(content, f"x{suffix}", random.Random(f"{seed}")) for seed in range(200)]
    assert damaged == [mutate(content, f"x{suffix}", random.Random(f"{seed}")) for seed in range(200)]
    assert sum(one != content for one in damaged) > 150
