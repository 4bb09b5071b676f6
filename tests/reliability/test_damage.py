"""Damage is seen before anything changes, and a disk that fails leaves the checkpoint before (targets R9, R10, R11)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speechssl.checkpoints.checksums import CHECKSUMS
from speechssl.checkpoints.layout import list_published
from speechssl.checkpoints.snapshot import Progress, Snapshot
from speechssl.checkpoints.store import FILES, MARGIN_BYTES, CheckpointStore, find_problem
from speechssl.config.model import ModelConfig, QuantizerConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.training import TrainingConfig
from speechssl.errors import CheckpointError
from speechssl.interop.load import load_model
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.optim import build_optimizer
from speechssl.training.resume import TrainingState
from tests.cases import each_case
from tests.reliability.harness import ForkServer, Run, list_leftovers, list_unreadable, make_random


@pytest.fixture(scope="module")
def state() -> TrainingState:
    config = ModelConfig(
        conv_channels=[4] * 7,
        num_layers=1,
        model_dim=8,
        ffn_dim=8,
        num_heads=1,
        position_groups=2,
        target_dim=4,
        quantizer=QuantizerConfig(num_codes=4, codevector_dim=4),
    )
    objective = ContrastiveObjective(config, ContrastiveConfig(), 1, 10)
    optimizer = build_optimizer(objective.module, TrainingConfig())
    for parameter in objective.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return TrainingState(objective, optimizer)


def take(state: TrainingState, update: int) -> Snapshot:
    return replace(state.take_snapshot(), progress=Progress(update, best_value=1.0, best_update=1))


def list_damages(folder: Path) -> Iterator[tuple[str, Path, bytes]]:
    """Give 1,000 flipped bits, 20 truncations and a hole: a name, the file and its damaged content."""
    rng, paths = make_random("R10"), [folder / name for name in (*FILES, CHECKSUMS)]
    whole = {path: path.read_bytes() for path in paths}
    for number in range(1000):
        path = paths[number % len(paths)]
        content = bytearray(whole[path])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield f"bit {number}", path, bytes(content)
    for number in range(20):
        path = paths[number % len(paths)]
        yield f"cut {number}", path, whole[path][: rng.randrange(len(whole[path]))]
    weights = paths[FILES.index("model.safetensors")]
    yield "hole", weights, whole[weights][:-8192] + bytes(4096) + whole[weights][-4096:]


def overwrite(path: Path, content: bytes) -> None:
    """Write in place: emptying a file first makes some filesystems flush it, 2,000 times here."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def test_every_flipped_bit_cut_and_hole_is_found(state: TrainingState, tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path, 2).save(take(state, 1), is_best=True)
    missed, count = [], 0
    for name, path, content in list_damages(folder):
        before = path.read_bytes()
        overwrite(path, content)
        count += 1
        missed += [] if find_problem(folder) else [name]
        overwrite(path, before)
    assert (missed, count) == ([], 1021)
    assert not find_problem(folder)


@each_case("name", [*FILES, CHECKSUMS])
def test_a_run_falls_back_to_the_checkpoint_before(name: str, state: TrainingState, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 3)
    folders = [store.save(take(state, update), is_best=update == 1) for update in (1, 2)]
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    content = bytearray((folders[1] / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folders[1] / name).write_bytes(content)
    assert store.find_valid() == folders[0]
    assert all(torch.equal(before[key], value) for key, value in state.model.state_dict().items())
    assert store.num_damaged == 1


@each_case("name", ["model.safetensors", "config.json"])
def test_inference_refuses_a_damaged_checkpoint(name: str, state: TrainingState, tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path, 2).save(take(state, 1), is_best=True)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"`init` must be a whole checkpoint, but .*{name} is not what was writ"):
        load_model(str(tmp_path), key="init")


def test_rotation_keeps_two_whole_ones_and_the_best_through_100_saves(state: TrainingState, tmp_path: Path) -> None:
    store, rng = CheckpointStore(tmp_path, 2), make_random("R11")
    injected = sorted(rng.sample(range(10, 99), 5))
    best, good = 1, [0]
    for update in range(1, 101):
        is_best = update in (1, 30, 31)
        best = update if is_best else best
        folder = store.save(replace(take(state, update), progress=Progress(update)), is_best)
        whole = [path.name for path in list_published(store.folder) if not find_problem(path)]
        assert {f"update-{number:07d}" for number in (good[-1], update) if number} <= set(whole)
        assert (store.folder / "best").resolve().name == f"update-{best:07d}"
        assert not find_problem((store.folder / "best").resolve())
        if update in injected:
            damage(folder, injected.index(update))
        else:
            good.append(update)
    assert len(list_published(store.folder)) == 3


def damage(folder: Path, kind: int) -> None:
    """Damage a checkpoint in one of five ways that a look at the sizes shows."""
    match kind:
        case 0:
            (folder / CHECKSUMS).unlink()
        case 1:
            (folder / CHECKSUMS).write_bytes(b"")
        case 2:
            (folder / "training.safetensors").unlink()
        case 3:
            (folder / "model.safetensors").write_bytes(b"short")
        case _:
            shutil.rmtree(folder)
            folder.mkdir()


def test_a_limit_on_file_sizes_stops_the_run_with_one_sentence(
    server: ForkServer, manifests: Path, tmp_path: Path
) -> None:
    """As a quota would: the second save fails, the first stays, and with room again the run goes on."""
    keys = {"data.num_workers": 0, "training.max_updates": 3}
    run = Run(server, manifests, tmp_path / "limited", keys)
    assert run.finish() == 0
    run.keys["training.max_updates"] = 9
    assert run.finish(file_bytes=100_000) == 2
    last = run.log.read_text().splitlines()[-1]
    assert last.startswith("speechssl: `out` must be a place that can be written, but ")
    assert last.endswith("the checkpoints before it are whole")
    assert not list_unreadable(run) and not list_leftovers(run)
    assert run.finish() == 0
    assert run.find_resumed() == 3
    assert json.loads((run.out / "result.json").read_text())["updates"] == 9


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a filesystem of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a filesystem cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(
    state: TrainingState, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(small_disk, 2)
    monkeypatch.setattr("speechssl.checkpoints.store.MARGIN_BYTES", 0)
    folder = store.save(take(state, 1), is_best=True)
    filler = small_disk / "filler"
    # Room is there when it is looked for, and taken by others before the last file.
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - take(state, 2).num_bytes - 4096))
    with pytest.raises(CheckpointError, match="could not be .*No space left.*the checkpoints before it are whole"):
        store.save(take(state, 2), is_best=True)
    assert [path.name for path in store.folder.iterdir() if path.name.startswith(".")] == []
    assert store.find_valid() == folder
    monkeypatch.setattr("speechssl.checkpoints.store.MARGIN_BYTES", MARGIN_BYTES)
    with pytest.raises(CheckpointError, match="must have room for a checkpoint"):
        store.save(take(state, 2), is_best=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.setattr("speechssl.checkpoints.store.MARGIN_BYTES", -(2**30))
    with pytest.raises(CheckpointError, match="could not be .*Read-only"):
        store.save(take(state, 2), is_best=True)
    assert not find_problem(folder)
