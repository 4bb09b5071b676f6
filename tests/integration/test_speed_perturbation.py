"""Runs with speed perturbation resume to the bit and count the audio that was fed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.errors import ConfigError, StoppedOnRequest
from tests.integration.test_training import (
    finetune,
    manifests,  # noqa: F401  (a fixture)
    pretrain,
    read_metrics,
    read_weights,
    stop_after,  # noqa: F401  (a fixture)
)

SPEED = {"data.speed_perturbation": [0.9, 1.0, 1.1], "training.max_updates": 5}


@pytest.mark.slow
@pytest.mark.parametrize("verb", [pretrain, finetune])
def test_a_resumed_run_is_the_uninterrupted_one(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    stop_after: Callable[[int], None],  # noqa: F811
    verb: Callable[..., dict[str, Any]],
) -> None:
    keys = SPEED | {"model": "tiny", "model.front_end": "log_mel"}
    verb(manifests, tmp_path / "whole", **keys)
    stop_after(4)
    with pytest.raises(StoppedOnRequest):
        verb(manifests, tmp_path / "parts", **keys)
    verb(manifests, tmp_path / "parts", **keys | {"data.num_workers": 2})
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_hours_are_those_of_the_audio_that_was_fed(manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    """All at half speed is twice as long, and validation is played as it is."""
    keys = {"model": "tiny", "training.max_updates": 1, "training.validate_every": 1}
    keys |= {"training.update_s": 80.0, "training.sub_batch_s": 80.0, "training.forward_s": 80.0}
    lines = {}
    for name, speeds in (("plain", []), ("slow", [0.5])):
        finetune(manifests, tmp_path / name, **keys | {"data.speed_perturbation": speeds})
        lines[name] = {line["split"]: line for line in read_metrics(tmp_path / name)}
    hours = [lines[name]["train"]["hours_seen"] for name in ("plain", "slow")]
    assert hours[1] == pytest.approx(2 * hours[0], rel=1e-3)
    assert lines["plain"]["valid"].keys() == lines["slow"]["valid"].keys()


def test_other_speeds_are_another_run(manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    pretrain(manifests, tmp_path / "run", **SPEED | {"training.max_updates": 1})
    with pytest.raises(ConfigError, match=r"`data\.speed_perturbation` must stay \[0\.9, 1\.0, 1\.1\]"):
        pretrain(manifests, tmp_path / "run", **{"training.max_updates": 1, "data.speed_perturbation": [0.9]})
