"""From a cell to its steps: every command with its keys, and how many operations it takes. Nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.librispeech_mini.study.cells import ALL, FEW, PREVIOUS, TEACHER_LAYER, Arm, Budget, Cell, Keys, list_arms
from recipes.librispeech_mini.study.flops import count_finetuning, count_pretraining, match_updates

MATCHED_TO = "kmeans"
"""The arm whose total compute scratch is given: the dearest, since its teacher is asked in half of the updates."""

TEST_SPLITS = ("test", "test-other")


@dataclass(frozen=True)
class Places:
    """Folders.

    Attributes:
        data: LibriSpeech tree with `train`, `unlabelled`, `dev`, `test` and `test-other`.
        fsdd: spoken digits; empty: no digits.
        text: transcripts for the language model; empty: none.
        out: manifests and runs.
        results: the JSON files of finished steps.
    """

    data: Path
    fsdd: Path | None
    text: Path | None
    out: Path
    results: Path

    def manifest(self, name: str) -> str:
        """Name the manifest of a split or subset."""
        return str(self.out / "m" / f"{name}.tsv")

    def hide(self, value: Any) -> Any:
        """Write names in place of the folders of this machine, so that no record holds one of them.

        Args:
            value: text, or lists and mappings with text in them.
        """
        if isinstance(value, Mapping):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        if not isinstance(value, str):
            return value
        # The longest first: one folder may lie in another.
        folders = {"OUT": self.out, "LIBRISPEECH": self.data, "FSDD": self.fsdd, "TEXT": self.text}
        for name, folder in sorted(folders.items(), key=lambda item: -len(str(item[1]))):
            if folder is not None:
                value = re.sub(rf"(?<![\w./-]){re.escape(str(folder))}(?![\w.-])", name, value)
        return value


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        label: what its figures are called in the step.
        verb: of `speechssl`, or `digits` of this folder.
        keys: its keys.
    """

    label: str
    verb: str
    keys: Keys


@dataclass(frozen=True)
class Step:
    """What has one JSON file.

    Attributes:
        cell: whose it is.
        name: of the file.
        commands: run one after the other.
        needs: steps of the plan, by name, whose folders the commands read.
        flop_per_s: operations a second of audio that is learned from; 0 where nothing is learned.
        facts: what else the file says.
    """

    cell: str
    name: str
    commands: tuple[Command, ...]
    needs: tuple[str, ...] = ()
    flop_per_s: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


def build_steps(cell: Cell, budget: Budget, places: Places) -> list[Step]:
    """List the steps of a cell in order."""
    arm = list_arms()[cell.arm]
    steps = _list_pretraining(cell, arm, budget, places)
    init = str(_find_run(places, steps[-1])) if steps else ""
    pretrained = tuple(step.name for step in steps)
    for labels in cell.labels:
        tuning = _tune(cell, arm, labels, init, budget, places, pretrained)
        splits = ("dev",) if cell.kind == "trial" else ("dev", *TEST_SPLITS)
        steps += [tuning, _evaluate(cell, tuning, splits, budget, places)]
    if cell.kind != "trial":
        steps += _list_probes(cell, steps, init, budget, places)
    return steps


def describe(cell: Cell) -> dict[str, Any]:
    """Say in a step's record which cell it is of."""
    return {"arm": cell.arm, "seed": cell.seed, "kind": cell.kind, "trial": cell.trial}


def _find_run(places: Places, step: Step) -> Path:
    return places.out / step.cell / step.name


def _list_pretraining(cell: Cell, arm: Arm, budget: Budget, places: Places) -> list[Step]:
    # A trial fine-tunes what the main cell of its arm and seed was pretrained to.
    is_trial = cell.kind == "trial"
    owner = f"{cell.arm}-{cell.seed}" if is_trial else cell.name
    facts = {**describe(cell), "kind": "main" if is_trial else cell.kind, "trial": ""}
    updates = budget.pretrain_updates * cell.factor
    steps: list[Step] = []
    for number, given in enumerate(arm.pretrain, 1):
        name = "pretrain" if len(arm.pretrain) == 1 else f"pretrain-{number}"
        meant = {PREVIOUS: str(_find_run(places, steps[-1])) if steps else "", TEACHER_LAYER: budget.teacher_layer}
        keys = {
            **_describe_training(budget, cell.seed, budget.pretrain_update_s),
            "training.max_updates": updates // len(arm.pretrain),
            "data.train": [places.manifest("train"), places.manifest("unlabelled")],
            "data.valid": [places.manifest("dev")],
            **{key: meant.get(value, value) if isinstance(value, str) else value for key, value in given.items()},
            "out": str(places.out / owner / name),
        }
        steps.append(
            Step(
                owner,
                name,
                (Command("pretrain", "pretrain", keys),),
                tuple(step.name for step in steps),
                count_pretraining(keys, budget.chunk_s[0]),
                facts=facts,
            )
        )
    return steps


def _describe_training(budget: Budget, seed: int, update_s: float) -> dict[str, Any]:
    return {
        "model": budget.model,
        **budget.network,
        "training.update_s": update_s,
        "training.sub_batch_s": update_s,
        "training.forward_s": update_s,
        **budget.shared,
        "seed": seed,
    }


def _tune(cell: Cell, arm: Arm, labels: str, init: str, budget: Budget, places: Places, needs: tuple[str, ...]) -> Step:
    """Describe one fine-tuning; a matched arm's goes on until it has cost what a pretrained arm costs in all."""
    given = arm.trials[cell.trial] if cell.kind == "trial" else arm.finetune
    updates = budget.trial_updates if cell.kind == "trial" else budget.finetune_updates[labels]
    keys: dict[str, Any] = {
        **_describe_training(budget, cell.seed, budget.finetune_update_s),
        "data.train": [places.manifest("train" if labels == ALL else f"train-{labels}")],
        "data.valid": [places.manifest("dev")],
        **given,
        "out": str(places.out / cell.name / f"finetune-{labels}"),
    }
    per_s = count_finetuning(keys, budget.chunk_s[1])
    if arm.is_matched and cell.kind != "trial":
        per_update = per_s * budget.finetune_update_s * budget.fill[1]
        updates = match_updates(updates, count_total_pretraining(cell, budget, places), per_update)
    keys["training.max_updates"] = updates
    if init:
        # The network and the preset of its name come from the checkpoint.
        keys = {"init": init, **{key: value for key, value in keys.items() if key not in ("model", *budget.network)}}
    name, facts = f"finetune-{labels}", {**describe(cell), "labels": labels}
    return Step(cell.name, name, (Command("finetune", "finetune", keys),), needs, per_s, facts)


def count_total_pretraining(cell: Cell, budget: Budget, places: Places) -> float:
    """Count the operations of the pretraining that scratch is given as fine-tuning."""
    steps = _list_pretraining(cell, list_arms()[MATCHED_TO], budget, places)
    per_s = sum(float(step.commands[0].keys["training.max_updates"] * step.flop_per_s) for step in steps)
    return per_s * budget.pretrain_update_s * budget.fill[0]


def _evaluate(cell: Cell, tuning: Step, splits: tuple[str, ...], budget: Budget, places: Places) -> Step:
    """Describe the evaluation of the last checkpoint: where most words are wrong the best one is chance."""
    run = _find_run(places, tuning)
    name = tuning.name.replace("finetune", "evaluate")
    # `dev` only chooses between trials.
    wanted = [
        (split, decoding)
        for decoding in budget.decodings
        for split in splits
        if split in TEST_SPLITS or cell.kind == "trial" or decoding == budget.decodings[0]
    ]
    commands = []
    for split, decoding in wanted:
        keys = {
            "checkpoint": str(run / "checkpoints" / "last"),
            "data.test": [places.manifest(split)],
            "decoding": decoding,
            "out": str(places.out / cell.name / name / f"{split}-{decoding}"),
            "overwrite": True,
        }
        if decoding == "beam":
            keys["decoding.lm"] = str(places.out / "lm" / "4gram.arpa")
        commands.append(Command(f"{split}/{decoding}", "evaluate", keys))
    return Step(cell.name, name, tuple(commands), (*tuning.needs, tuning.name), facts=tuning.facts)


def _list_probes(cell: Cell, steps: list[Step], init: str, budget: Budget, places: Places) -> list[Step]:
    """Describe the probes: of the pretrained encoder, or else of the encoder tuned with the most labels."""
    last = next(step for step in reversed(steps) if step.name.startswith("finetune-") and ALL in step.name)
    probed = next((step for step in reversed(steps) if step.name.startswith("pretrain")), last)
    checkpoint = init or str(_find_run(places, probed) / "checkpoints" / "last")
    folder = places.out / cell.name
    verification = {
        "checkpoint": checkpoint,
        "task": "verification",
        # An hour of all its speakers is enough for the mix of layers, and a quarter of the time.
        "data.train": [places.manifest(f"train-{FEW}")],
        "data.test": [places.manifest(split) for split in ("dev", *TEST_SPLITS)],
        **budget.probe,
        "out": str(folder / "verification"),
        "overwrite": True,
    }
    needs = (*probed.needs, probed.name)
    command = Command("verification", "probe", verification)
    probes = [Step(cell.name, "verification", (command,), needs, facts=describe(cell))]
    if places.fsdd is not None:
        digits = {
            "checkpoint": checkpoint,
            "manifest": str(places.out / "fsdd" / "all.tsv"),
            "out": str(folder / "digits"),
        }
        probes.append(Step(cell.name, "digits", (Command("digits", "digits", digits),), needs, facts=describe(cell)))
    return probes


def estimate_hours(cell: Cell, budget: Budget, places: Places) -> float:
    """Estimate how long the trainings of a cell take on two cores, at the speeds that the budget assumes."""
    hours = 0.0
    for step in build_steps(cell, budget, places):
        if step.cell == cell.name and step.flop_per_s:
            is_pretraining = step.name.startswith("pretrain")
            update_s = budget.pretrain_update_s if is_pretraining else budget.finetune_update_s
            updates = step.commands[0].keys["training.max_updates"]
            hours += updates * update_s / budget.speeds[not is_pretraining] / 3600
    return hours
