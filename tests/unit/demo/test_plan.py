from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from speechssl.config.verbs import DemoConfig
from speechssl.demo.corpus import SPLITS
from speechssl.demo.plan import (
    FINETUNE_S,
    MIN_UPDATES,
    Plan,
    choose_splits,
    compute_reserve_s,
    plan_finetuning,
    plan_pretraining,
)
from tests.cases import each_case


def write_timing(folder: Path, verb: str, audio_s_per_s: float, update_s: float) -> None:
    (folder / verb).mkdir(parents=True)
    lines = [
        {
            "update": update,
            "split": "train",
            "hours_seen": update * update_s / 3600,
            # The first updates are slow, and must not count.
            "audio_s_per_s": 1.0 if update <= 4 else audio_s_per_s,
        }
        for update in range(1, 13)
    ]
    (folder / verb / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_pretraining_follows_the_time_and_the_machine(tmp_path: Path) -> None:
    write_timing(tmp_path, "pretrain", 200.0, 48.0)
    plan = plan_pretraining(DemoConfig(minutes=8.0), 60.0, tmp_path / "pretrain")
    assert 100 < plan.pretrain_updates * 48 / 200 < 0.75 * (8 * 60 - 60)
    assert plan.finetune_updates is None
    longer = plan_pretraining(DemoConfig(minutes=16.0), 60.0, tmp_path / "pretrain")
    assert longer.pretrain_updates > 2 * plan.pretrain_updates
    assert plan_pretraining(DemoConfig(minutes=0.5), 60.0, tmp_path / "pretrain").pretrain_updates == MIN_UPDATES


def test_finetuning_gets_what_pretraining_has_left(tmp_path: Path) -> None:
    write_timing(tmp_path, "finetune", 100.0, 16.0)
    begun = Plan(minutes=8.0, seed=1, pretrain_updates=100)
    for spent_s, wanted_s in ((100, (480 - 100 - compute_reserve_s(8.0)) / 2), (300, 50.0), (600, FINETUNE_S)):
        plan = plan_finetuning(begun, spent_s, tmp_path / "finetune")
        assert plan.finetune_updates == int(wanted_s * 100 / 16)
    short = plan_finetuning(replace(begun, minutes=0.2), 60.0, tmp_path / "finetune")
    assert short.finetune_updates == MIN_UPDATES


def test_a_plan_is_kept(tmp_path: Path) -> None:
    for plan in (Plan(8.0, 1, 100), Plan(8.0, 1, 100, 200)):
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.load(tmp_path / "none.json") is None


def test_a_full_demo_uses_the_whole_corpus_and_a_short_one_less() -> None:
    assert choose_splits(8.0) == choose_splits(60.0) == SPLITS
    assert all(split.num_speakers >= 4 and split.num_utterances >= 3 for split in choose_splits(0.2))


@each_case("minutes", [0.0, -1.0])
def test_the_length_must_be_positive(minutes: float) -> None:
    with pytest.raises(Exception, match="minutes"):
        DemoConfig(minutes=minutes)
