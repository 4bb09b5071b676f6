"""How much the demo does: the size of its corpus, and its updates on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from speechssl.config import DemoConfig
from speechssl.corpora.demo import SPLITS, Split

FULL_MINUTES = 8.0
"""From this length on the demo uses the whole corpus."""

PRETRAIN_SHARE = 0.5
"""Share of the time for training that pretraining gets; the two fine-tunings have half of the rest each."""

MIN_UPDATES = 20
"""A demo of seconds still runs so many updates of each kind; its figures then show nothing, and the table says so."""

WARMING_UPDATES = 4
"""First updates of a timing run that are not counted: memory is taken and workers start."""


@dataclass(frozen=True)
class Plan:
    """What was decided at the first start, so that a second one goes on with the same.

    Attributes:
        minutes, seed: as asked for.
        pretrain_updates: of pretraining.
        finetune_updates: of fine-tuning, and of training from scratch.
        audio_s_per_s: measured speed of the two kinds of training.
    """

    minutes: float
    seed: int
    pretrain_updates: int
    finetune_updates: int
    audio_s_per_s: tuple[float, float]

    @staticmethod
    def load(path: Path) -> Plan | None:
        """Read the plan of an earlier start; None where there was none."""
        if not path.is_file():
            return None
        return Plan(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write the plan."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Speed:
    """What a timing run measured."""

    update_s: float
    audio_s_per_s: float


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


def plan_updates(config: DemoConfig, spent_s: float, timing: Path) -> Plan:
    """Share out the time that is left between pretraining and the two fine-tunings.

    Args:
        config: how long the demo may take.
        spent_s: time that is gone.
        timing: folder with the timing runs `pretrain` and `finetune`.
    """
    left_s = max(0.0, 60 * config.minutes - spent_s - compute_reserve_s(config.minutes))
    speeds = {verb: _read_speed(timing / verb) for verb in ("pretrain", "finetune")}
    shares = {"pretrain": PRETRAIN_SHARE, "finetune": (1 - PRETRAIN_SHARE) / 2}
    updates = {
        verb: max(MIN_UPDATES, int(shares[verb] * left_s * speed.audio_s_per_s / speed.update_s))
        for verb, speed in speeds.items()
    }
    measured = (speeds["pretrain"].audio_s_per_s, speeds["finetune"].audio_s_per_s)
    return Plan(config.minutes, config.seed, updates["pretrain"], updates["finetune"], measured)


def compute_reserve_s(minutes: float) -> float:
    """Time kept for what is not training: validation, evaluation, embeddings, probe and report."""
    return 15.0 + 60.0 * min(1.0, minutes / FULL_MINUTES)


def describe_plan(plan: Plan, spent_s: float) -> str:
    """Say what was measured and decided."""
    pretrain, finetune = plan.audio_s_per_s
    return (
        f"\nmeasured: pretraining {pretrain:.0f} s of audio a second, fine-tuning {finetune:.0f}; with {spent_s:.0f} s "
        f"of {60 * plan.minutes:.0f} s gone: {plan.pretrain_updates} updates of pretraining, "
        f"{plan.finetune_updates} of fine-tuning and as many from scratch"
    )


def _read_speed(folder: Path) -> Speed:
    """Read the middle speed of a timing run's later updates, and how much audio an update holds."""
    from speechssl.training.metrics import read_metrics

    records = [record for record in read_metrics(folder) if record["split"] == "train"]
    speeds = sorted(record["audio_s_per_s"] for record in records[WARMING_UPDATES:])
    update_s = 3600 * records[-1]["hours_seen"] / len(records)
    return Speed(update_s, speeds[len(speeds) // 2])
