"""Runs that are killed, stopped and gone on with, and the comparison of what they leave with an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from speechssl.checkpoints.layout import list_published
from speechssl.checkpoints.model_folder import AVERAGED, WEIGHTS
from speechssl.checkpoints.snapshot import STATE
from speechssl.checkpoints.store import TENSORS, find_problem
from speechssl.data.files import scan_files
from speechssl.data.manifest import build_manifest, save_manifest
from speechssl.training.metrics import MEASURED
from tests.conftest import write_librispeech

ROOT = Path(__file__).parents[2]

"""What the clock decides; everything else in a log line must be the same to the bit."""

KEYS: dict[str, Any] = {
    "model": "tiny",
    "device": "cpu",
    "precision": "float32",
    "data.num_workers": 2,
    "data.min_s": 0.5,
    "data.max_s": 2.0,
    "model.layer_drop_prob": 0.3,
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.activation_dropout": 0.1,
    "training.sub_batch_s": 4.0,
    "training.update_s": 8.0,
    "training.forward_s": 4.0,
    "training.max_updates": 24,
    "training.checkpoint_every": 3,
    "training.validate_every": 4,
    "training.ema_decay": 0.9,
}
"""Everything that is drawn is on: dropout, LayerDrop, masks, negatives, Gumbel noise, crops. A new part of the training
state joins the proof by a line here."""

CRASH_POINTS = (
    "start", "weights", "tensors", "header", "flushed", "checksums", "sealed", "renamed", "published", "last", "best",
    "rotation", "end",
)  # fmt: skip
"""The named points of a save, in their order. `best` is reached where a validation finds the best value."""


class ForkServer:
    """The process that forks trainers; see `tests/reliability/forkserver.py`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def serve_forks() -> Iterator[ForkServer]:
    """Keep a fork server while inside."""
    server = ForkServer()
    try:
        yield server
    finally:
        server.close()


@dataclass
class Run:
    """One training command in its folder, given as often as it takes.

    Attributes:
        server: forks its processes.
        manifests: folder with train.tsv and valid.tsv.
        out: the run folder.
        keys: that differ from `KEYS`.
    """

    server: ForkServer
    manifests: Path
    out: Path
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """The command, after `speechssl`."""
        given = {
            **KEYS,
            "data.train": str(self.manifests / "train.tsv"),
            "data.valid": str(self.manifests / "valid.tsv"),
            "out": str(self.out),
            **self.keys,
        }
        return ["pretrain", *(f"{key}={value}" for key, value in given.items())]

    @property
    def log(self) -> Path:
        """What its processes printed."""
        return self.out.with_suffix(".log")

    def start(self, look: int = 0, file_bytes: int = 0, **env: str) -> int:
        """Fork a process for the command; it stops at the `look`-th look, and writes no file beyond `file_bytes`."""
        words, log = self.words, str(self.log)
        request = {"words": words, "env": env, "log": log, "look": look, "file_bytes": file_bytes}
        return int(self.server.ask(request)["pid"])

    def wait(self, pid: int) -> int:
        """Wait for a process: its exit code, or minus the signal."""
        return int(self.server.ask({"wait": pid})["code"])

    def finish(self, look: int = 0, file_bytes: int = 0, **env: str) -> int:
        """Run the command to its end and return its exit code."""
        return self.wait(self.start(look, file_bytes, **env))

    def read_update(self) -> int:
        """Read the last update that is in the log."""
        lines = [record for record in self.read_metrics() if record["split"] == "train"]
        return int(lines[-1]["update"]) if lines else 0

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the whole lines of metrics.jsonl, without times."""
        path = self.out / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [{name: value for name, value in record.items() if name not in MEASURED} for record in records]

    def wait_for_update(self, pid: int, update: int, timeout_s: float = 120.0) -> bool:
        """Wait until an update is in the log; False where the process ends before it."""
        deadline = time.monotonic() + timeout_s
        while self.read_update() < update:
            if is_over(pid):
                return False
            assert time.monotonic() < deadline, f"update {update} never came: {self.log.read_text()[-2000:]}"
            time.sleep(0.003)
        return True

    def find_resumed(self) -> int:
        """Find the update that the last process went on from."""
        text = self.log.read_text() if self.log.exists() else ""
        lines = [line for line in text.splitlines() if line.startswith("resumed from update-")]
        return int(lines[-1].removeprefix("resumed from update-")) if lines else 0


def is_over(pid: int) -> bool:
    """Say whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def make_manifests(folder: Path, num_speakers: int = 17, num_valid: int = 3) -> Path:
    """Make a corpus of a second a speaker: updates of a few hundredths of a second, two and a half an epoch."""
    for split, speakers in (("train", range(1, 1 + num_speakers)), ("valid", range(50, 50 + num_valid))):
        tree = write_librispeech(folder / "corpus", split, speakers, num_utterances=1, seconds=1.0)
        scanned = scan_files(sorted(tree.rglob("*.flac")), split)
        rows = [scanned[index] for index in range(len(scanned))]
        save_manifest(build_manifest([_name(row) for row in rows], tree), folder / f"{split}.tsv")
    return folder


def _name(row: Any) -> Any:
    from dataclasses import replace

    return replace(row, id=row.path.stem)


def read_outcome(run: Run) -> dict[str, Any]:
    """Read everything that two runs must have in common: tensors as SHA-256, counters, links and log lines."""
    folder = (run.out / "checkpoints" / "last").resolve()
    held: dict[str, torch.Tensor] = {
        **{f"weights/{k}": v for k, v in safetensors.torch.load_file(folder / WEIGHTS).items()},
        **{f"ema/{k}": v for k, v in safetensors.torch.load_file(folder / AVERAGED).items()},
        **safetensors.torch.load_file(folder / TENSORS),
    }
    found: dict[str, Any] = {name: _digest(value) for name, value in held.items()}
    progress = json.loads((folder / STATE).read_text())["progress"]
    found |= {f"progress/{name}": value for name, value in progress.items() if name != "damaged_checkpoints"}
    found |= {name: (run.out / "checkpoints" / name).resolve().name for name in ("best", "last")}
    found |= {f"log/{record['update']}/{record['split']}": record for record in run.read_metrics()}
    assert len(run.read_metrics()) == sum(name.startswith("log/") for name in found), "a line is there twice"
    return found


def find_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """List what two outcomes do not have in common."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def list_unreadable(run: Run) -> list[str]:
    """List the published checkpoints that are not whole."""
    return [problem for path in list_published(run.out / "checkpoints") if (problem := find_problem(path))]


def list_leftovers(run: Run) -> list[str]:
    """List what a save that was cut off left."""
    return [path.name for path in (run.out / "checkpoints").glob(".*")]


def make_random(name: str) -> random.Random:
    """Make the generator of a job: the same kills every time, as far as the clock allows."""
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def _digest(value: torch.Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(value.numpy().tobytes()).hexdigest()}"
