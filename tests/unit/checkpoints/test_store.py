"""Checkpoints: published whole, the best one never rotated away, everything that training needs inside."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechssl.checkpoints.checksums import CHECKSUMS, write_checksums
from speechssl.checkpoints.model_folder import build_untrained, find_checkpoint, read_card
from speechssl.checkpoints.replacement import ASIDE
from speechssl.checkpoints.snapshot import STATE, Progress, Provenance, Snapshot
from speechssl.checkpoints.store import TENSORS, CheckpointStore, find_problem
from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.training import TrainingConfig
from speechssl.errors import CheckpointError, DataError
from speechssl.interop.load import load_model
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.optim import build_optimizer, export_state, scale_gradients
from speechssl.training.state import TrainingState


@pytest.fixture
def objective(tiny_model_config: ModelConfig) -> ContrastiveObjective:
    return ContrastiveObjective(tiny_model_config, ContrastiveConfig(), 1, 10)


@pytest.fixture
def optimizer(objective: ContrastiveObjective) -> torch.optim.AdamW:
    made = build_optimizer(objective.module, TrainingConfig())
    for parameter in objective.module.parameters():
        parameter.grad = torch.randn_like(parameter)
    made.step()
    return made


def take(objective: ContrastiveObjective, optimizer: torch.optim.AdamW, progress: Progress) -> Snapshot:
    return TrainingState(objective, optimizer, progress).take_snapshot()


def test_everything_comes_back(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    objective.watch.held, objective.watch.first_spread = 17, 0.25
    progress = Progress(update=5, audio_s=12.5, best_value=3.0, best_update=4, best_tie=2.0)
    folder = store.save(take(objective, optimizer, progress), is_best=True)
    other = ContrastiveObjective(tiny_model_config, ContrastiveConfig(), 2, 10)
    again = build_optimizer(other.module, TrainingConfig())
    state = TrainingState(other, again)
    store.load(folder, state)
    assert state.progress == progress
    assert (other.watch.held, other.watch.first_spread) == (17, 0.25)
    for name, value in objective.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name])
    saved, loaded = export_state(optimizer, objective.module), export_state(again, other.module)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_best_survives_rotation_and_scratch_is_cleared(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    (tmp_path / "checkpoints" / ".update-0000009.77.part").mkdir(parents=True)
    assert store.find_valid() is None
    for update in range(1, 7):
        store.save(take(objective, optimizer, Progress(update)), is_best=update == 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "last", "update-0000002", "update-0000005", "update-0000006"]
    assert find_checkpoint(str(tmp_path)).resolve().name == "update-0000002"
    assert read_card(find_checkpoint(str(tmp_path))).update == 2


def test_what_the_run_replaces_lies_aside_until_its_first_checkpoint(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    (tmp_path / ASIDE).mkdir()
    store = CheckpointStore(tmp_path, keep=2)
    snapshot = take(objective, optimizer, Progress(1))
    broken = {name: value * float("nan") for name, value in snapshot.weights.items()}
    with pytest.raises(CheckpointError):
        store.save(replace(snapshot, weights=broken), is_best=False)
    assert (tmp_path / ASIDE).is_dir()
    store.save(snapshot, is_best=False)
    assert not (tmp_path / ASIDE).exists()


def test_without_validation_best_is_last(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for update in (1, 2, 3):
        store.save(take(objective, optimizer, Progress(update)), is_best=False)
    store.finish()
    assert find_checkpoint(str(tmp_path)).resolve().name == "update-0000003"


def test_without_validation_best_is_last_after_more_updates_too(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    last = store.save(take(objective, optimizer, Progress(3)), is_best=False)
    store.finish()
    store.load(last, TrainingState(objective, optimizer))
    store.save(take(objective, optimizer, Progress(5)), is_best=False)
    store.finish()
    assert find_checkpoint(str(tmp_path)).resolve().name == "update-0000005"


def save_some(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, store: CheckpointStore, best: int = 1
) -> list[Path]:
    """Save updates 1, 2 and 3, each with its own number in a weight; `best` is the best so far from then on."""
    folders = []
    for update in (1, 2, 3):
        objective.module.backbone.mask_embedding.data.fill_(float(update))
        progress = Progress(update, best_value=1.0, best_update=min(update, best))
        folders.append(store.save(take(objective, optimizer, progress), is_best=update <= best))
    return folders


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_checkpoint_is_named_counted_and_passed_over(
    objective: ContrastiveObjective,
    optimizer: torch.optim.AdamW,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folders = save_some(objective, optimizer, CheckpointStore(tmp_path, keep=3), best=3)
    cut(folders[2] / "model.safetensors")
    store, state = CheckpointStore(tmp_path, keep=3), TrainingState(objective, optimizer)
    found = store.find_valid()
    assert found == folders[1]
    assert [(r.levelname, "update-0000003 is damaged" in r.message) for r in caplog.records] == [("ERROR", True)]
    store.load(found, state)
    assert state.progress.update == 2
    assert state.progress.damaged_checkpoints == 1
    assert float(objective.module.backbone.mask_embedding[0].detach()) == 2.0
    names = {path.name: path.resolve().name for path in (tmp_path / "checkpoints").iterdir() if path.is_symlink()}
    assert names == {"best": "update-0000002", "last": "update-0000002"}
    # The damaged one stays for a look until the next one is whole.
    assert (tmp_path / "checkpoints" / "damaged-update-0000003").is_dir()
    state.progress.update = 3
    store.save(state.take_snapshot(), is_best=False)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*update*")) == [
        "update-0000001",
        "update-0000002",
        "update-0000003",
    ]
    assert not find_problem(folders[2])


def test_without_a_whole_checkpoint_the_run_does_not_begin_again_by_itself(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    for folder in save_some(objective, optimizer, CheckpointStore(tmp_path, keep=3)):
        (folder / CHECKSUMS).unlink()
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"none in .* is: .*lost its checksums \(overwrite=true starts over\)"
        ):
            CheckpointStore(tmp_path, keep=3).find_valid()
    assert len(list((tmp_path / "checkpoints").glob("update-*"))) == 3


def make_version_1(folder: Path) -> None:
    """Make a checkpoint what earlier versions wrote."""
    old = ("update", "audio_s", "best_value", "best_update")
    edit_header(folder, lambda stored: stored.update({name: stored["progress"][name] for name in old}))
    edit_header(folder, lambda stored: [stored.pop(name) for name in ("version", "progress", "provenance")])
    held = {name: value for name, value in load_file(folder / TENSORS).items() if not name.startswith("guard/")}
    held["objective/collapse.numbers"] = held["objective/collapse.numbers"][:3].clone()
    save_file(held, folder / TENSORS)
    (folder / CHECKSUMS).unlink()


def test_a_checkpoint_of_version_1_loads_and_says_that_it_is_not_verified(
    objective: ContrastiveObjective,
    optimizer: torch.optim.AdamW,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, state = CheckpointStore(tmp_path, keep=3), TrainingState(objective, optimizer)
    folders = save_some(objective, optimizer, store)
    for folder in folders:
        make_version_1(folder)
    assert store.find_valid() == folders[2]
    store.load(folders[2], state)
    assert state.progress == Progress(3, best_value=1.0, best_update=1, validated_update=3)
    assert [record.message for record in caplog.records if "cannot be verified" in record.message]
    cut(folders[2] / TENSORS)
    assert store.find_valid() == folders[1]


def test_a_checkpoint_of_version_2_loads_and_any_tie_is_better_than_its_best(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    store, state = CheckpointStore(tmp_path, keep=3), TrainingState(objective, optimizer)
    folder = save_some(objective, optimizer, store)[-1]
    edit_header(folder, lambda stored: (stored.update(version=2), stored["progress"].pop("best_tie")))
    write_checksums(folder)
    assert store.find_valid() == folder
    store.load(folder, state)
    assert state.progress == Progress(3, best_value=1.0, best_update=1, best_tie=None)


def test_a_later_version_is_refused(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    folder = save_some(objective, optimizer, store)[-1]
    edit_header(folder, lambda stored: stored.update(version=99))
    write_checksums(folder)
    with pytest.raises(CheckpointError, match="version 3 or earlier, but .*update-0000003 is of version 99"):
        store.find_valid()


@pytest.mark.parametrize("part", ["weights", "optimizer/exp_avg/", "optimizer/exp_avg_sq/"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_never_published(
    part: str, value: float, objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    folders = save_some(objective, optimizer, store)
    snapshot = take(objective, optimizer, Progress(4))
    held = snapshot.weights if part == "weights" else snapshot.tensors
    name = next(name for name in held if name.startswith("" if part == "weights" else part))
    held[name] = held[name].clone()
    held[name].view(-1)[0] = value
    with pytest.raises(CheckpointError, match="must hold finite values only, but .* does not after update 4"):
        store.save(snapshot, is_best=True)
    assert store.find_valid() == folders[-1]
    assert not (tmp_path / "checkpoints" / "update-0000004").exists()


def test_without_room_nothing_is_written(
    objective: ContrastiveObjective,
    optimizer: torch.optim.AdamW,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    folders = save_some(objective, optimizer, store)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"but .*/checkpoints has 1 MiB free and \d+ MiB are needed"):
        store.save(take(objective, optimizer, Progress(4)), is_best=True)
    assert store.find_valid() == folders[-1]


def test_other_utterances_are_refused_and_the_first_precision_stays(
    objective: ContrastiveObjective,
    optimizer: torch.optim.AdamW,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = TrainingState(objective, optimizer)
    began = Provenance("bf16", {"data.train": "a", "data.valid": "b"}, {"torch": "2.11"})
    folder = save_some(objective, optimizer, CheckpointStore(tmp_path, 2, began))[-1]
    now = replace(began, precision="float32", versions={"torch": "2.13"})
    store = CheckpointStore(tmp_path, 2, now)
    caplog.set_level(logging.WARNING, "speechssl")
    assert store.load(folder, state).precision == "bf16"
    assert ["stays with it" in r.message or "torch 2.11" in r.message for r in caplog.records] == [True, True]
    state.progress.update = 4
    stored = json.loads((store.save(state.take_snapshot(), is_best=False) / STATE).read_text())
    assert stored["provenance"] == asdict(replace(now, precision="bf16"))
    other = CheckpointStore(tmp_path, 2, replace(now, data={"data.train": "other", "data.valid": "b"}))
    with pytest.raises(DataError, match="`data.train` must hold the utterances that the run in"):
        other.load(folder, state)


def test_damage_is_one_sentence(objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path, keep=1).save(take(objective, optimizer, Progress(1)), is_best=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000])
    with pytest.raises(CheckpointError, match=r"`init` must be a whole checkpoint, but .*model\.safetensors"):
        load_model(str(tmp_path), key="init")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(str(tmp_path / "nowhere"))


def rename_tensor(folder: Path) -> None:
    stored = load_file(folder / TENSORS)
    stored["optimizer/exp_avg/nowhere"] = torch.zeros(1)
    save_file(stored, folder / TENSORS)


def shrink_tensor(folder: Path) -> None:
    stored = load_file(folder / TENSORS)
    name = next(name for name in stored if name.startswith("optimizer/exp_avg/"))
    save_file({**stored, name: torch.zeros(1)}, folder / TENSORS)


def halve_state(folder: Path) -> None:
    stored = load_file(folder / TENSORS)
    del stored[next(name for name in stored if name.startswith("optimizer/exp_avg_sq/"))]
    save_file(stored, folder / TENSORS)


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads((folder / STATE).read_text())
    change(stored)
    (folder / STATE).write_text(json.dumps(stored))


def forget_the_watch(folder: Path) -> None:
    stored = load_file(folder / TENSORS)
    save_file({name: value for name, value in stored.items() if not name.startswith("objective/")}, folder / TENSORS)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a pickle as the optimizer's file": lambda f: (f / TENSORS).write_bytes(pickle.dumps(Payload(f / "executed"))),
    "torch's pickle as the optimizer's file": lambda f: torch.save({"optimizer": Payload(f / "executed")}, f / TENSORS),
    "a pickle as the counters": lambda f: (f / STATE).write_bytes(pickle.dumps(Payload(f / "executed"))),
    "counters that nest without end": lambda f: (f / STATE).write_text("[" * 100_000),
    "a counter too many": lambda f: edit_header(f, lambda stored: stored["progress"].update(_target_="os.abort")),
    "a counter too few": lambda f: edit_header(f, lambda stored: stored["progress"].pop("audio_s")),
    "a list as the counters": lambda f: (f / STATE).write_text("[1, 2, 3, 4, 5]"),
    "a state of no parameter": rename_tensor,
    "a state of another shape": shrink_tensor,
    "no state of the watch": forget_the_watch,
    "a state in part": halve_state,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_state_is_one_sentence_and_runs_nothing(
    damage: str, objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    """Whoever can write a checkpoint can write its checksums: past them the content is still only data."""
    store = CheckpointStore(tmp_path, keep=1)
    folder = store.save(take(objective, optimizer, Progress(1)), is_best=True)
    DAMAGES[damage](folder)
    with pytest.raises(CheckpointError, match="none in .* is: .* \\(overwrite=true starts over\\)"):
        store.find_valid()
    write_checksums(folder)
    with pytest.raises(CheckpointError, match="`out` must hold a whole checkpoint, but .* does not load") as caught:
        store.load(folder, TrainingState(objective, optimizer))
    assert "\n" not in str(caught.value)
    assert not (folder / "executed").exists()


def test_the_untrained_model_is_the_same_network_with_other_weights(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    CheckpointStore(tmp_path, keep=1).save(take(objective, optimizer, Progress(1)), is_best=True)
    model = load_model(str(tmp_path))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    fresh, again = build_untrained(model, 1), build_untrained(model, 1)
    assert fresh.config == model.config
    assert torch.equal(fresh.backbone.mask_embedding, again.backbone.mask_embedding)
    assert not torch.equal(fresh.backbone.mask_embedding, model.backbone.mask_embedding)


def test_gradients_are_divided_once_by_the_count_and_clipped_on_request(objective: ContrastiveObjective) -> None:
    parameters = list(objective.module.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 6.0)
    norm = scale_gradients(objective.module, torch.tensor(3), clip_norm=1.0)
    total = sum(parameter.numel() for parameter in parameters)
    assert float(norm) == pytest.approx(2.0 * total**0.5, rel=1e-4)
    clipped = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    assert float(clipped) == pytest.approx(1.0, rel=1e-4)
