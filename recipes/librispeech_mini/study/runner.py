"""Runs a cell: every step that is not done, in order, each resumable by running the cell again."""

from __future__ import annotations

import fcntl
import json
import logging
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speechssl
from recipes.librispeech_mini.study import digits, language_model
from recipes.librispeech_mini.study.cells import Budget, Cell
from recipes.librispeech_mini.study.plan import Command, Places, Step, build_steps
from recipes.librispeech_mini.study.records import (
    DONE,
    FAILED,
    STOPPED,
    Record,
    find_path,
    note_rebuilt,
    open_record,
    read_record,
    trim,
    write_record,
)
from speechssl.api import run_verb
from speechssl.checkpoints.layout import RESULT
from speechssl.checkpoints.snapshot import STATE, read_header
from speechssl.data.manifest import load_manifests
from speechssl.errors import SpeechSSLError, StoppedOnRequest
from speechssl.training.metrics import read_metrics

PREPARING = ".preparing"
"""File in `out` that is locked by the one process which prepares it: cells are often started side by side."""

OUT_OF_TIME = 75
"""Exit code of `speechssl` for a run that stopped with its state saved."""

TRAIN_NGRAM = Path(__file__).parents[3] / "tools" / "train_ngram.py"

TRAININGS = ("pretrain", "finetune")

LM_WEIGHTS = {
    "decoding.lm_weight": 0.87, "decoding.word_bonus": -1.0, "decoding.unknown_penalty": -5.0,
    "decoding.blank_penalty": 0.0,
}  # fmt: skip
"""Fairseq's, the defaults when the study began: its figures were made with them, and its commands do not name them."""

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class Settings:
    """Where and how long, never what.

    Attributes:
        device, precision: as everywhere.
        num_workers: of the loader.
        max_hours: stop a training with its state saved after so long; 0: no limit.
        deadline: on the clock `time.monotonic`: nothing begins after it, and a training stops there; None: no limit.
    """

    device: str = "auto"
    precision: str = "auto"
    num_workers: int = 1
    max_hours: float = 0.0
    deadline: float | None = None

    def find_hours(self) -> float:
        """Say how long the next training may take, as `training.max_hours` does."""
        if self.deadline is None:
            return self.max_hours
        left = max((self.deadline - time.monotonic()) / 3600, 1e-9)
        return min(left, self.max_hours) if self.max_hours else left

    def check_deadline(self, what: str) -> None:
        """Stop before something that would begin after the deadline.

        Raises:
            StoppedOnRequest: it has passed.
        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise StoppedOnRequest(f"time was up before {what}", OUT_OF_TIME)


def prepare(places: Places, budget: Budget) -> None:
    """Make the manifests and the language model, where they are not there yet; other cells in `out` wait for it."""
    places.out.mkdir(parents=True, exist_ok=True)
    with (places.out / PREPARING).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _prepare(places, budget)


def _prepare(places: Places, budget: Budget) -> None:
    if not (places.out / "m" / "result.json").exists():
        subset = list(budget.subsets.values())
        speechssl.prepare(root=str(places.data), corpus="librispeech", out=str(places.out / "m"), subset=subset)
        for name, length in budget.subsets.items():
            # The labels' name, whatever their length: a rehearsal has seconds of them.
            if name != length:
                (places.out / "m" / f"train-{length}.tsv").rename(places.manifest(f"train-{name}"))
    if places.fsdd is not None and not (places.out / "fsdd" / "result.json").exists():
        columns = {"path": "path", "text": "text", "speaker": "speaker"}
        table = str(places.fsdd / "utterances.tsv")
        speechssl.prepare(corpus="table", table=table, columns=columns, out=str(places.out / "fsdd"))
    if "beam" in budget.decodings:
        train_language_model(places)


def train_language_model(places: Places) -> None:
    """Train the 4-gram on transcripts that share no passage with what is evaluated."""
    path = places.out / "lm" / "4gram.arpa"
    if path.exists():
        return
    if places.text is None:
        raise speechssl.ConfigError("`text` must be a folder with *.trans.txt for the 4-gram, but is not given")
    evaluated = [places.manifest(split) for split in ("dev", "test", "test-other")]
    texts = [text or "" for text in load_manifests(evaluated, "data.test").column("text")]
    kept, left_out = language_model.leave_out_evaluated(language_model.read_transcripts(places.text), texts)
    _logger.info(
        "language model: %d lines, %d left out for what they share with dev and test", len(kept), len(left_out)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.with_name("text.txt")
    text.write_text("\n".join(kept) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, TRAIN_NGRAM, text, f"out={path}", "order=4"], check=True, stdout=sys.stderr)


def run_cell(
    cell: Cell, places: Places, budget: Budget, settings: Settings, only: Collection[str] | None = None
) -> dict[str, Any]:
    """Run the steps of a cell that are not done, and name them.

    A step that fails with a sentence is recorded as failed; running the cell again tries it again.

    Args:
        cell: whose steps.
        places: folders.
        budget: how much of everything.
        settings: where and how long.
        only: names of the steps to run; None: all.

    Raises:
        SpeechSSLError: a step failed.
        StoppedOnRequest: a training was stopped with its state saved.
    """
    prepare(places, budget)
    by_name = {step.name: step for step in build_steps(cell, budget, places)}
    steps = [step for step in by_name.values() if only is None or step.name in only]
    for step in steps:
        path = find_path(places, step.cell, step.name)
        if open_record(path, step, places)["status"] == DONE:
            _renew(step, by_name, places, settings)
            continue
        # Before the record says that it began; k-means clusters for a minute before its first update.
        settings.check_deadline(f"{step.cell}, {step.name}")
        for name in step.needs:
            _renew(by_name[name], by_name, places, settings)
        _logger.info("%s: %s", step.cell, step.name)
        run_step(step, open_record(path, step, places), path, places, settings)
    return {"cell": cell.name, "done": [step.name for step in steps]}


def _renew(step: Step, by_name: Mapping[str, Step], places: Places, settings: Settings) -> None:
    """Have a training here that steps still need, and drop what they had measured on one that was made elsewhere."""
    paths = [find_path(places, other.cell, other.name) for other in by_name.values() if step.name in other.needs]
    records = {path: read_record(path) for path in paths}
    waiting = {path: record for path, record in records.items() if record is None or record["status"] != DONE}
    if not waiting or not _rebuild(step, places, settings):
        return
    for path, record in waiting.items():
        if record is not None:
            write_record(path, {**record, "metrics": {}})


def _rebuild(step: Step, places: Places, settings: Settings) -> bool:
    """Train again what an earlier session trained on another machine, note it, and say whether that was done."""
    is_rebuilt = False
    for command in step.commands:
        # What is finished is only read: other steps that need it may run beside this one.
        if command.verb not in TRAININGS or _is_finished(command):
            continue
        settings.check_deadline(f"{step.cell}, {step.name}")
        before = describe_progress(step).get("updates", 0)
        result = run_verb(command.verb, add_settings(command, places, settings))
        if result["updates"] > before:
            is_rebuilt = True
            note_rebuilt(find_path(places, step.cell, step.name), step, places.hide(trim(result)))
    return is_rebuilt


def _is_finished(command: Command) -> bool:
    path = Path(command.keys["out"]) / RESULT
    return path.exists() and bool(
        json.loads(path.read_text(encoding="utf-8"))["updates"] == command.keys["training.max_updates"]
    )


def run_step(step: Step, record: Record, path: Path, places: Places, settings: Settings) -> None:
    """Run the commands of a step and keep its record, whatever comes of it."""
    begun, before = time.monotonic(), record["wall_s"]
    write_record(path, record)
    try:
        for command in step.commands:
            record["metrics"][command.label] = places.hide(_run_command(command, places, settings))
            # Kept, should the process be killed in the next one.
            write_record(path, record)
        record |= describe_training(step, record["metrics"])
        record["status"] = DONE
    except SpeechSSLError as error:
        record |= {"status": FAILED, "error": places.hide(str(error))}
        raise
    except StoppedOnRequest:
        record["status"] = STOPPED
        raise
    finally:
        if record["status"] != DONE:
            record |= describe_progress(step)
        record["wall_s"] = round(before + time.monotonic() - begun, 1)
        write_record(path, record)


def _run_command(command: Command, places: Places, settings: Settings) -> Record:
    settings.check_deadline(command.label)
    if command.verb == "digits":
        return trim(digits.run(**command.keys))
    return trim(run_verb(command.verb, add_settings(command, places, settings)))


def add_settings(command: Command, places: Places, settings: Settings) -> dict[str, Any]:
    """Add to a command's keys where and how long it runs, and the weights of the study's language model."""
    weights = LM_WEIGHTS if "decoding.lm" in command.keys else {}
    keys = {**command.keys, **weights, "device": settings.device, "precision": settings.precision}
    if command.verb in TRAININGS:
        keys |= {"data.num_workers": settings.num_workers, "data.cache_dir": str(places.out / "cache")}
        keys |= {"training.max_hours": settings.find_hours()}
    return keys


def describe_training(step: Step, metrics: Mapping[str, Any]) -> Record:
    """Say what a training came to: updates, hours of speech seen, operations and precision; nothing for other steps."""
    command = step.commands[0]
    if command.verb not in TRAININGS:
        return {}
    result = metrics[command.label]
    return _describe_cost(step, result["updates"], result["hours_seen"])


def describe_progress(step: Step) -> Record:
    """Say how far a training has come that did not end, from the lines of its updates; nothing before the first."""
    command = step.commands[0]
    if command.verb not in TRAININGS:
        return {}
    last = find_last_update(read_metrics(Path(command.keys["out"])))
    return _describe_cost(step, last["update"], last["hours_seen"]) if last else {}


def _describe_cost(step: Step, updates: int, hours_seen: float) -> Record:
    command = step.commands[0]
    folder = Path(command.keys["out"])
    state = folder / "checkpoints" / "last" / STATE
    # Nothing is saved yet of a training that stopped early.
    precision = {"precision": read_header(state).provenance.precision} if state.exists() else {}
    return {
        "updates": updates,
        "update_s": command.keys["training.update_s"],
        "hours_seen": hours_seen,
        "flop": 3600 * hours_seen * step.flop_per_s,
        **precision,
        "updates_s": round(measure_updates(read_metrics(folder)), 1),
    }


def find_last_update(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Find the line of the last update among those of `metrics.jsonl`."""
    return next((row for row in reversed(metrics) if row["split"] == "train"), None)


def measure_updates(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Add up the seconds of all updates from their lines: what of a training's time outlives a process that is killed.

    Args:
        metrics: lines of `metrics.jsonl`; `hours_seen` counts up, `audio_s_per_s` is the update's own rate.
    """
    updates = [row for row in metrics if row["split"] == "train"]
    hours = [0.0, *(row["hours_seen"] for row in updates)]
    steps = zip(hours, hours[1:], updates, strict=False)
    return float(sum(3600 * (after - before) / row["audio_s_per_s"] for before, after, row in steps))
