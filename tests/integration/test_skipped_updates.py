"""Updates that cannot be right, in real runs: skipped to the bit, counted, named, and too many stop the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from speechssl.cli.main import main
from speechssl.errors import CollapseError, NumericalError
from speechssl.objectives.protocol import LossTerms
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training import trainer
from tests.integration.test_training import (
    manifests,  # noqa: F401  (a fixture)
    pretrain,
    read_metrics,
)

Poison = dict[int, tuple[str, float]]
"""Update → what is multiplied there, the `loss` or one entry of the `gradient`, and by what."""


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Poison], None]:
    def arrange(where: Poison) -> None:
        compute, scale = ContrastiveObjective.compute, trainer.scale_gradients
        now = {"update": 0}

        def poisoned_compute(self: ContrastiveObjective, batch: Any, update: int) -> LossTerms:
            terms = compute(self, batch, update)
            now["update"] = update
            place, value = where.get(update, ("", 1.0))
            if place == "loss" and self.model.training and batch.plan.is_last:
                return LossTerms(terms.sum * value, terms.count, terms.stats)
            return terms

        def poisoned_scale(module: torch.nn.Module, count: torch.Tensor, clip_norm: float) -> torch.Tensor:
            place, value = where.get(now["update"], ("", 1.0))
            if place == "gradient":
                next(p.grad for p in module.parameters() if p.grad is not None).view(-1)[3] = value
            return scale(module, count, clip_norm)

        monkeypatch.setattr(ContrastiveObjective, "compute", poisoned_compute)
        monkeypatch.setattr(trainer, "scale_gradients", poisoned_scale)

    return arrange


def read_state(run: Path, update: int) -> dict[str, torch.Tensor]:
    """Read weights, moments and average of the checkpoint of an update; not what the guard itself remembers."""
    folder = run / "checkpoints" / f"update-{update:07d}"
    state = {}
    for name in ("model", "training", "ema"):
        state |= {f"{name}/{key}": value for key, value in load_file(folder / f"{name}.safetensors").items()}
    return {key: value for key, value in state.items() if "training/guard/" not in key}


def test_bad_updates_leave_everything_as_it_was(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    poison: Callable[[Poison], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = {
        2: ("loss", math.nan), 4: ("loss", math.inf), 6: ("loss", -math.inf),
        8: ("gradient", math.nan), 10: ("gradient", math.inf), 12: ("gradient", -math.inf),
    }  # fmt: skip
    poison(bad)
    run = tmp_path / "run"
    keys = {"training.max_updates": 13, "training.checkpoint_every": 1, "training.keep_checkpoints": 20}
    pretrain(manifests, run, **keys, **{"training.clip_norm": 1.0, "training.forward_s": 8.0})
    states = {update: read_state(run, update) for update in range(1, 14)}
    for update in range(2, 14):
        same = all(torch.equal(states[update][name], states[update - 1][name]) for name in states[1])
        assert same == (update in bad), update
    rows = [row for row in read_metrics(run) if row["split"] == "train"]
    assert [row["skipped_updates"] for row in rows] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert len({row["lr"] for row in rows}) == 13
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [row["update"] for row in skipped] == list(bad)
    assert all(row["reason"].startswith("loss is" if row["update"] <= 6 else "grad_norm is") for row in skipped)
    # Two forwards an update: where a loss is broken, only the utterances of its forward are suspected.
    assert max(len(row["ids"]) for row in skipped[:3]) < min(len(row["ids"]) for row in skipped[3:])
    warnings = [record.message for record in caplog.records if "skipped" in record.message]
    assert warnings[0].startswith("update 2 skipped: loss is nan; utterances ")
    assert skipped[0]["ids"][0] in warnings[0]


def test_five_in_a_row_stop_the_run_with_a_whole_checkpoint_before_them(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    poison: Callable[[Poison], None],
) -> None:
    poison(dict.fromkeys(range(4, 20), ("loss", math.nan)))
    with pytest.raises(NumericalError, match=r"of the updates up to 8 the last 5 were skipped, .* because loss is nan"):
        pretrain(manifests, tmp_path / "run", **{"training.max_updates": 20})
    last = tmp_path / "run" / "checkpoints" / "last"
    assert all(bool(value.isfinite().all()) for value in load_file(last / "model.safetensors").values())
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(("bad", "workers"), [(math.inf, 1), pytest.param(math.nan, 0, marks=pytest.mark.slow)])
def test_audio_that_is_not_finite_is_left_out_and_named(
    tmp_path: Path, bad: float, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        sound = (0.1 * rng.standard_normal(48_000)).astype(np.float32)
        if number == 2:
            sound[20_000] = bad
        soundfile.write(tmp_path / f"{number}.wav", sound, 16_000, subtype="FLOAT")
        rows.append(f"u{number}\t{number}.wav\t16000\t48000")
    manifest = tmp_path / "m.tsv"
    manifest.write_text("id\tpath\tsample_rate\tnum_samples\n" + "\n".join(rows) + "\n")
    words = [f"data.train={manifest}", f"out={tmp_path / 'run'}", "device=cpu", f"data.num_workers={workers}"]
    assert main(["pretrain", "tiny", *words, "training.max_updates=4"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_left_out"] == 1
    _, row = (tmp_path / "run" / "left_out.tsv").read_text().splitlines()
    assert row.startswith("u2\t")
    assert f"{tmp_path / '2.wav'} must hold finite samples" in row


SMALL: dict[str, Any] = {
    "training.update_s": 8.0, "training.validate_every": 10_000, "training.checkpoint_every": 10_000, "data.valid": [],
}  # fmt: skip


@pytest.fixture
def one_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the first code of each codebook a lead that no noise makes up for."""
    build = ContrastiveObjective.__init__

    def build_collapsed(self: ContrastiveObjective, *given: Any) -> None:
        build(self, *given)
        with torch.no_grad():
            self.model.quantizer.logits.bias.view(2, -1)[:, 0] = 1e3

    monkeypatch.setattr(ContrastiveObjective, "__init__", build_collapsed)


@pytest.mark.slow
@pytest.mark.usefixtures("one_code")
def test_a_collapse_to_one_code_is_warned_of_and_stopped(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Target N4, first half."""
    with pytest.raises(CollapseError, match="all frames got the same codes"):
        pretrain(manifests, tmp_path / "run", **SMALL, **{"training.max_updates": 500})
    check_warned_once(tmp_path / "run", "few codes are used", caplog)


@pytest.mark.slow
def test_a_run_that_is_stuck_at_chance_is_warned_of(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Target N4, second half: such a run may still leave chance, so that it is not stopped."""
    pretrain(manifests, tmp_path / "run", **SMALL, **{"training.max_updates": 500, "objective.logit_temperature": 1e5})
    check_warned_once(tmp_path / "run", "the loss has been that of guessing", caplog)


def check_warned_once(run: Path, sign: str, caplog: pytest.LogCaptureFixture) -> None:
    warned = [row["update"] for row in read_metrics(run) if row.get("collapse_warning")]
    assert warned
    assert warned[0] < 500
    messages = [record.message for record in caplog.records if "pretraining may be collapsing" in record.message]
    assert len(messages) == 1
    assert sign in messages[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_healthy_runs_are_neither_warned_nor_skipped(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    seed: int,
) -> None:
    pretrain(manifests, tmp_path / "run", **SMALL, **{"training.max_updates": 300, "seed": seed})
    rows = read_metrics(tmp_path / "run")
    assert sum(row["collapse_warning"] for row in rows) == 0
    assert rows[-1]["skipped_updates"] == 0
    assert not (tmp_path / "run" / "skipped.jsonl").exists()


@pytest.mark.slow
def test_a_gradient_a_hundred_times_the_usual_is_skipped_and_no_other(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    poison: Callable[[Poison], None],
) -> None:
    """Target N5, in a real run."""
    poison({100: ("gradient", 1e6), 110: ("loss", 1e3)})
    pretrain(manifests, tmp_path / "run", **SMALL, **{"training.max_updates": 125})
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [row["update"] for row in skipped] == [100, 110]
    assert "a spike above" in skipped[0]["reason"]
