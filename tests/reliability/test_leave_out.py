"""Whatever a checkpoint lacks is seen: it does not load, or the run that goes on is another one (target R4)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from speechssl.checkpoints.checksums import write_checksums
from speechssl.checkpoints.model_folder import AVERAGED, CONFIG, WEIGHTS, read_card
from speechssl.checkpoints.snapshot import STATE, Provenance
from speechssl.checkpoints.store import TENSORS, CheckpointStore
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.training import TrainingConfig
from speechssl.errors import SpeechSSLError
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.average import WeightAverage
from speechssl.training.optim import FIELDS, build_optimizer
from speechssl.training.resume import TrainingState
from tests.cases import each_case
from tests.reliability.harness import KEYS, ForkServer, Run, find_differences, read_outcome
from tests.reliability.jobs import finish

UPDATES = {
    "data.num_workers": 0,
    "training.checkpoint_every": 1000,
    "training.validate_every": 1000,
    "training.schedule_updates": 6,
}


@pytest.fixture(scope="module")
def stopped(server: ForkServer, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give a run that stands at update 4 of 6."""
    run = Run(server, manifests, tmp_path_factory.mktemp("leave-out") / "run", UPDATES)
    run.keys = {**UPDATES, "training.max_updates": 4}
    return finish(run)


@pytest.fixture(scope="module")
def expected(stopped: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_outcome(go_on(stopped, tmp_path_factory.mktemp("whole")))


def go_on(stopped: Run, folder: Path) -> Run:
    """Copy the run and bring the copy to update 6."""
    return finish(copy_run(stopped, folder))


def copy_run(stopped: Run, folder: Path) -> Run:
    out = folder / "run"
    shutil.copytree(stopped.out, out, symlinks=True, dirs_exist_ok=True)
    return Run(stopped.server, stopped.manifests, out, {**UPDATES, "training.max_updates": 6})


def find_checkpoint(run: Run) -> Path:
    return (run.out / "checkpoints" / "last").resolve()


def drop_tensors(folder: Path, names: list[str]) -> None:
    """Leave tensors out of a checkpoint, as a snapshot that forgot them would; the checksums are right."""
    for file in (WEIGHTS, TENSORS):
        held = safetensors.torch.load_file(folder / file)
        safetensors.torch.save_file({k: v for k, v in held.items() if k not in names}, folder / file)
    write_checksums(folder)


def list_tensors(folder: Path) -> list[str]:
    return [*safetensors.torch.load_file(folder / WEIGHTS), *safetensors.torch.load_file(folder / TENSORS)]


def drop_averaged(folder: Path, name: str) -> None:
    """Take one tensor out of the moving average, as if it had never been written."""
    held = safetensors.torch.load_file(folder / AVERAGED)
    safetensors.torch.save_file({k: v for k, v in held.items() if k != name}, folder / AVERAGED)
    write_checksums(folder)


def try_load(folder: Path, run_folder: Path, provenance: Provenance | None = None) -> str:
    """Load a checkpoint into a fresh training as the command does: the error, or nothing."""
    card = read_card(folder)
    objective = ContrastiveObjective(card.model, ContrastiveConfig(), 1, 6)
    average = WeightAverage(objective.module, KEYS["training.ema_decay"])
    state = TrainingState(objective, build_optimizer(objective.module, TrainingConfig()), average=average)
    try:
        CheckpointStore(run_folder, 2, provenance).load(folder, state)
    except SpeechSSLError as error:
        return str(error)
    return ""


def test_the_loader_refuses_a_checkpoint_without_any_one_tensor(stopped: Run, tmp_path: Path) -> None:
    """Weights, each field of the optimizer's state, and what the collapse watch remembers: one at a time."""
    run = copy_run(stopped, tmp_path)
    folder = find_checkpoint(run)
    assert try_load(folder, run.out) == ""
    whole = {file: (folder / file).read_bytes() for file in (WEIGHTS, TENSORS)}
    accepted = []
    names = list_tensors(folder)
    for name in names:
        drop_tensors(folder, [name])
        accepted += [] if try_load(folder, run.out) else [name]
        for file, content in whole.items():
            (folder / file).write_bytes(content)
    assert accepted == []
    assert {name.partition("/")[0] for name in names if "/" in name} == {"optimizer", "objective", "guard", "average"}


def test_the_loader_refuses_an_average_without_any_one_weight(stopped: Run, tmp_path: Path) -> None:
    run = copy_run(stopped, tmp_path)
    folder = find_checkpoint(run)
    whole = (folder / AVERAGED).read_bytes()
    accepted = []
    for name in safetensors.torch.load_file(folder / AVERAGED):
        drop_averaged(folder, name)
        accepted += [] if try_load(folder, run.out) else [name]
        (folder / AVERAGED).write_bytes(whole)
    (folder / AVERAGED).unlink()
    assert try_load(folder, run.out)
    assert accepted == []


@each_case("number", range(4))
def test_a_parameter_without_its_optimizer_state_makes_another_run(
    number: int, stopped: Run, expected: dict[str, Any], tmp_path: Path
) -> None:
    """LayerDrop leaves parameters without a state for a while, so the loader cannot know: the comparison sees it."""
    run = copy_run(stopped, tmp_path)
    folder = find_checkpoint(run)
    prefix = f"optimizer/{FIELDS[0]}/"
    names = [name.removeprefix(prefix) for name in list_tensors(folder) if name.startswith(prefix)]
    chosen = names[number * len(names) // 4]
    drop_tensors(folder, [f"optimizer/{field}/{chosen}" for field in FIELDS])
    differences = find_differences(expected, read_outcome(finish(run)))
    assert f"optimizer/exp_avg/{chosen}" in differences
    assert any(name.startswith("weights/") for name in differences)


@each_case(
    "path",
    [
        ["version"],
        ["progress"],
        ["provenance"],
        *(["progress", name] for name in ("update", "audio_s", "best_value", "best_update", "best_tie")),
        *(["progress", name] for name in ("validated_update", "damaged_checkpoints")),
        *(["provenance", name] for name in ("precision", "data", "versions")),
        ["provenance", "data", "data.train"],
        ["provenance", "data", "data.valid"],
    ],
)
def test_the_loader_refuses_a_checkpoint_without_any_one_counter(path: list[str], stopped: Run, tmp_path: Path) -> None:
    run = copy_run(stopped, tmp_path)
    folder = find_checkpoint(run)
    text = (folder / STATE).read_text()
    header, provenance = json.loads(text), Provenance(**json.loads(text)["provenance"])
    held = header
    assert try_load(folder, run.out, provenance) == ""
    for name in path[:-1]:
        held = held[name]
    del held[path[-1]]
    (folder / STATE).write_text(json.dumps(header))
    write_checksums(folder)
    assert re.search(r"`(out|data\.\w+)` must hold (a whole|the utterances)", try_load(folder, run.out, provenance))


@each_case("name", ["version", "kind", "update", "model", "vocabulary"])
def test_a_model_card_without_any_one_entry_is_refused(name: str, stopped: Run, tmp_path: Path) -> None:
    folder = find_checkpoint(copy_run(stopped, tmp_path))
    card = json.loads((folder / CONFIG).read_text())
    del card[name]
    (folder / CONFIG).write_text(json.dumps(card))
    with pytest.raises(SpeechSSLError, match="must be a whole checkpoint"):
        read_card(folder)


def test_what_is_compared_is_what_a_checkpoint_holds(stopped: Run, expected: dict[str, Any]) -> None:
    """Nothing in a checkpoint escapes the comparison, and everything that is drawn is on."""
    names = set(list_tensors(find_checkpoint(stopped)))
    compared = {name.removeprefix("weights/") for name in expected}
    assert names <= compared
    assert KEYS["model.layer_drop_prob"] > 0 and KEYS["model.dropout"] > 0
