"""What pretraining and self-training are worth on one's own machine: characters wrong against processor time.

An arm with one amount of labels is a list of `speechssl` commands, each in a process of its own on one thread. A step
that is finished is not run again, one that was stopped goes on, and arms share steps.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from speechssl.training.metrics import read_metrics

USAGE = """usage: recipes/librispeech_mini/run <manifests> <out> <arm> <labels> [seed] [key=value …]
       recipes/librispeech_mini/run table
  arm      scratch, contrastive, codes or self (codes, then self-training)
  labels   10m, 1h or all
  key=value …  further words for every training, such as training.max_updates=3 in a rehearsal"""

RESULTS = Path(__file__).parent / "results"
ARMS, LABELS, SETS = ("scratch", "contrastive", "codes", "self"), ("10m", "1h", "all"), ("dev", "test", "test-other")
NETWORK = "model=small"


@dataclass(frozen=True)
class Budget:
    """Updates of each kind of training, and what fine-tuning keeps of pretraining, for one amount of labels."""

    manifest: str
    scratch: int
    first: int
    second: int
    student: int
    keys: tuple[str, ...]


BUDGETS = {
    "10m": Budget("train-10m.tsv", 800, 600, 600, 1200, ("freeze_layers=3", "training.unfreeze_share=0.7", "training.layer_lr_decay=0.7")),
    "1h": Budget("train-1h.tsv", 3000, 1400, 1600, 2400, ("freeze_layers=3", "training.unfreeze_share=0.5", "training.layer_lr_decay=0.8")),
    "all": Budget("train.tsv", 4500, 4000, 4000, 4500, ("freeze_layers=0", "training.unfreeze_share=0.2", "training.layer_lr_decay=0.9")),
}  # fmt: skip
MASKS = {"10m": ("model.mask.prob=0.3",)}
"""Few labels are learned by heart: more of the time is masked."""

FINETUNE = (
    "data.speed_perturbation=[0.9,1.0,1.1]",
    "training.ema_decay=0.998",
    "training.validate_ema=true",
)


@dataclass(frozen=True)
class Places:
    """Where a seed's steps lie, and what they are given beside their own keys."""

    manifests: Path
    out: Path
    seed: int
    more: tuple[str, ...] = ()


def list_steps(arm: str, labels: str, places: Places) -> list[tuple[str, list[str]]]:
    """List the steps of an arm in order: a name, which is its folder too, and the words of its command."""
    budget, masks = BUDGETS[labels], MASKS.get(labels, ())
    data = [f"data.valid={places.manifests / 'dev.tsv'}", "data.num_workers=0", f"data.cache_dir={places.out / 'cache'}"]
    heard = f"data.train=[{','.join(str(places.manifests / f'{name}.tsv') for name in ('train', 'unlabelled', 'more'))}]"
    labelled = f"data.train={places.manifests / budget.manifest}"

    def at(name: str) -> str:
        return str(places.out / name)

    def train(verb: str, name: str, updates: int, *words: str) -> tuple[str, list[str]]:
        common = [*data, f"training.max_updates={updates}", f"seed={places.seed}", *places.more, f"out={at(name)}"]
        return name, [verb, *words, *common]

    def finetune(name: str, updates: int, *words: str) -> tuple[str, list[str]]:
        return train("finetune", name, updates, *FINETUNE, *masks, *words)

    if arm == "scratch":
        return [finetune(f"scratch-{labels}", budget.scratch, NETWORK, labelled)]
    if arm == "contrastive":
        return [
            train("pretrain", "contrastive", 1200, NETWORK, heard),
            finetune(f"contrastive-{labels}", budget.first, f"init={at('contrastive')}", labelled, *budget.keys),
        ]
    codes = [
        train("pretrain", "codes", 1200, NETWORK, "objective=masked_codes", "objective.codes_per_frame=2", heard),
        finetune(f"codes-{labels}", budget.first, f"init={at('codes')}", labelled, *budget.keys),
    ]
    if arm == "codes":
        return codes
    first, own, second = f"codes-{labels}", f"own-codes-{labels}", f"own-{labels}"
    teacher = [f"objective.teacher={at(first)}", "objective.teacher_layer=4", "objective.num_codes=200"]
    steps = [
        *codes,
        train("pretrain", own, 800, f"init={at(first)}", "objective=masked_codes", *teacher, heard),
        finetune(second, budget.second, f"init={at(own)}", labelled, *budget.keys),
    ]
    if labels == "all":
        return steps
    pseudo = f"pseudo-{labels}.tsv"
    unlabelled = [str(path) for path in write_unlabelled(places, budget.manifest)]
    return [
        *steps,
        (f"tune-{second}", ["tune", at(second), str(places.manifests / "dev.tsv"), *find_lm(places)]),
        (pseudo, ["transcribe", at(second), *unlabelled, *find_lm(places), "min_confidence=0.4", f"out={at(pseudo)}"]),
        finetune(f"student-{labels}", budget.student, f"init={at(second)}", f"{labelled[:-4]}"),
    ]
