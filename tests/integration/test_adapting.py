"""Runs that learn a few weights beside frozen ones: they resume to the bit, and load as one network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import speechssl
from speechssl.errors import CheckpointError, ConfigError, StoppedOnRequest
from speechssl.interop.adapted import locate
from tests.cases import each_case
from tests.integration.test_training import (
    finetune,
    manifests,  # noqa: F401  (a fixture)
    pretrain,
    read_metrics,
    read_weights,
    stop_after,  # noqa: F401  (a fixture)
)

LORA = {"adapt": "lora", "lora.rank": 2, "lora.projections": ["query", "value", "out"]}


@pytest.fixture(scope="module")
def pre(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "pre"
    keys = {"training.max_updates": 2, "training.ema_decay": 0.0, "model.norm_first": True}
    pretrain(manifests, folder, **keys)
    return folder


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize(
    "keys", [LORA, pytest.param({"adapt": "adapters", "model.adapter_dim": 4}, marks=pytest.mark.slow)]
)
def test_a_resumed_run_is_the_same(
    keys: dict[str, Any],
    pre: Path,
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
) -> None:
    """Frozen weights are in no file, and every verb's model has them."""
    keys = {**keys, "init": str(pre), "training.max_updates": 4, "training.freeze_share": 0.25}
    finetune(manifests, tmp_path / "whole", **keys)
    stop_after(2)
    with pytest.raises(StoppedOnRequest):
        finetune(manifests, tmp_path / "parts", **keys)
    finetune(manifests, tmp_path / "parts", **keys)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not [name for name in whole if "attention.query.weight" in name or "encoder" in name]
    source, made = speechssl.load(pre).state_dict(), speechssl.load(tmp_path / "whole").state_dict()
    changed = {name for name in source if name in made and not torch.equal(source[name], made[name])}
    expected = ("query.weight", "value.weight", "out.weight") if keys["adapt"] == "lora" else ()
    assert {name.partition("attention.")[2] for name in changed} == set(expected)
    assert [name for name in made if ".adapter." in name] or keys["adapt"] == "lora"


def test_verbs_take_it_and_convert_writes_it_whole(pre: Path, manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    finetune(manifests, tmp_path / "run", init=str(pre), **LORA)
    test = {"data.test": [str(manifests / "dev.tsv")], "device": "cpu"}
    speechssl.convert(checkpoint=str(tmp_path / "run"), to="speechssl", out=str(tmp_path / "whole"))
    results = [
        speechssl.evaluate(checkpoint=str(tmp_path / name), out=str(tmp_path / f"e-{name}"), **test)
        for name in ("run", "whole")
    ]
    assert results[0]["cer"] == results[1]["cer"]
    assert "adaptation" not in json.loads((tmp_path / "whole" / "config.json").read_text())
    averaged, own = (speechssl.load(tmp_path / "run", weights=weights) for weights in ("ema", "model"))
    assert not torch.equal(averaged.head.linear.weight, own.head.linear.weight)
    # It can be adapted again, and what `convert` wrote needs nothing beside it.
    finetune(manifests, tmp_path / "again", init=str(tmp_path / "run"), **LORA | {"training.max_updates": 1})
    speechssl.load(tmp_path / "again")
    with pytest.raises(CheckpointError, match="`language` must be left out without language adapters"):
        speechssl.load(tmp_path / "run", language="swh")


def test_what_it_was_adapted_from_must_be_there(pre: Path, manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    base = tmp_path / "base"
    shutil.copytree(pre, base, symlinks=True)
    keys = {"init": str(base), "training.max_updates": 1, **LORA}
    finetune(manifests, tmp_path / "run", **keys)
    card = json.loads((tmp_path / "run" / "checkpoints" / "last" / "config.json").read_text())
    assert card["adaptation"]["init"] == locate(str(base)) == str((base / "checkpoints" / "best").resolve())
    more = {**keys, "training.max_updates": 2}
    for other in (pretrain_other(manifests, tmp_path / "other"), None):
        shutil.rmtree(base)
        if other is not None:
            shutil.copytree(other, base, symlinks=True)
        said = "when that had others" if other else "do not load: .*does not exist"
        with pytest.raises(CheckpointError, match=f"`checkpoint` must be beside the weights .*{said}"):
            speechssl.load(tmp_path / "run")
        said = "`out` must be beside the weights" if other else "`init` must be .*does not exist"
        with pytest.raises(CheckpointError, match=said):
            finetune(manifests, tmp_path / "run", **more)


def pretrain_other(manifests: Path, out: Path) -> Path:  # noqa: F811
    """Pretrain as `pre`, on another seed."""
    keys = {"training.max_updates": 2, "training.ema_decay": 0.0, "model.norm_first": True}
    pretrain(manifests, out, seed=2, **keys)
    return out


def test_a_stranger_s_card_asks_for_no_memory_and_ends(pre: Path, manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    finetune(manifests, tmp_path / "run", init=str(pre), **LORA | {"training.max_updates": 1})
    last = tmp_path / "run" / "checkpoints" / "last"
    card = json.loads((last / "config.json").read_text())
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"model": card["model"] | {"ffn_dim": 60_000, "num_layers": 200}},
            "must be a whole checkpoint|smaller network",
        ),
        ({"adaptation": card["adaptation"] | {"lora": {"rank": 60_000}}}, "must be a whole checkpoint"),
        ({"adaptation": card["adaptation"] | {"init": str(tmp_path / "odd")}}, "is from itself"),
        ({"adaptation": card["adaptation"] | {"init": str(tmp_path / "nowhere")}}, "do not load: .* does not exist"),
        ({"adaptation": card["adaptation"] | {"digest": "0"}}, "when that had others"),
        ({"adaptation": card["adaptation"] | {"adapt": "prefix"}}, "`adapt` must be one of lora, adapters"),
        ({"adaptation": card["adaptation"] | {"weights": "x"}}, "`weights` must be one of"),
        ({"adaptation": 3}, "must have a mapping"),
        ({"adaptation": None}, "whole checkpoint"),
    ]
    for change, said in cases:
        shutil.rmtree(tmp_path / "odd", ignore_errors=True)
        (tmp_path / "odd").mkdir()
        shutil.copy(last / "model.safetensors", tmp_path / "odd")
        (tmp_path / "odd" / "config.json").write_text(json.dumps(card | change))
        with pytest.raises(CheckpointError, match=said):
            speechssl.load(tmp_path / "odd")


@each_case(
    "keys, said",
    [
        ({"adapt": "lora", "model": "tiny"}, "`adapt` must be all without `init`"),
        ({"adapt": "prefix", "model": "tiny"}, "`adapt` must be one of all, lora, adapters"),
        ({"lora.rank": 4, "model": "tiny"}, "`adapt` must be lora where keys of lora are given"),
        ({"language": "swh", "model": "tiny"}, "`language` must be left out without `init`"),
        ({"text.vocabulary": "init", "model": "tiny"}, "`text.vocabulary` must be left out without `init`"),
        ({"adapt": "lora", "init": "pre", "reset_layers": 1}, "`reset_layers` must be 0 unless adapt is all"),
        ({"text.vocabulary": "init", "init": "pre"}, "`text.vocabulary` must be another unless `init` is"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(
    keys: dict[str, Any],
    said: str,
    pre: Path,
    manifests: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    keys = keys | ({"init": str(pre)} if "init" in keys else {})
    with pytest.raises(ConfigError, match=said):
        finetune(manifests, tmp_path / "run", **keys)
