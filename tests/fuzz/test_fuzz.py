"""No damaged file of any kind ends in a traceback, a hang or a bomb, nor is taken where a checksum covers it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speechssl.errors import DataError
from tests.cases import each_case
from tests.fuzz import run, worker
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.mutator import INSIDE, TEXTS, mutate

SECONDS = 8.0


@pytest.mark.slow
@each_case("kind", KINDS)
def test_damaged_files_end_in_a_sentence(kind: str) -> None:
    outcome = run.fuzz(kind, seed=0, seconds=SECONDS)
    assert outcome.num_cases > 10
    assert not outcome.faults, outcome.describe()


@each_case("suffix", [*TEXTS, *INSIDE, ".wav"])
def test_a_case_is_decided_by_its_seed_and_changes_the_file(suffix: str) -> None:
    content = b'{"a": 1, "b": [true, "x"]}\n'
    damaged = [mutate(content, f"x{suffix}", random.Random(f"{seed}")) for seed in range(200)]
    assert damaged == [mutate(content, f"x{suffix}", random.Random(f"{seed}")) for seed in range(200)]
    assert sum(one != content for one in damaged) > 150


def run_cases(
    use: Callable[[bytes], object], folder: Path, monkeypatch: pytest.MonkeyPatch, covered: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Run 30 cases of a kind that reads `whole` with a function; the faults."""
    kind = Kind(
        lambda place: (place / "x").write_bytes(b"whole"), lambda _, file: use(file.read_bytes()), covered=covered
    )
    monkeypatch.setitem(KINDS, "made up", kind)
    made = worker.Worker("made up", 1, folder)
    return [fault for fault in map(made.run_case, range(30)) if fault]


def test_tracebacks_hangs_and_silence_are_faults_and_sentences_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(content: bytes) -> None:
        if content != b"whole":
            raise DataError("x must be whole, but is not")

    def trip(content: bytes) -> None:
        content.decode("ascii")

    def hang(content: bytes) -> None:
        while content[:1] != b"w":
            pass

    monkeypatch.setattr(worker, "LIMIT_S", 0.1)
    for name in "abcd":
        (tmp_path / name).mkdir()
    assert run_cases(refuse, tmp_path / "a", monkeypatch, ("x",)) == []
    silent = run_cases(lambda _: None, tmp_path / "b", monkeypatch, ("x",))
    assert len(silent) > 20
    assert silent[0]["what"] == "changed, and accepted without a word"
    assert {fault["what"].partition(":")[0] for fault in run_cases(trip, tmp_path / "c", monkeypatch)} == {
        "UnicodeDecodeError"
    }
    assert "takes more than 0 s" in {fault["what"] for fault in run_cases(hang, tmp_path / "d", monkeypatch)}


def test_alike_faults_are_one_with_the_command_that_shows_it() -> None:
    outcome = run.Outcome()
    for number in (4, 9):
        fault = {"what": f"ValueError: {number}", "where": "a.py:1 f", "kind": "tsv", "seed": 3, "number": number}
        outcome.add({**fault, "file": "m.tsv"})
    assert outcome.describe() == "2 × ValueError: 4 at a.py:1 f for m.tsv: tools/fuzz --case tsv/3/4"
