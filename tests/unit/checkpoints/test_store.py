"""Checkpoints: published whole, the best one never rotated away, everything that training needs inside."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
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
from speechssl.errors import CheckpointError, DataError
from speechssl.interop.load import load_model
from speechssl.training.optim import export_state, scale_gradients
from speechssl.training.resume import TrainingState
from tests.cases import each_case
from tests.unit.checkpoints.conftest import make_state

NAN, INF = float("nan"), float("inf")


def take(state: TrainingState, progress: Progress) -> Snapshot:
    state.progress = progress
    return state.take_snapshot()


def test_everything_comes_back(state: TrainingState, tiny_model_config: ModelConfig, tmp_path: Path) -> None:
    store, other = CheckpointStore(tmp_path, keep=2), make_state(tiny_model_config, seed=2)
    watches = [each.objective.watch for each in (state, other)]
    watches[0].held, watches[0].first_spread = 17, 0.25  # type: ignore[union-attr]
    progress = Progress(update=5, audio_s=12.5, best_value=3.0, best_update=4, best_tie=2.0)
    store.load(store.save(take(state, progress), is_best=True), other)
    assert other.progress == progress
    assert (watches[1].held, watches[1].first_spread) == (17, 0.25)  # type: ignore[union-attr]
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
    saved, loaded = (export_state(each.optimizer, each.model) for each in (state, other))
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_best_survives_rotation_and_scratch_is_cleared(state: TrainingState, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    (tmp_path / "checkpoints" / ".update-0000009.77.part").mkdir(parents=True)
    assert store.find_valid() is None
    for update in range(1, 7):
        store.save(take(state, Progress(update)), is_best=update == 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "last", "update-0000002", "update-0000005", "update-0000006"]
    assert find_checkpoint(str(tmp_path)).resolve().name == "update-0000002"
    assert read_card(find_checkpoint(str(tmp_path))).update == 2


def test_what_the_run_replaces_lies_aside_until_its_first_checkpoint(state: TrainingState, tmp_path: Path) -> None:
    (tmp_path / ASIDE).mkdir()
    store = CheckpointStore(tmp_path, keep=2)
    snapshot = take(state, Progress(1))
    broken = {name: value * float("nan") for name, value in snapshot.weights.items()}
    with pytest.raises(CheckpointError):
        store.save(replace(snapshot, weights=broken), is_best=False)
    assert (tmp_path / ASIDE).is_dir()
    store.save(snapshot, is_best=False)
    assert not (tmp_path / ASIDE).exists()


def test_without_validation_best_is_last_after_more_updates_too(state: TrainingState, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for update in (1, 2, 3):
        last = store.save(take(state, Progress(update)), is_best=False)
    store.finish()
    assert find_checkpoint(str(tmp_path)).resolve().name == "update-0000003"
    store.load(last, state)
    store.save(take(state, Progress(5)), is_best=False)
    store.finish()
    assert find_checkpoint(str(tmp_path)).resolve().name == "update-0000005"


def save_some(state: TrainingState, store: CheckpointStore, best: int = 1) -> list[Path]:
    """Save updates 1, 2 and 3, each with its own number in a weight; `best` is the best so far from then on."""
    folders = []
    for update in (1, 2, 3):
        state.model.backbone.mask_embedding.data.fill_(float(update))
        progress = Progress(update, best_value=1.0, best_update=min(update, best))
        folders.append(store.save(take(state, progress), is_best=update <= best))
    return folders


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_checkpoint_is_named_counted_and_passed_over(
    state: TrainingState,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folders = save_some(state, CheckpointStore(tmp_path, keep=3), best=3)
    cut(folders[2] / "model.safetensors")
    store = CheckpointStore(tmp_path, keep=3)
    found = store.find_valid()
    assert found == folders[1]
    assert [(r.levelname, "update-0000003 is damaged" in r.message) for r in caplog.records] == [("ERROR", True)]
    store.load(found, state)
    assert state.progress.update == 2
    assert state.progress.damaged_checkpoints == 1
    assert float(state.model.backbone.mask_embedding[0].detach()) == 2.0
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
    state: TrainingState, tmp_path: Path
) -> None:
    for folder in save_some(state, CheckpointStore(tmp_path, keep=3)):
        (folder / CHECKSUMS).unlink()
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"none in .* is: .*checksums.json does not read .*\(overwrite=true starts over\)"
        ):
            CheckpointStore(tmp_path, keep=3).find_valid()
    assert len(list((tmp_path / "checkpoints").glob("update-*"))) == 3


def test_a_later_version_is_refused(state: TrainingState, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    folder = save_some(state, store)[-1]
    edit_header(folder, lambda stored: stored.update(version=99))
    write_checksums(folder)
    with pytest.raises(CheckpointError, match="version 3 or earlier, but .*update-0000003 is of version 99"):
        store.find_valid()


@each_case("part, value", product(("weights", "optimizer/exp_avg/", "optimizer/exp_avg_sq/"), (NAN, INF, -INF)))
def test_a_value_that_is_not_finite_is_never_published(
    part: str, value: float, state: TrainingState, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    folders = save_some(state, store)
    snapshot = take(state, Progress(4))
    held = snapshot.weights if part == "weights" else snapshot.tensors
    name = next(name for name in held if name.startswith("" if part == "weights" else part))
    held[name] = held[name].clone()
    held[name].view(-1)[0] = value
    with pytest.raises(CheckpointError, match="must hold finite values only, but .* does not after update 4"):
        store.save(snapshot, is_best=True)
    assert store.find_valid() == folders[-1]
    assert not (tmp_path / "checkpoints" / "update-0000004").exists()


def test_without_room_nothing_is_written(
    state: TrainingState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    folders = save_some(state, store)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"but .*/checkpoints has 1 MiB free and \d+ MiB are needed"):
        store.save(take(state, Progress(4)), is_best=True)
    assert store.find_valid() == folders[-1]


def test_other_utterances_are_refused_and_the_first_precision_stays(
    state: TrainingState,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    began = Provenance("bf16", {"data.train": "a", "data.valid": "b"}, {"torch": "2.11"})
    folder = save_some(state, CheckpointStore(tmp_path, 2, began))[-1]
    now = replace(began, precision="float32", versions={"torch": "2.13"})
    store = CheckpointStore(tmp_path, 2, now)
    caplog.set_level(logging.WARNING, "speechssl")
    assert store.load(folder, state) == "bf16"
    assert ["stays with it" in r.message or "torch 2.11" in r.message for r in caplog.records] == [True, True]
    state.progress.update = 4
    stored = json.loads((store.save(state.take_snapshot(), is_best=False) / STATE).read_text())
    assert stored["provenance"] == asdict(replace(now, precision="bf16"))
    other = CheckpointStore(tmp_path, 2, replace(now, data={"data.train": "other", "data.valid": "b"}))
    with pytest.raises(DataError, match="`data.train` must hold the utterances that the run in"):
        other.load(folder, state)


def test_damage_is_one_sentence(state: TrainingState, tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path, keep=1).save(take(state, Progress(1)), is_best=True)
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


@each_case("damage", DAMAGES)
def test_a_damaged_or_hostile_state_is_one_sentence_and_runs_nothing(
    damage: str, state: TrainingState, tmp_path: Path
) -> None:
    """Whoever can write a checkpoint can write its checksums: past them the content is still only data."""
    store = CheckpointStore(tmp_path, keep=1)
    folder = store.save(take(state, Progress(1)), is_best=True)
    DAMAGES[damage](folder)
    with pytest.raises(CheckpointError, match="none in .* is: .* \\(overwrite=true starts over\\)"):
        store.find_valid()
    write_checksums(folder)
    with pytest.raises(CheckpointError, match="`out` must hold a whole checkpoint, but .* does not load") as caught:
        store.load(folder, state)
    assert "\n" not in str(caught.value)
    assert not (folder / "executed").exists()


def test_the_untrained_model_is_the_same_network_with_other_weights(state: TrainingState, tmp_path: Path) -> None:
    CheckpointStore(tmp_path, keep=1).save(take(state, Progress(1)), is_best=True)
    model = load_model(str(tmp_path))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    fresh, again = build_untrained(model, 1), build_untrained(model, 1)
    assert fresh.config == model.config
    assert torch.equal(fresh.backbone.mask_embedding, again.backbone.mask_embedding)
    assert not torch.equal(fresh.backbone.mask_embedding, model.backbone.mask_embedding)


def test_gradients_are_divided_once_by_the_count_and_clipped_on_request(state: TrainingState) -> None:
    parameters = list(state.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 6.0)
    norm = scale_gradients(state.model, torch.tensor(3), clip_norm=1.0)
    total = sum(parameter.numel() for parameter in parameters)
    assert float(norm) == pytest.approx(2.0 * total**0.5, rel=1e-4)
    clipped = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    assert float(clipped) == pytest.approx(1.0, rel=1e-4)
