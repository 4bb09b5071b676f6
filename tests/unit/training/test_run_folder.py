"""A run goes on only with the values that it began with."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from speechssl.checkpoints.layout import CONFIG, ENVIRONMENT, RESULT
from speechssl.config.objective import ContrastiveConfig, MaskedCodesConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.errors import ConfigError
from speechssl.report.run_folder import load_run
from speechssl.training.run_folder import claim_run, open_run
from tests.cases import each_case


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


def test_only_who_watches_the_time_may_plan_fewer_updates(tmp_path: Path) -> None:
    claim_run(tmp_path, make_config())
    fewer = TrainingConfig(max_updates=4)
    with pytest.raises(ConfigError, match=r"`training\.max_updates` must be at least 5 for the run in .*, but is 4"):
        open_run(tmp_path, replace(make_config(), training=fewer))
    watched = replace(make_config(), training=replace(fewer, max_hours=1.0, stop_when_late=True))
    assert open_run(tmp_path, watched) is None
    (tmp_path / RESULT).write_text('{"updates": 5}')
    with pytest.raises(ConfigError, match="must be at least 5"):
        open_run(tmp_path, watched)


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


STORED = """
num_negatives: 100
logit_temperature: 0.1
diversity_weight: 0.1
feature_penalty_weight: 10.0
targets: random_projection
num_codes: 0
code_dim: 16
stack_frames: 2
teacher: mfcc
teacher_layer: 6
subtract_mean: false
fit_s: 3600.0
intermediate_layer: 0
unmasked_weight: 0.0
"""
"""The section `objective` of a run of before: the keys of both objectives, and at first no name."""


def test_a_run_that_stored_the_keys_of_all_objectives_goes_on(tmp_path: Path) -> None:
    both = {"wav2vec2": ContrastiveConfig(), "masked_codes": MaskedCodesConfig()}
    for name, stored in (("wav2vec2", ""), ("wav2vec2", "name: wav2vec2"), ("masked_codes", "name: masked_codes")):
        objective, other = both[name], both["masked_codes" if name == "wav2vec2" else "wav2vec2"]
        claim_run(tmp_path, make_config(objective=objective))
        config = yaml.safe_load((tmp_path / CONFIG).read_text())
        section = yaml.safe_load(STORED + stored)
        if name == "wav2vec2":
            section["unmasked_weight"] = 1.0  # of the other one's preset: this one had no such loss then
        (tmp_path / CONFIG).write_text(yaml.safe_dump(config | {"objective": section}))
        assert open_run(tmp_path, make_config(objective=objective)) is None
        shown = load_run(tmp_path)
        assert shown.config["objective"].items() <= asdict(objective).items()
        with pytest.raises(ConfigError, match=f"`objective.name` must stay '{name}'"):
            open_run(tmp_path, make_config(objective=other))
        changed = replace(objective, feature_penalty_weight=1.0)
        with pytest.raises(ConfigError, match="`objective.feature_penalty_weight` must stay 10.0"):
            open_run(tmp_path, make_config(objective=changed))


def test_every_flipped_bit_of_a_configuration_is_refused(tmp_path: Path) -> None:
    claim_run(tmp_path, make_config())
    path = tmp_path / CONFIG
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(ConfigError, match=r"config\.yaml must be .*, but is not"):
            open_run(tmp_path, make_config())
    path.write_bytes(whole)
    assert open_run(tmp_path, make_config()) is None


@each_case("kind", ["empty", "cut", "zeros", "folder", "pipe", "loop", "list", "alias", "words"])
def test_a_configuration_that_cannot_be_read_is_one_sentence(tmp_path: Path, kind: str) -> None:
    claim_run(tmp_path, make_config())
    path = tmp_path / CONFIG
    whole = path.read_bytes()
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(CONFIG)
        case _:
            path.write_bytes(
                {
                    "empty": b"", "cut": whole[:-9], "zeros": bytes(99), "list": b"- 1\n", "alias": b"a: &a 1\nb: *a\n",
                    "words": b"training:\n  max_updates: many\n",
                }[kind]
            )  # fmt: skip
    with pytest.raises(ConfigError, match=r"config\.yaml must (be|have) "):
        open_run(tmp_path, make_config())


@each_case("name", ["update-0000005", "damaged-update-0000005"])
def test_checkpoints_without_their_configuration_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"`out` must hold the config\.yaml of its run, but .* has checkpoints"):
        open_run(tmp_path, make_config())


@each_case("content", ["", '{"updates": 5', "[5]", "\0\0", '{"updates": "5"}'])
def test_a_damaged_result_is_made_again(tmp_path: Path, content: str) -> None:
    claim_run(tmp_path, make_config())
    (tmp_path / RESULT).write_text(content)
    assert open_run(tmp_path, make_config()) is None
    (tmp_path / CONFIG).unlink()
    with pytest.raises(ConfigError, match="holds a finished result"):
        open_run(tmp_path, make_config())


def test_what_is_linked_elsewhere_stays_as_it_is(tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    for name in (CONFIG, ENVIRONMENT, ".config.yaml.part", ".environment.json.part"):
        (run / name).symlink_to(victim)
    claim_run(run, make_config())
    assert victim.read_text() == "precious" and not (run / CONFIG).is_symlink()
