"""A run goes on only with the values that it began with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechssl.config import PretrainConfig, TrainingConfig
from speechssl.errors import ConfigError
from speechssl.training.run_folder import CONFIG, RESULT, claim_run, open_run


def make_config(**changes: object) -> PretrainConfig:
    return PretrainConfig(out="x", training=TrainingConfig(max_updates=5), **changes)  # type: ignore[arg-type]


def test_another_value_is_refused(tmp_path: Path) -> None:
    assert open_run(tmp_path, make_config()) is None
    assert not any(tmp_path.iterdir()), "what is only asked for leaves nothing behind"
    claim_run(tmp_path, make_config())
    assert open_run(tmp_path, make_config(device="cpu")) is None
    moved = make_config()
    moved.out = "elsewhere"
    assert open_run(tmp_path, moved) is None
    with pytest.raises(ConfigError, match="`seed` must stay 1 for the run"):
        open_run(tmp_path, make_config(seed=2))


def test_a_finished_run_gives_its_result_until_it_goes_on(tmp_path: Path) -> None:
    claim_run(tmp_path, make_config())
    (tmp_path / RESULT).write_text('{"updates": 5}')
    assert open_run(tmp_path, make_config()) == {"updates": 5}
    claim_run(tmp_path, make_config())
    assert open_run(tmp_path, make_config()) is None


def test_the_result_of_another_verb_is_no_run(tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text('{"wer": 5.0}')
    with pytest.raises(ConfigError, match="`out` must be a new place, but .* holds a finished result"):
        open_run(tmp_path, make_config())
    claim_run(tmp_path / "run", make_config())
    (tmp_path / "run" / RESULT).write_text('{"wer": 5.0}')
    assert open_run(tmp_path / "run", make_config()) is None


def test_a_run_that_is_older_than_a_key_goes_on(tmp_path: Path) -> None:
    claim_run(tmp_path, make_config())
    stored = yaml.safe_load((tmp_path / CONFIG).read_text())
    del stored["model"]["waveform_epsilon"]
    (tmp_path / CONFIG).write_text(yaml.safe_dump(stored))
    assert open_run(tmp_path, make_config()) is None
    changed = make_config()
    changed.model.waveform_epsilon = 1e-7
    with pytest.raises(ConfigError, match="`model.waveform_epsilon` must stay 1e-05"):
        open_run(tmp_path, changed)
