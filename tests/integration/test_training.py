"""The trainer end to end: it learns, it resumes to the bit, and the same command again does the right thing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import speechssl
from speechssl.data.files import scan_files
from speechssl.data.manifest import Manifest, build_manifest, save_manifest
from speechssl.errors import ConfigError, StoppedOnRequest
from speechssl.training.metrics import MEASURED
from speechssl.training.stop import StopFlag


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Sums over two threads, as a user has them: some operations give other bits there from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def manifests(librispeech_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifests")
    for split in ("train", "dev"):
        save_manifest(read_split(librispeech_tree / split), folder / f"{split}.tsv")
    return folder


def read_split(folder: Path) -> Manifest:
    texts = {}
    for path in sorted(folder.rglob("*.trans.txt")):
        texts |= dict(line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    scanned = scan_files(sorted(folder.rglob("*.flac")), "train")
    rows = [scanned[k] for k in range(len(scanned))]
    return build_manifest(
        [replace(r, id=r.path.stem, speaker=r.path.stem.split("-")[0], text=texts[r.path.stem]) for r in rows], folder
    )


def pretrain(manifests: Path, out: Path, **keys: Any) -> dict[str, Any]:
    given = {
        "model": "tiny",
        "out": str(out),
        "data.train": [str(manifests / "train.tsv")],
        "data.valid": [str(manifests / "dev.tsv")],
        "data.num_workers": 0,
        "training.max_updates": 8,
        "training.checkpoint_every": 3,
        "training.validate_every": 4,
        "training.ema_decay": 0.9,
        "model.layer_drop_prob": 0.3,
        "device": "cpu",
    }
    return speechssl.pretrain(**(given | keys))


def finetune(manifests: Path, out: Path, **keys: Any) -> dict[str, Any]:
    given = {
        "out": str(out),
        "data.train": [str(manifests / "train.tsv")],
        "data.valid": [str(manifests / "dev.tsv")],
        "data.num_workers": 0,
        "training.max_updates": 6,
        "training.validate_every": 3,
        "training.ema_decay": 0.9,
        "device": "cpu",
    }
    return speechssl.finetune(**(given | keys))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    last = folder / "checkpoints" / "last"
    return {
        **safetensors.torch.load_file(last / "model.safetensors"),
        **safetensors.torch.load_file(last / "training.safetensors"),
        **{f"ema/{k}": v for k, v in safetensors.torch.load_file(last / "ema.safetensors").items()},
    }


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the run stop on request after so many updates, as a signal would."""

    def arrange(updates: int) -> None:
        calls = iter(range(1, 10_000))
        answer = lambda self: ("stopped by the test", 75) if next(calls) == updates else None  # noqa: E731
        monkeypatch.setattr(StopFlag, "check", answer)

    return arrange


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_resumed_run_is_the_uninterrupted_one(
    manifests: Path, tmp_path: Path, stop_after: Callable[[int], None], workers: int
) -> None:
    """Weights, average, optimizer, guard, collapse watch and log lines, to the bit, with dropout and LayerDrop on."""
    pretrain(manifests, tmp_path / "whole")
    stop_after(5)
    with pytest.raises(StoppedOnRequest) as stopped:
        pretrain(manifests, tmp_path / "parts")
    assert stopped.value.exit_code == 75
    pretrain(manifests, tmp_path / "parts", **{"data.num_workers": workers})
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_deterministic_mode_changes_nothing_on_the_cpu(manifests: Path, tmp_path: Path) -> None:
    """Every operation of a training step has a deterministic form; on a GPU tests/integration/test_gpu.py uses it."""
    for name, is_on in (("plain", False), ("deterministic", True)):
        pretrain(manifests, tmp_path / name, **{"training.max_updates": 2, "training.deterministic": is_on})
    assert read_metrics(tmp_path / "plain") == read_metrics(tmp_path / "deterministic")


@pytest.mark.usefixtures("two_threads")
def test_finetuning_resumes_to_the_bit(manifests: Path, tmp_path: Path, stop_after: Callable[[int], None]) -> None:
    pretrain(manifests, tmp_path / "pre", **{"training.max_updates": 2})
    finetune(manifests, tmp_path / "whole", init=str(tmp_path / "pre"))
    stop_after(4)
    with pytest.raises(StoppedOnRequest):
        finetune(manifests, tmp_path / "parts", init=str(tmp_path / "pre"))
    finetune(manifests, tmp_path / "parts", init=str(tmp_path / "pre"))
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_finished_run_answers_the_same_and_more_updates_go_on(manifests: Path, tmp_path: Path) -> None:
    first = pretrain(manifests, tmp_path / "run", **{"training.max_updates": 3})
    assert pretrain(manifests, tmp_path / "run", **{"training.max_updates": 3}) == first
    longer = pretrain(manifests, tmp_path / "run", **{"training.max_updates": 5})
    assert longer["updates"] == 5
    updates = [line["update"] for line in read_metrics(tmp_path / "run") if line["split"] == "train"]
    assert updates == [1, 2, 3, 4, 5]
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "result.json", "report.html"):
        assert (tmp_path / "run" / name).exists()
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_another_value_is_refused_by_name(manifests: Path, tmp_path: Path) -> None:
    pretrain(manifests, tmp_path / "run", **{"training.max_updates": 1})
    for key, value in (("training.lr", 0.1), ("seed", 7), ("model.dropout", 0.3)):
        with pytest.raises(ConfigError, match=f"`{key}` must stay"):
            pretrain(manifests, tmp_path / "run", **{"training.max_updates": 1, key: value})


@pytest.mark.slow
def test_pretraining_overfits_one_batch(manifests: Path, tmp_path: Path) -> None:
    """On a handful of utterances the target is found among 100 negatives far more often than by chance."""
    result = pretrain(
        manifests,
        tmp_path / "run",
        **{
            "data.limit_s": 8.0,
            "data.valid": [],
            "model.layer_drop_prob": 0.0,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
            "model.input_dropout": 0.0,
            "model.feature_dropout": 0.0,
            "training.max_updates": 200,
            "training.checkpoint_every": 1000,
            "training.lr": 5e-3,
            "training.update_s": 8.0,
        },
    )
    first = read_metrics(tmp_path / "run")[0]
    assert first["loss_contrastive"] == pytest.approx(np.log2(101), rel=0.07)
    assert result["train"]["loss_contrastive"] < 0.85 * first["loss_contrastive"]
    assert result["train"]["accuracy"] > 0.1


@pytest.mark.slow
def test_ctc_overfits_one_batch(manifests: Path, tmp_path: Path) -> None:
    """Three utterances are learned by heart: hardly an error on them."""
    result = finetune(
        manifests,
        tmp_path / "run",
        **{
            "model": "tiny",
            "data.valid": [str(manifests / "train.tsv")],
            "data.where": "speaker=1",
            "model.mask.prob": 0.0,
            "model.mask.channel_prob": 0.0,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
            "model.input_dropout": 0.0,
            "model.model_dim": 64,
            "training.max_updates": 200,
            "training.validate_every": 200,
            "training.lr": 5e-3,
            "training.update_s": 12.0,
            "training.sub_batch_s": 12.0,
            "training.forward_s": 16.0,
        },
    )
    assert result["train"]["loss_per_label"] < 0.1
    assert result["valid"]["cer"] < 5.0


def test_continued_pretraining_starts_from_the_weights(manifests: Path, tmp_path: Path) -> None:
    pretrain(manifests, tmp_path / "first", **{"training.max_updates": 3})
    again = pretrain(manifests, tmp_path / "second", init=str(tmp_path / "first"), **{"training.max_updates": 1})
    before = read_metrics(tmp_path / "first")[-1]
    after = read_metrics(tmp_path / "second")[0]
    assert before["split"] == after["split"] == "valid"
    assert after["loss_contrastive"] == pytest.approx(before["loss_contrastive"], rel=1e-6)
    assert again["updates"] == 1
