"""The demo on a machine that slows down, by a clock that is no clock: it ends in time, and says what it has cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from speechssl.config.verbs import DemoConfig
from speechssl.durable import write_result
from speechssl.errors import StoppedOnRequest
from speechssl.training import stop
from speechssl.verbs import demo

module = import_module("speechssl.verbs.demo")

MINUTES = 10.0
SECONDS = {"prepare": 40.0, "lm": 3.0, "evaluate": 6.5, "embed": 10.0, "probe": 20.0, "report": 6.0}
"""What the steps take that train nothing, at full speed."""

AUDIO_S, SPEED, SETUP_S = {"pretrain": 32.0, "finetune": 12.0}, {"pretrain": 90.0, "finetune": 80.0}, 3.0


class Machine:
    """Stands in for the verbs, and for the clock: `slowness(seconds)` says how many times as long things take."""

    def __init__(self, slowness: Callable[[float], float]) -> None:
        self.now, self.slowness, self.commands, self.killed_at = 0.0, slowness, list[tuple[str, dict[str, Any]]](), 1e9

    def monotonic(self) -> float:
        return self.now

    def work(self, seconds: float) -> float:
        taken = seconds * self.slowness(self.now)
        self.now += taken
        return taken

    def __call__(self, verb: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        out = Path(keys["out"])
        self.commands.append((out.name, dict(keys)))
        if verb in AUDIO_S:
            return self.train(verb, keys, out)
        self.work(SECONDS[verb])
        result: dict[str, Any] = {"manifests": {}, "wer": 30.0, "cer": 10.0, "accuracy": 70.0, "baselines": {}}
        if verb in ("lm", "embed", "report"):
            out.write_text("x")
        else:
            out.mkdir(parents=True, exist_ok=True)
            write_result(out, result)
        return result

    def train(self, verb: str, keys: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """Make updates as a run does, from where its metrics end."""
        out.mkdir(parents=True, exist_ok=True)
        path, last, audio_s = out / "metrics.jsonl", keys["training.max_updates"], AUDIO_S[verb]
        done = len(path.read_text().splitlines()) - 1 if path.exists() else 0
        assert done <= last, "a run would be refused"
        hours, is_watched = keys.get("training.max_hours", 0.0), keys.get("training.stop_when_late", False)
        flag = stop.StopFlag(hours, self.now, is_watched)
        self.work(SETUP_S)
        with path.open("a") as file:
            if not done:
                file.write(json.dumps({"update": 0, "split": "valid", "accuracy": 0.02}) + "\n")
            for update in range(done + 1, last + 1):
                taken = self.work(audio_s / SPEED[verb])
                record = {"split": "train", "update": update, "audio_s_per_s": audio_s / taken}
                file.write(json.dumps({**record, "hours_seen": update * audio_s / 3600}) + "\n")
                flag.has_moved = True
                flag.note_update(update, last)
                if self.now > self.killed_at:
                    self.killed_at = 1e9
                    raise KeyboardInterrupt
                if flag.check() and update < last:
                    raise StoppedOnRequest("stopped by training.max_hours after update", 75)
        return {"hours_seen": last * audio_s / 3600, "valid": {"accuracy": 0.3}}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Make a machine that is `factor` times as slow from a second on."""

    def make(factor: float, since_s: float) -> Machine:
        machine = Machine(lambda now: factor if now >= since_s else 1.0)
        for name in (module, stop):
            monkeypatch.setattr(name, "time", machine)
        monkeypatch.setattr(module, "build_demo_corpus", lambda root, seed, splits: root)
        return machine

    return make


def run(machine: Machine, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    result = demo(DemoConfig(out=str(out), minutes=MINUTES, device="cpu"), machine)
    return result, json.loads((out / "plan.json").read_text())["parts"]


def test_it_ends_in_time_whenever_the_machine_slows_down(tmp_path: Path, start: Callable[..., Machine]) -> None:
    """A process that keeps one core of two busy costs 60 % at most, a factor of 2.5."""
    wrong = []
    for factor, since_s in itertools.product((1.0, 2.5), (0.0, 150.0, 300.0, 400.0)):
        machine = start(factor, since_s)
        _, parts = run(machine, tmp_path / f"{factor}-{since_s}")
        made = {name: part["updates"] for name, part in parts.items()}
        is_fair = made["finetuned"] == made["from_scratch"] or since_s >= 350.0
        is_cut = any(part["updates"] < part["planned"] for part in parts.values())
        if not (510 < machine.now < 720 and is_fair and is_cut == (factor > 1 and since_s > 0)):
            wrong.append((factor, since_s, round(machine.now), made))
    assert not wrong


def test_what_was_cut_is_said_and_the_schedule_follows(
    tmp_path: Path, start: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="speechssl")
    machine = start(2.5, 100.0)
    result, parts = run(machine, tmp_path / "demo")
    legs = [keys for name, keys in machine.commands if name == "pretrained"]
    planned, made = parts["pretrained"]["planned"], parts["pretrained"]["updates"]
    ends = [keys["training.max_updates"] for keys in legs]
    assert ends[0] == planned > made == ends[-1]
    assert [keys.get("training.schedule_updates") for keys in legs] == [None, *ends[1:]]
    text = caplog.text
    assert f"this machine has become slower: pretraining ends after {made} updates instead of {ends[-2]}" in text
    row = next(row for row in result["rows"] if row["name"] == "updates, pretraining")
    assert (row["value"], row["baselines"], row["verdict"]) == (made, {"planned": planned}, "cut")
    assert f"planned {planned}" in text and "Cut, since this machine became slower meanwhile" in text
    assert result["as_hoped"] is not None


def test_a_demo_that_was_killed_keeps_its_plan_and_its_minutes(tmp_path: Path, start: Callable[..., Machine]) -> None:
    machine = start(1.0, 0.0)
    machine.killed_at = 200.0
    with pytest.raises(KeyboardInterrupt):
        run(machine, tmp_path)
    planned = json.loads((tmp_path / "plan.json").read_text())["parts"]["pretrained"]["updates"]
    machine.commands.clear()
    machine.slowness = lambda now: 2.5
    _, parts = run(machine, tmp_path)
    assert machine.commands[0][0] == "pretrained" and machine.commands[0][1]["training.max_updates"] == planned
    assert parts["pretrained"]["updates"] < planned
    assert machine.now < 720


def test_a_request_to_stop_is_no_slow_machine(tmp_path: Path, start: Callable[..., Machine]) -> None:
    machine = start(1.0, 0.0)

    def interrupt(verb: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        if Path(keys["out"]).name == "finetuned":
            raise StoppedOnRequest("stopped by SIGUSR1 after update 3", 75)
        return machine(verb, keys)

    with pytest.raises(StoppedOnRequest, match="SIGUSR1"):
        demo(DemoConfig(out=str(tmp_path), minutes=MINUTES, device="cpu"), interrupt)
