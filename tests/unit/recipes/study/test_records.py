"""Records outlive tries: what was measured stays, what was run is not run as something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.librispeech_mini.study.cells import TWO_CORES, find_cell
from recipes.librispeech_mini.study.figures import list_rows
from recipes.librispeech_mini.study.plan import Command, Places, Step, build_steps
from recipes.librispeech_mini.study.records import note_rebuilt, open_record, read_all, read_record, write_record
from speechssl.errors import ConfigError

RESULTS = Path(__file__).parents[4] / "recipes" / "librispeech_mini" / "study" / "results"
FACTS = {"arm": "kmeans", "seed": 1, "kind": "main", "trial": ""}


def make_step(*labels: str) -> Step:
    commands = tuple(Command(label, "evaluate", {"data.test": [label]}) for label in labels)
    return Step("kmeans-1", "evaluate-1h", commands, facts=FACTS)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(Path("/corpus"), None, None, tmp_path / "out", tmp_path / "results")


def begin(places: Places, step: Step, **values: Any) -> dict[str, Any]:
    """Begin a step and write its record with some values changed."""
    path = places.results / step.cell / f"{step.name}.json"
    record = open_record(path, step, places) | values
    write_record(path, record)
    return open_record(path, step, places)


def test_another_try_keeps_the_first_date_and_what_was_measured(places: Places) -> None:
    metrics = {"dev": {"cer": 40.0}}
    stopped = {"status": "stopped", "date": "2026-11-26T10:00:00Z", "first_date": "2026-11-25T10:00:00Z"}
    again = begin(places, make_step("dev", "test"), **stopped, metrics=metrics, updates=7, hours_seen=0.5, wall_s=3.0)
    assert (again["status"], again["tries"], again["first_date"]) == ("started", 2, "2026-11-25T10:00:00Z")
    assert again["date"] > "2026-11-26T10:00:00Z"
    assert (again["metrics"], again["updates"], again["hours_seen"], again["wall_s"]) == (metrics, 7, 0.5, 3.0)


def test_the_date_of_a_record_without_a_first_one_is_the_first(places: Places) -> None:
    path = places.results / "kmeans-1" / "evaluate-1h.json"
    record = open_record(path, make_step("dev"), places)
    assert record["first_date"] == record["date"]
    del record["first_date"]
    write_record(path, record | {"date": "2026-11-26T10:00:00Z"})
    assert open_record(path, make_step("dev"), places)["first_date"] == "2026-11-26T10:00:00Z"


def test_what_other_commands_measured_is_not_kept(places: Places) -> None:
    begin(places, make_step("dev"), status="failed", metrics={"dev": {"cer": 40.0}})
    path = places.results / "kmeans-1" / "evaluate-1h.json"
    assert open_record(path, make_step("dev", "test"), places)["metrics"] == {}


def test_what_is_done_may_have_run_more_than_is_asked_for_but_not_less(places: Places) -> None:
    done = begin(places, make_step("dev", "dev/beam", "test"), status="done")
    path = places.results / "kmeans-1" / "evaluate-1h.json"
    assert open_record(path, make_step("dev", "test"), places) == done
    with pytest.raises(ConfigError, match="they have changed since"):
        open_record(path, make_step("dev", "other"), places)
    write_record(path, done | {"status": "stopped"})
    with pytest.raises(ConfigError, match="they have changed since"):
        open_record(path, make_step("dev", "test"), places)


def test_the_evaluation_that_was_run_with_more_commands_is_whole_and_done() -> None:
    places = Places(Path("/corpus"), Path("/digits"), Path("/text"), Path("/runs"), RESULTS)
    steps = build_steps(find_cell("kmeans-1", TWO_CORES), TWO_CORES, places)
    step = next(step for step in steps if step.name == "evaluate-1h")
    record = open_record(RESULTS / "kmeans-1" / "evaluate-1h.json", step, places)
    assert record["status"] == "done"
    assert len(record["commands"]) == len(record["metrics"]) == len(step.commands) + 1
    assert record["metrics"]["dev/beam"]["num_words"] == 3872


def test_a_training_that_was_made_again_is_noted_beside_its_record(places: Places) -> None:
    training = Step("kmeans-1", "pretrain-1", (Command("pretrain", "pretrain", {}),), facts=FACTS)
    begin(places, training, status="done", hours_seen=26.4, flop=1e14)
    path = places.results / "kmeans-1" / "pretrain-1.json"
    before, rows = read_record(path), list_rows(read_all(places.results))
    for loss in (5.0, 5.1):
        note_rebuilt(path, training, {"loss": loss})
    beside = read_record(path.with_name("pretrain-1.rebuilt.json"))
    assert beside is not None
    assert [entry["metrics"] for entry in beside["rebuilt"]] == [{"loss": 5.0}, {"loss": 5.1}]
    assert all(entry["machine"]["name"] and entry["date"] for entry in beside["rebuilt"])
    assert read_record(path) == before
    assert list_rows(read_all(places.results)) == rows
