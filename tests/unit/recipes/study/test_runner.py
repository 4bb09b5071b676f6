"""Where and how long a cell runs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import speechssl
from recipes.librispeech_mini.study import runner
from recipes.librispeech_mini.study.cells import TWO_CORES, Cell, find_cell
from recipes.librispeech_mini.study.plan import Command, Places, Step, build_steps
from recipes.librispeech_mini.study.records import open_record, read_record, write_record
from recipes.librispeech_mini.study.runner import OUT_OF_TIME, Settings, measure_updates, run_cell, run_step
from speechssl.errors import CollapseError, StoppedOnRequest
from tests.cases import each_case

HOURS_AN_UPDATE, FLOP_PER_S = 0.01, 2e9


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(Path("/corpus"), None, None, tmp_path / "out", tmp_path / "results")


def make_training(places: Places) -> Step:
    keys = {"out": str(places.out / "kmeans-1" / "pretrain-1"), "training.update_s": 48.0, "training.max_updates": 5}
    return Step("kmeans-1", "pretrain-1", (Command("pretrain", "pretrain", keys),), flop_per_s=FLOP_PER_S)


def train(folder: Path, first: int, last: int) -> None:
    """Write the lines that updates of a training leave."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as lines:
        for update in range(first, last + 1):
            row = {"update": update, "split": "train", "hours_seen": HOURS_AN_UPDATE * update, "audio_s_per_s": 18.0}
            lines.write(json.dumps(row) + "\n")
        lines.write(json.dumps({"update": last, "split": "valid", "hours_seen": HOURS_AN_UPDATE * last}) + "\n")


def test_the_time_of_updates_is_their_audio_over_their_rate() -> None:
    rows = [
        {"split": "train", "hours_seen": 0.01, "audio_s_per_s": 18.0},
        {"split": "valid", "hours_seen": 0.01},
        {"split": "train", "hours_seen": 0.03, "audio_s_per_s": 36.0},
    ]
    assert measure_updates(rows) == pytest.approx(2.0 + 2.0)
    assert measure_updates([]) == 0.0


def test_a_deadline_bounds_trainings_and_stops_what_is_none() -> None:
    assert Settings().find_hours() == 0.0
    Settings().check_deadline("anything")
    late = Settings(deadline=time.monotonic() - 1.0)
    assert 0 < late.find_hours() < 1e-6
    with pytest.raises(StoppedOnRequest, match="time was up before test/greedy") as stop:
        late.check_deadline("test/greedy")
    assert stop.value.exit_code == OUT_OF_TIME
    early = Settings(max_hours=0.5, deadline=time.monotonic() + 7200)
    assert early.find_hours() == 0.5


def test_cells_started_side_by_side_prepare_once(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make_manifests(out: str, **_: object) -> None:
        made.append(out)
        time.sleep(0.2)
        Path(out).mkdir(parents=True)
        (Path(out) / "result.json").touch()

    def train_ngram(command: list[object], **_: object) -> None:
        made.append("4gram")
        time.sleep(0.2)
        Path(str(command[3]).removeprefix("out=")).touch()

    monkeypatch.setattr(speechssl, "prepare", make_manifests)
    monkeypatch.setattr(runner, "load_manifests", lambda paths, key: SimpleNamespace(column=lambda name: ["one two"]))
    monkeypatch.setattr(runner.subprocess, "run", train_ngram)
    (tmp_path / "1-2.trans.txt").write_text("1-2-0000 THREE FOUR\n")
    speaking = dataclasses.replace(places, text=tmp_path)
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(runner.prepare, speaking, TWO_CORES) for _ in range(3)]:
            done.result()
    assert made == [str(places.out / "m"), "4gram"]


def test_nothing_begins_after_the_deadline(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "prepare", lambda *_: None)
    monkeypatch.setattr(runner, "run_verb", lambda *_: pytest.fail("it began"))
    late = Settings(deadline=time.monotonic() - 1.0)
    with pytest.raises(StoppedOnRequest, match="time was up before scratch_short-1, finetune-1h"):
        run_cell(find_cell("scratch_short-1", TWO_CORES), places, TWO_CORES, late)
    assert not places.results.exists(), "what did not begin has no record"


def test_only_the_steps_that_are_asked_for_run(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(runner, "prepare", lambda *_: None)
    monkeypatch.setattr(runner, "run_step", lambda step, *_: begun.append(step.name))
    cell = find_cell("scratch_short-1", TWO_CORES)
    finish_training(places, "finetune-all", cell)
    run_cell(cell, places, TWO_CORES, Settings(), only=("evaluate-all", "verification"))
    assert begun == ["evaluate-all", "verification"]


def finish_training(places: Places, name: str, cell: Cell) -> None:
    """Leave what a finished training of a cell leaves."""
    step = next(step for step in build_steps(cell, TWO_CORES, places) if step.name == name)
    keys = step.commands[0].keys
    folder = Path(keys["out"])
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"updates": keys["training.max_updates"]}))


def test_what_is_finished_is_not_opened_by_what_needs_it(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts of a cell begin at the same time, and a run is of one process."""
    opened: list[str] = []
    monkeypatch.setattr(runner, "run_verb", lambda verb, _: opened.append(verb) or {"updates": 0})
    cell = find_cell("scratch_short-1", TWO_CORES)
    finish_training(places, "finetune-all", cell)
    (step,) = (step for step in build_steps(cell, TWO_CORES, places) if step.name == "finetune-all")
    assert not runner._rebuild(step, places, Settings()) and not opened
    result = Path(step.commands[0].keys["out"]) / "result.json"
    result.write_text(json.dumps({"updates": 7}))
    runner._rebuild(step, places, Settings())
    assert opened == ["finetune"], "it has not come to its end"


def test_a_part_makes_again_what_other_parts_need_and_drops_what_they_measured_on_the_lost_one(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = find_cell("wav2vec2-1", TWO_CORES)
    steps = {step.name: step for step in build_steps(cell, TWO_CORES, places)}
    metrics = {"test/greedy": {"cer": 48.0}}
    for name, status in (("pretrain", "done"), ("finetune-1h", "done"), ("evaluate-1h", "stopped")):
        path = places.results / cell.name / f"{name}.json"
        write_record(path, {**open_record(path, steps[name], places), "status": status, "metrics": metrics})
    trained: list[str] = []

    def run_verb(_: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        trained.append(Path(keys["out"]).name)
        return {"updates": keys["training.max_updates"], "hours_seen": 1.0}

    monkeypatch.setattr(runner, "prepare", lambda *_: None)
    monkeypatch.setattr(runner, "run_verb", run_verb)
    run_cell(cell, places, TWO_CORES, Settings(), only=("pretrain",))
    assert trained == ["pretrain"]
    run_cell(cell, places, TWO_CORES, Settings(), only=("finetune-1h",))
    left = read_record(places.results / cell.name / "evaluate-1h.json")
    assert left is not None and left["metrics"] == {}
    kept = read_record(places.results / cell.name / "finetune-1h.json")
    assert kept is not None and kept["metrics"] == metrics, "what is done stays"


@each_case(
    "stop, status",
    [
        (StoppedOnRequest("time was up", OUT_OF_TIME), "stopped"),
        (CollapseError("Pretraining has collapsed."), "failed"),
    ],
)
def test_a_training_that_did_not_end_says_how_far_it_came(
    stop: BaseException, status: str, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, path = make_training(places), places.results / "kmeans-1" / "pretrain-1.json"

    def run_verb(verb: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        train(Path(keys["out"]), 1, 3)
        raise stop

    monkeypatch.setattr(runner, "run_verb", run_verb)
    with pytest.raises(type(stop)):
        run_step(step, open_record(path, step, places), path, places, Settings())
    record = read_record(path)
    assert record is not None
    assert (record["status"], record["updates"], record["hours_seen"]) == (status, 3, pytest.approx(0.03))
    assert record["flop"] == pytest.approx(3600 * 0.03 * FLOP_PER_S)
    assert record["updates_s"] == pytest.approx(6.0)


def test_a_training_that_stopped_before_its_first_update_says_nothing(places: Places) -> None:
    assert runner.describe_progress(make_training(places)) == {}


def test_only_what_was_trained_again_here_is_noted(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_training(places)
    folder, beside = Path(step.commands[0].keys["out"]), places.results / "kmeans-1" / "pretrain-1.rebuilt.json"

    def run_verb(verb: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        done = runner.describe_progress(step).get("updates", 0)
        if done < 5:
            train(Path(keys["out"]), done + 1, 5)
        return {"updates": 5, "hours_seen": 0.05, "out": str(folder), "loss": 4.0}

    monkeypatch.setattr(runner, "run_verb", run_verb)
    for _ in range(2):
        runner._rebuild(step, places, Settings())
        found = read_record(beside)
        assert found is not None
        (entry,) = found["rebuilt"]
        assert entry["metrics"] == {"updates": 5, "hours_seen": 0.05, "loss": 4.0}


def test_an_evaluation_that_is_killed_keeps_what_it_had_measured(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = tuple(Command(split, "evaluate", {"out": split}) for split in ("test/greedy", "test/beam"))
    step, path = Step("kmeans-1", "evaluate-1h", commands), places.results / "kmeans-1" / "evaluate-1h.json"

    def run_verb(verb: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        if keys["out"] == "test/beam":
            record = read_record(path)
            assert record is not None and record["metrics"] == {"test/greedy": {"cer": 48.0}}
        return {"cer": 48.0}

    monkeypatch.setattr(runner, "run_verb", run_verb)
    run_step(step, open_record(path, step, places), path, places, Settings())
    record = read_record(path)
    assert record is not None and set(record["metrics"]) == {"test/greedy", "test/beam"}


def test_figures_of_the_language_model_stay_comparable_whatever_the_defaults_are(places: Places) -> None:
    greedy, beam = Command("greedy", "evaluate", {}), Command("beam", "evaluate", {"decoding.lm": "4gram.arpa"})
    assert runner.add_settings(beam, places, Settings()).items() >= runner.LM_WEIGHTS.items()
    assert not runner.add_settings(greedy, places, Settings()).keys() & runner.LM_WEIGHTS.keys()
