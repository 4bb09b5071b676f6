"""The moving average of a run: written beside the weights, and used where it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import speechssl
from speechssl.checkpoints.model_folder import load_weights
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.load import load_model
from speechssl.training.average import WeightAverage
from tests.cases import each_case
from tests.integration.test_training import (
    finetune,
    manifests,  # noqa: F401  (a fixture)
    pretrain,
    read_metrics,
)


@pytest.fixture(scope="module")
def runs(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs")
    pretrain(manifests, folder / "pre", **{"training.max_updates": 4})
    finetune(manifests, folder / "ctc", init=str(folder / "pre"), weights="ema", **{"training.max_updates": 3})
    return folder


def equal(model: torch.nn.Module, stored: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[name], value) for name, value in stored.items())


@each_case("name", ["pre", "ctc"])
def test_either_weights_are_loaded_by_choice(runs: Path, name: str) -> None:
    best = runs / name / "checkpoints" / "best"
    stored = {key: load_file(best / f"{key}.safetensors") for key in ("model", "ema")}
    assert stored["model"].keys() == stored["ema"].keys()
    own, averaged = speechssl.load(runs / name), speechssl.load(runs / name, weights="ema")
    assert equal(own, stored["model"])
    assert equal(averaged, stored["ema"])
    assert not equal(own, stored["ema"])


def test_init_takes_the_average_too(runs: Path, manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    for weights in ("model", "ema"):
        keys = {"training.max_updates": 1, "training.lr": 1e-12}
        pretrain(manifests, tmp_path / weights, init=str(runs / "pre"), weights=weights, **keys)
        source = speechssl.load(runs / "pre", weights=weights).state_dict()
        made = speechssl.load(tmp_path / weights).state_dict()
        assert all(torch.allclose(made[name], source[name], atol=1e-8, rtol=0) for name in source)


def test_verbs_take_the_average(runs: Path, manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    keys = {"checkpoint": str(runs / "ctc"), "data.test": [str(manifests / "dev.tsv")], "device": "cpu"}
    results = {w: speechssl.evaluate(**keys, weights=w, out=str(tmp_path / w)) for w in ("model", "ema")}
    assert (tmp_path / "ema" / "utterances.tsv").exists()
    assert results["ema"]["num_utterances"] == results["model"]["num_utterances"]
    converted = {}
    for weights in ("model", "ema"):
        out = tmp_path / f"hf-{weights}"
        speechssl.convert(checkpoint=str(runs / "ctc"), to="speechssl", out=str(out), weights=weights)
        converted[weights] = load_file(out / "model.safetensors")
    assert equal(speechssl.load(runs / "ctc", weights="ema"), converted["ema"])
    assert not equal(speechssl.load(runs / "ctc"), converted["ema"])


def test_validation_by_the_average_leaves_the_weights_alone(
    runs: Path,
    manifests: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    keys = {"training.max_updates": 4}
    pretrain(manifests, tmp_path / "ema", **keys, **{"training.validate_ema": True})
    own, averaged = read_metrics(runs / "pre"), read_metrics(tmp_path / "ema")
    assert [row for row in own if row["split"] == "train"] == [row for row in averaged if row["split"] == "train"]
    last = [[row for row in rows if row["split"] == "valid"][-1]["loss"] for rows in (own, averaged)]
    assert last[0] != last[1]
    # What was validated is what is loaded, unless a user says otherwise.
    for run, weights in (("ema", "ema"), ("pre", "model")):
        folder = tmp_path / run if run == "ema" else runs / run
        assert equal(speechssl.load(folder), speechssl.load(folder, weights=weights).state_dict())
    assert not equal(speechssl.load(tmp_path / "ema"), speechssl.load(tmp_path / "ema", weights="model").state_dict())


def test_where_there_is_no_average_it_is_said(runs: Path, manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    pretrain(manifests, tmp_path / "plain", **{"training.max_updates": 1, "training.ema_decay": 0.0})
    assert not (tmp_path / "plain" / "checkpoints" / "last" / "ema.safetensors").exists()
    with pytest.raises(CheckpointError, match=r"`weights` must be model .*training\.ema_decay.* has none"):
        speechssl.load(tmp_path / "plain", weights="ema")
    speechssl.convert(checkpoint=str(runs / "ctc"), to="huggingface", out=str(tmp_path / "hf"))
    with pytest.raises(CheckpointError, match="`weights` must be model .* of another toolkit"):
        load_model(str(tmp_path / "hf"), weights="ema")
    with pytest.raises(ConfigError, match="`weights` must be one of model, ema"):
        speechssl.load(runs / "pre", weights="averaged")
    with pytest.raises(ConfigError, match=r"`training.validate_ema` must be false without training\.ema_decay"):
        pretrain(manifests, tmp_path / "x", **{"training.ema_decay": 0.0, "training.validate_ema": True})


def test_a_damaged_average_is_one_sentence(runs: Path, tmp_path: Path) -> None:
    source = runs / "pre" / "checkpoints" / "best"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "ema.safetensors").write_bytes((source / "ema.safetensors").read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is not \("):
        speechssl.load(tmp_path, weights="ema")
    load_weights(speechssl.load(source), tmp_path)


def test_an_average_of_another_module_is_refused(runs: Path) -> None:
    average = WeightAverage(speechssl.load(runs / "pre", trainable=True), 0.9)
    with pytest.raises(KeyError):
        average.load_state(average.state(), load_file(runs / "ctc" / "checkpoints" / "best" / "ema.safetensors"))
