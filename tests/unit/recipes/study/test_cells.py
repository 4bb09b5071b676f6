"""The study's cells are fair: as many trials, seeds and updates where the comparison says so; trials read no test."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from recipes.librispeech_mini.study.cells import (
    ALL,
    BETTER_OTHER,
    CHOSEN,
    FEW,
    FEWEST,
    GPU,
    GPU_ARMS,
    LONG_ARM,
    REHEARSAL,
    SEEDS,
    TWO_CORES,
    find_cell,
    list_arms,
    list_cells,
    list_gpu_cells,
)
from recipes.librispeech_mini.study.flops import count_finetuning, count_pretraining, match_updates
from recipes.librispeech_mini.study.plan import Places, Step, build_steps, estimate_hours
from recipes.librispeech_mini.study.records import format_command, read_all
from speechssl.errors import ConfigError
from tests.cases import each_case

RESULTS = Path(__file__).parents[4] / "recipes" / "librispeech_mini" / "study" / "results"
PLACES = Places(Path("/corpus"), Path("/digits"), Path("/text"), Path("/runs"), Path("/results"))


@cache
def list_steps(name: str) -> dict[str, Step]:
    return {step.name: step for step in build_steps(find_cell(name, TWO_CORES), TWO_CORES, PLACES)}


def test_no_arm_has_more_trials_than_scratch_and_each_choice_is_a_trial() -> None:
    arms = list_arms()
    assert max(len(arm.trials) for arm in arms.values()) == len(arms["scratch"].trials)
    assert all(choice in arms[name].trials for name, choice in CHOSEN.items())
    assert all(arms[name].finetune == arms[name].trials[choice] for name, choice in CHOSEN.items())


def test_seeds_and_labels_are_those_of_the_study() -> None:
    cells = list_cells(TWO_CORES).values()
    seeds = {name: [cell.seed for cell in cells if cell.arm == name and cell.kind == "main"] for name in list_arms()}
    assert {name for name, row in seeds.items() if row == list(SEEDS)} == {"scratch", "wav2vec2", BETTER_OTHER}
    assert all(row == [1] for name, row in seeds.items() if row != list(SEEDS) and name != "scratch_less")
    assert all({FEW, ALL} <= set(cell.labels) for cell in cells if cell.kind == "main")
    once = {cell.arm for cell in cells if FEWEST in cell.labels}
    assert once == set(list_arms()) - {"scratch", "scratch_less"}
    assert all(cell.seed == 1 for cell in cells if FEWEST in cell.labels)
    assert {cell.arm for cell in cells if cell.kind == "long"} == {LONG_ARM, "scratch"}


@each_case("trial", ["trial-wav2vec2-preset", "trial-scratch-log_mel"])
def test_a_trial_reads_no_test_and_no_probe(trial: str) -> None:
    words = [str(command.keys) for step in list_steps(trial).values() for command in step.commands]
    assert not [line for line in words if "test.tsv" in line or "test-other" in line]
    assert list_steps(trial)["evaluate-1h"].commands[0].label == "dev/greedy"


def test_a_trial_shares_the_pretraining_of_its_main_cell() -> None:
    trial, main = list_steps("trial-wav2vec2-slow"), list_steps("wav2vec2-1")
    assert trial["pretrain"] == main["pretrain"]
    assert trial["finetune-1h"].commands[0].keys["init"] == main["pretrain"].commands[0].keys["out"]
    assert trial["finetune-1h"].commands[0].keys["training.lr"] == 5e-4


@pytest.mark.slow
def test_scratch_costs_in_all_what_the_dearest_pretrained_arm_costs() -> None:
    scratch, short = list_steps("scratch-1"), list_steps("scratch_short-1")
    for labels in (FEW, ALL):
        costs = {}
        for name in ("wav2vec2", "random_projection", "kmeans"):
            steps = list_steps(f"{name}-1")
            trained = [step for step in steps if step.startswith("pretrain")] + [f"finetune-{labels}"]
            costs[name] = sum(count_flop(steps[step]) for step in trained)
            updates = [each[f"finetune-{labels}"].commands[0].keys["training.max_updates"] for each in (steps, short)]
            assert updates[0] == updates[1] == TWO_CORES.finetune_updates[labels]
        assert count_flop(scratch[f"finetune-{labels}"]) == pytest.approx(max(costs.values()), rel=1e-3)
        assert max(costs, key=lambda name: costs[name]) == "kmeans"


def count_flop(step: Step) -> float:
    """Count the operations of a training by the speech that its updates hold."""
    keys = step.commands[0].keys
    fill = TWO_CORES.fill[not step.name.startswith("pretrain")]
    return float(keys["training.max_updates"] * keys["training.update_s"] * fill * step.flop_per_s)


@each_case("labels", [FEW, ALL])
def test_what_was_run_held_as_much_speech_as_the_match_assumes(labels: str) -> None:
    """The operations that the records count, which come from the hours heard, and not from the plan."""
    records = read_all(RESULTS)["kmeans-1"]
    run = [record for name, record in records.items() if name.startswith("pretrain") or name == f"finetune-{labels}"]
    assert len(run) == 3
    scratch = list_steps("scratch-1")[f"finetune-{labels}"]
    assert count_flop(scratch) == pytest.approx(sum(record["flop"] for record in run), rel=0.01)


@each_case("step", ["pretrain", "finetune-1h", "finetune-all"])
def test_updates_of_the_wide_network_held_as_much_speech_as_its_match_assumes(step: str) -> None:
    record = read_all(RESULTS)["gpu-12x512-wav2vec2-1"][step]
    held = 3600 * record["hours_seen"] / (record["updates"] * record["update_s"])
    assert GPU["12x512"].fill[not step.startswith("pretrain")] == pytest.approx(held, rel=0.01)


def test_the_random_encoder_is_frozen_and_costs_a_forward() -> None:
    frozen, learned = list_steps("random_frozen-1")["finetune-1h"], list_steps("scratch_short-1")["finetune-1h"]
    assert frozen.commands[0].keys["training.freeze_share"] == 1.0
    assert frozen.flop_per_s == pytest.approx(learned.flop_per_s / 3, rel=0.1)


@pytest.mark.slow
def test_the_long_chain_is_longer_in_pretraining_alone() -> None:
    main, long = list_steps(f"{LONG_ARM}-1"), list_steps(f"long-{LONG_ARM}-1")
    pretrainings = [name for name in main if name.startswith("pretrain")]
    for name in pretrainings:
        updates = [steps[name].commands[0].keys["training.max_updates"] for steps in (main, long)]
        assert updates[1] == TWO_CORES.long_factor * updates[0]
    assert main["finetune-all"].commands[0].keys["training.max_updates"] == TWO_CORES.finetune_updates[ALL]
    assert pretrainings and all(long[name].cell == f"long-{LONG_ARM}-1" for name in pretrainings)


def test_hours_are_updates_times_seconds_over_speed() -> None:
    budget = replace(TWO_CORES, speeds=(100.0, 50.0))
    hours = TWO_CORES.pretrain_updates * 48 / 100 / 3600
    hours += sum(TWO_CORES.finetune_updates[labels] for labels in (FEW, ALL)) * 32 / 50 / 3600
    assert estimate_hours(find_cell("wav2vec2-2", budget), budget, PLACES) == pytest.approx(hours)


def test_operations_are_those_of_the_bench() -> None:
    pretraining = count_pretraining({"model": "small", "out": "a"}, 6.0)
    assert 1.2e9 < pretraining < 1.8e9
    assert count_finetuning({"model": "small", "out": "a"}, 12.0) == pytest.approx(pretraining, rel=0.15)
    assert match_updates(100, 5e12, 1e11) == 150


def test_a_gpu_runs_pairs_seed_by_seed() -> None:
    cells = list_gpu_cells(["12x512"], 2)
    assert [(cell.arm, cell.seed) for cell in cells] == [(arm, seed) for seed in (1, 2) for arm in GPU_ARMS]
    (pretraining, *_) = build_steps(cells[2], GPU["12x512"], PLACES)
    keys = pretraining.commands[0].keys
    assert (keys["model.num_layers"], keys["model.model_dim"]) == (12, 512)


@pytest.mark.slow
def test_the_cells_of_small_on_a_gpu_are_those_of_the_study() -> None:
    chosen = [cell for cell in list_gpu_cells(["small"], 1) if cell.arm in ("scratch", "kmeans")]
    assert len(chosen) == 2
    for cell in chosen:
        own = build_steps(cell, GPU["small"], PLACES)
        study = build_steps(find_cell(f"{cell.arm}-1", TWO_CORES), TWO_CORES, PLACES)
        assert [step.name for step in own] == [step.name for step in study]
        for mine, theirs in zip(own, study, strict=True):
            commands = [format_command(command, PLACES) for command in mine.commands]
            assert [line.replace("gpu-small-", "") for line in commands] == [
                format_command(command, PLACES) for command in theirs.commands
            ]


def test_an_unknown_cell_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="`cell` must be one of trial-scratch-log_mel, .* but is 'hubert-1'"):
        find_cell("hubert-1", REHEARSAL)


def test_folders_of_the_machine_are_hidden_wherever_they_stand() -> None:
    value = {"a": ["out=/runs/x", "[/runs/m/train.tsv,/corpus]"], "b": "/runs2/x and /a/runs", "c": 3}
    assert PLACES.hide(value) == {
        "a": ["out=OUT/x", "[OUT/m/train.tsv,LIBRISPEECH]"],
        "b": "/runs2/x and /a/runs",
        "c": 3,
    }
