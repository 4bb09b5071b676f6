"""How much the demo does: the size of its corpus, and its updates on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from speechssl.config.verbs import DemoConfig
from speechssl.demo.corpus import SPLITS, Split

FULL_MINUTES = 8.0
"""From this length on the demo uses the whole corpus."""

PRETRAIN_SHARE = 0.5
"""Share of the time for training that pretraining gets by the first seconds' speed; the two fine-tunings have half of
what it leaves each. Pretraining pays late: after 309 updates fine-tuning was worse than training from scratch, after
606 better (2026-11-23)."""

FINETUNE_S = 45.0
"""Least seconds of each fine-tuning in a demo of full length, even if it then takes longer: a machine that was fast for
seconds may be slow for minutes, and a hundred updates of fine-tuning show little."""

MIN_UPDATES = 20
"""A demo of seconds still runs so many updates of each kind; its figures then show nothing, and the table says so."""

WARMING_UPDATES = 4
"""First updates of a timing run that are not counted: memory is taken and workers start."""


@dataclass(frozen=True)
class Plan:
    """What was decided, so that a second start goes on with the same.

    Attributes:
        minutes, seed: as asked for.
        pretrain_updates: of pretraining.
        finetune_updates: of fine-tuning, and of training from scratch; None until pretraining has ended.
    """

    minutes: float
    seed: int
    pretrain_updates: int
    finetune_updates: int | None = None

    @staticmethod
    def load(path: Path) -> Plan | None:
        """Read the plan of an earlier start; None where there was none."""
        if not path.is_file():
            return None
        return Plan(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write the plan."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def choose_splits(minutes: float) -> tuple[Split, ...]:
    """Choose the corpus: the whole one for a demo of full length, less for a shorter one."""
    share = min(1.0, minutes / FULL_MINUTES)
    return tuple(
        replace(
            split,
            num_speakers=max(4, round(share * split.num_speakers)),
            num_utterances=max(3, round(share * split.num_utterances)),
        )
        for split in SPLITS
    )


def plan_pretraining(config: DemoConfig, spent_s: float, timing: Path) -> Plan:
    """Give pretraining its share of the time that is left.

    Args:
        config: how long the demo may take.
        spent_s: time that is gone.
        timing: folder of a short pretraining that measures this machine's speed.
    """
    updates = _count_updates(PRETRAIN_SHARE * _compute_left_s(config.minutes, spent_s), timing)
    return Plan(config.minutes, config.seed, updates)


def plan_finetuning(plan: Plan, spent_s: float, timing: Path) -> Plan:
    """Share out what pretraining has left between fine-tuning and training from scratch.

    Args:
        plan: of the pretraining.
        spent_s: time that is gone.
        timing: folder of a short fine-tuning that measures this machine's speed.
    """
    least_s = FINETUNE_S * min(1.0, plan.minutes / FULL_MINUTES)
    seconds = max(least_s, _compute_left_s(plan.minutes, spent_s) / 2)
    return replace(plan, finetune_updates=_count_updates(seconds, timing))


def compute_reserve_s(minutes: float) -> float:
    """Time kept for what is not training: validation, evaluation, embeddings, probe and report."""
    return 15.0 + 65.0 * min(1.0, minutes / FULL_MINUTES)


def _compute_left_s(minutes: float, spent_s: float) -> float:
    """Seconds left for training."""
    return max(0.0, 60 * minutes - spent_s - compute_reserve_s(minutes))


def _count_updates(seconds: float, timing: Path) -> int:
    """Count the updates that fit into so many seconds at the speed that a timing run had."""
    from speechssl.training.metrics import read_metrics

    records = [record for record in read_metrics(timing) if record["split"] == "train"]
    speeds = sorted(record["audio_s_per_s"] for record in records[WARMING_UPDATES:])
    update_s = 3600 * records[-1]["hours_seen"] / len(records)
    return max(MIN_UPDATES, int(seconds * speeds[len(speeds) // 2] / update_s))
