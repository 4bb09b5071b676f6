"""Parts of the GPU's cells: what can be made side by side, and in which order it is begun."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import pytest

from recipes.librispeech_mini.study.cells import GPU, GPU_ARMS, GPU_SINGLE_ARMS, Cell, list_gpu_cells
from recipes.librispeech_mini.study.gpu import Part, find_steps, list_parts, read_words, run_parts
from recipes.librispeech_mini.study.plan import Places, build_steps
from speechssl.errors import ConfigError
from tests.cases import each_case

PLACES = Places(Path("/corpus"), Path("/digits"), Path("/text"), Path("/runs"), Path("/results"))


@cache
def list_all(name: str) -> list[Part]:
    cell = next(cell for cell in list_gpu_cells(GPU, 1) if cell.name == name)
    return list_parts(cell, build_steps(cell, GPU["small"], PLACES))


def test_a_pretrained_cell_is_parted_by_labels_once_it_is_pretrained() -> None:
    parts = {part.name: part for part in list_all("gpu-small-kmeans-1")}
    assert list(parts) == ["pretraining", "1h", "all", "10m", "probes"]
    assert parts["pretraining"].steps == ("pretrain-1", "pretrain-2") and not parts["pretraining"].needs
    assert parts["all"].steps == ("finetune-all", "evaluate-all")
    assert all(parts[name].needs == {"pretraining"} for name in ("1h", "all", "10m", "probes"))


def test_the_labels_of_a_cell_without_pretraining_wait_for_nothing() -> None:
    needs = {part.name: part.needs for part in list_all("gpu-small-scratch-1")}
    assert needs == {"1h": frozenset(), "all": frozenset(), "probes": {"all"}}


def test_an_unknown_part_is_refused() -> None:
    parts = list_all("gpu-small-scratch-1")
    assert find_steps({}, parts) is None
    assert find_steps({"part": "1h"}, parts) == ("finetune-1h", "evaluate-1h")
    with pytest.raises(ConfigError, match="`part` must be one of 1h, all, probes, but is '10m'"):
        find_steps({"part": "10m"}, parts)


def make_parts(*needs: tuple[str, set[str]]) -> list[Part]:
    cell = Cell("a", "kmeans", 1, ())
    return [Part(cell, name, (), frozenset(needed)) for name, needed in needs]


def test_what_is_needed_comes_first_and_then_the_first_that_can_begin() -> None:
    parts = make_parts(("late", {"early"}), ("early", set()), ("other", set()), ("last", {"late"}))
    order: list[str] = []

    def run(part: Part) -> int:
        order.append(part.name)
        return 0

    assert run_parts(parts, run, 1) == [0, 0, 0, 0]
    assert order == ["early", "late", "other", "last"]


def test_parts_run_at_the_same_time_and_no_more_than_asked() -> None:
    both, lock, count = threading.Barrier(2, timeout=20), threading.Lock(), [0, 0]

    def run(_: Part) -> int:
        with lock:
            count[0] += 1
            count[1] = max(count)
        both.wait()
        with lock:
            count[0] -= 1
        return 0

    assert run_parts(make_parts(*((str(number), set()) for number in range(6))), run, 2) == [0] * 6
    assert count == [0, 2]


@each_case("code", [1, 75])
def test_what_needs_a_part_that_did_not_end_well_is_not_run(code: int) -> None:
    parts = make_parts(("early", set()), ("late", {"early"}), ("other", set()))
    codes = {"early": code, "other": 0}
    assert sorted(run_parts(parts, lambda part: codes[part.name], 2)) == sorted([code, 0])


def test_a_part_of_another_cell_is_another_part() -> None:
    cells = [Cell("a", "kmeans", 1, ()), Cell("b", "kmeans", 2, ())]
    parts = [Part(cell, name, (), frozenset(needs)) for cell in cells for name, needs in (("x", ""), ("y", "x"))]
    codes = {("a", "x"): 1, ("b", "x"): 0, ("b", "y"): 0}
    assert len(run_parts(parts, lambda part: codes[part.cell.name, part.name], 4)) == 3


def test_a_part_is_of_a_cell() -> None:
    with pytest.raises(ConfigError, match="`cell` must be the name of the cell that `part` is of"):
        read_words(["data=/corpus", "part=1h"])
    assert read_words(["cell=gpu-small-kmeans-1", "part=1h"])["part"] == "1h"


def test_the_first_seed_of_every_network_comes_first_then_all_of_small() -> None:
    cells = list_gpu_cells(["small", "12x512"], 3)
    seeds = [(cell.kind, cell.seed) for cell in cells]
    assert list(dict.fromkeys(seeds[: 2 * len(GPU_ARMS)])) == [("gpu small", 1), ("gpu 12x512", 1)]
    assert list(dict.fromkeys(seeds[2 * len(GPU_ARMS) :])) == [
        *(("gpu small", seed) for seed in (2, 3, 1)),
        *(("gpu 12x512", seed) for seed in (2, 3)),
    ]
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 3 * len(GPU_ARMS) + len(GPU_SINGLE_ARMS)
