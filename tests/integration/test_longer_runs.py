"""A run that is made longer keeps its schedule, and what changes is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.test_training import manifests, pretrain, read_metrics, read_weights  # noqa: F401  (a fixture)


@pytest.mark.slow
def test_a_longer_run_is_the_one_that_was_planned_so(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same updates, to the bit, with another `training.validate_every` as well."""
    caplog.set_level(logging.WARNING, "speechssl")
    keys = {"training.schedule": "tri_stage", "data.valid": []}
    pretrain(manifests, tmp_path / "parts", **keys, **{"training.max_updates": 4})
    assert not [record.message for record in caplog.records if "schedule_updates" in record.message]
    longer = {"training.max_updates": 7, "training.validate_every": 3}
    pretrain(manifests, tmp_path / "parts", **keys, **longer)
    (line,) = [record.message for record in caplog.records if "schedule_updates" in record.message]
    assert "the schedule ends at update 4: from there to training.max_updates=7 the learning rate stays" in line
    pretrain(manifests, tmp_path / "whole", **keys, **longer, **{"training.schedule_updates": 4})
    for run in ("parts", "whole"):
        assert yaml.safe_load((tmp_path / run / "config.yaml").read_text())["training"]["schedule_updates"] == 4
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    parts, whole = read_weights(tmp_path / "parts"), read_weights(tmp_path / "whole")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_a_run_of_before_the_key_goes_on_as_it_was_planned(manifests: Path, tmp_path: Path) -> None:  # noqa: F811
    keys = {"data.valid": [], "training.max_updates": 2}
    pretrain(manifests, tmp_path / "run", **keys)
    path = tmp_path / "run" / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    del stored["training"]["schedule_updates"]
    path.write_text(yaml.safe_dump(stored))
    pretrain(manifests, tmp_path / "run", **keys | {"training.max_updates": 3})
    assert yaml.safe_load(path.read_text())["training"]["schedule_updates"] == 2
    assert read_metrics(tmp_path / "run")[-1]["lr"] == 0.0


def test_a_schedule_that_is_laid_anew_says_how_the_rate_jumps(
    manifests: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = {"data.valid": []}
    pretrain(manifests, tmp_path / "run", **keys, **{"training.max_updates": 2})
    caplog.set_level(logging.WARNING, "speechssl")
    pretrain(manifests, tmp_path / "run", **keys, **{"training.max_updates": 4, "training.schedule_updates": 4})
    lines = [record.message for record in caplog.records if "schedule_updates" in record.message]
    assert len(lines) == 1, lines
    assert "training.schedule_updates is 4 where the run had 2 so far" in lines[0]
    assert read_metrics(tmp_path / "run")[2]["lr"] > 0.0
