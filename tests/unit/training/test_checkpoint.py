"""Checkpoints: published whole, the best one never rotated away, everything that training needs inside."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechssl.config import ContrastiveConfig, ModelConfig, TrainingConfig
from speechssl.errors import CheckpointError
from speechssl.interop.checkpoint import build_untrained, find_checkpoint, read_card
from speechssl.interop.load import load_model
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.checkpoint import STATE, TENSORS, CheckpointStore
from speechssl.training.optim import build_optimizer, export_state, scale_gradients
from speechssl.training.state import Progress, Snapshot, TrainingState


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
    progress = Progress(update=5, audio_s=12.5, best_value=3.0, best_update=4)
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
    for update in range(1, 7):
        store.save(take(objective, optimizer, Progress(update)), is_best=update == 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "last", "update-0000002", "update-0000005", "update-0000006"]
    assert find_checkpoint(str(tmp_path)).resolve().name == "update-0000002"
    assert read_card(find_checkpoint(str(tmp_path))).update == 2


def test_without_validation_best_is_last(
    objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for update in (1, 2, 3):
        store.save(take(objective, optimizer, Progress(update)), is_best=False)
    store.finish()
    assert find_checkpoint(str(tmp_path)).resolve().name == "update-0000003"


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
    "a counter too many": lambda f: (f / STATE).write_text('{"update": 1, "_target_": "os.abort"}'),
    "a list as the counters": lambda f: (f / STATE).write_text("[1, 2, 3, 4, 5]"),
    "a state of no parameter": rename_tensor,
    "a state of another shape": shrink_tensor,
    "no state of the watch": forget_the_watch,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_state_is_one_sentence_and_runs_nothing(
    damage: str, objective: ContrastiveObjective, optimizer: torch.optim.AdamW, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    folder = store.save(take(objective, optimizer, Progress(1)), is_best=True)
    DAMAGES[damage](folder)
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
