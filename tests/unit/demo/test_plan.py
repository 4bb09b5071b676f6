from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechssl.config.verbs import DemoConfig
from speechssl.demo.corpus import SPLITS
from speechssl.demo.plan import (
    FINETUNE_S,
    MIN_UPDATES,
    STRETCH,
    Part,
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

    def plan(minutes: float, spent_s: float = 60.0) -> int:
        (part,) = plan_pretraining(DemoConfig(minutes=minutes), spent_s, tmp_path / "pretrain").parts.values()
        assert part.planned == part.updates
        return part.updates

    assert 100 < plan(8.0) * 48 / 200 < 0.75 * (8 * 60 - 60)
    assert plan(16.0) > 2 * plan(8.0)
    assert plan(0.5) == MIN_UPDATES


def test_finetuning_gets_what_pretraining_has_left(tmp_path: Path) -> None:
    write_timing(tmp_path, "finetune", 100.0, 16.0)
    begun, reserve_s = Plan(minutes=8.0, seed=1), compute_reserve_s(8.0)
    cases = (
        (100, (480 - 100 - reserve_s) / 2),
        (250, 52.5),
        (320, FINETUNE_S),
        (400, (STRETCH * 480 - 400 - reserve_s) / 2),
    )
    for spent_s, wanted_s in cases:
        plan = plan_finetuning(begun, spent_s, tmp_path / "finetune")
        assert plan.parts["finetuned"].updates == int(wanted_s * 100 / 16)
    late = plan_finetuning(begun, 600.0, tmp_path / "finetune")
    assert late.parts["finetuned"].updates == MIN_UPDATES


def test_a_plan_is_kept(tmp_path: Path) -> None:
    for plan in (Plan(8.0, 1), Plan(8.0, 1, 2.5, {"pretrained": Part(100, 90, 200.0, 50.0, 150.0)})):
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.load(tmp_path / "none.json") is None
    (tmp_path / "plan.json").write_text('{"minutes": 8.0, "seed": 1, "pretrain_updates": 100}')
    assert Plan.load(tmp_path / "plan.json") == Plan(8.0, 1), "of an earlier version"


def test_a_full_demo_uses_the_whole_corpus_and_a_short_one_less() -> None:
    assert choose_splits(8.0) == choose_splits(60.0) == SPLITS
    assert all(split.num_speakers >= 4 and split.num_utterances >= 3 for split in choose_splits(0.2))


@each_case("minutes", [0.0, -1.0])
def test_the_length_must_be_positive(minutes: float) -> None:
    with pytest.raises(Exception, match="minutes"):
        DemoConfig(minutes=minutes)
