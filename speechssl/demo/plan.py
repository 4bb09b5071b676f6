"""How much the demo does: the size of its corpus, and its updates on this machine, which may slow down meanwhile."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
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
"""Seconds of each fine-tuning in a demo of full length for which it may take `STRETCH` times its minutes: a hundred
updates of fine-tuning show little."""

STRETCH = 1.15
"""How many times its minutes a demo may take before it cuts what makes its two recognisers comparable."""

GRACE, GRACE_S = 1.15, 8.0
"""What a training takes in practice: so many times the time of its updates, since it validates and saves, and the
seconds beside it for setting up. It is planned anew where it takes longer."""

RESERVE_SPEED = 90.0
"""Seconds of audio a second in pretraining on the two cores that took `compute_reserve_s` for the rest (README.md)."""

MAX_SLOWNESS = 2.0
"""No more than this is believed of what is not training: on one core, with a busy process on it, training
took three times as long, and the rest no longer than the reserve (2026-11-30)."""

RECENT_UPDATES = 16
"""So many last updates say how fast the machine is now."""

MIN_UPDATES = 20
"""A demo of seconds still runs so many updates of each kind; its figures then show nothing, and the table says so."""

WARMING_UPDATES = 4
"""First updates of a timing run that are not counted: memory is taken and workers start."""


@dataclass(frozen=True)
class Part:
    """What was decided about one training.

    Attributes:
        planned: updates that it was begun with.
        updates: those that it makes, fewer where the machine has become slower.
        speed: of the machine when this was decided, in seconds of audio a second of this training.
        begun_s, until_s: time that the demo had taken when it began, and by which it is planned anew if it is not over.
    """

    planned: int
    updates: int
    speed: float
    begun_s: float
    until_s: float


@dataclass(frozen=True)
class Plan:
    """What was decided, so that a second start goes on with the same.

    Attributes:
        minutes, seed: as asked for.
        slowness: how many times as long as on the machine of `RESERVE_SPEED` things take here, when last measured.
        parts: the trainings planned so far, by their names in the demo's folder.
    """

    minutes: float
    seed: int
    slowness: float = 1.0
    parts: dict[str, Part] = field(default_factory=dict)

    @staticmethod
    def load(path: Path) -> Plan | None:
        """Read the plan of an earlier start; None where there was none. One of an earlier version has no parts."""
        if not path.is_file():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        parts = {name: Part(**values) for name, values in stored.get("parts", {}).items()}
        return Plan(stored["minutes"], stored["seed"], stored.get("slowness", 1.0), parts)

    def save(self, path: Path) -> None:
        """Write the plan."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def compute_left_s(self, spent_s: float, stretch: float = 1.0) -> float:
        """Compute the seconds left for training in `stretch` times the demo's minutes."""
        reserve_s = min(MAX_SLOWNESS, self.slowness) * compute_reserve_s(self.minutes)
        return max(0.0, stretch * 60 * self.minutes - spent_s - reserve_s)

    def add(self, name: str, updates: int, part: Part) -> Plan:
        """Add or change a part, which makes at most so many updates, and `MIN_UPDATES` in any case."""
        updates = min(part.planned, max(MIN_UPDATES, updates))
        return replace(self, parts={**self.parts, name: replace(part, updates=updates)})


@dataclass(frozen=True)
class Speed:
    """How fast a training is.

    Attributes:
        audio: seconds of audio a second.
        updates: updates a second.
    """

    audio: float
    updates: float

    @staticmethod
    def measure(run: Path, skip: int = WARMING_UPDATES) -> Speed:
        """Take the median of the last updates of a run, less the first `skip`."""
        from speechssl.training.metrics import read_metrics

        records = [record for record in read_metrics(run) if record["split"] == "train"]
        speeds = sorted(record["audio_s_per_s"] for record in records[skip:][-RECENT_UPDATES:] or records)
        update_s = 3600 * records[-1]["hours_seen"] / len(records)
        speed = speeds[len(speeds) // 2]
        return Speed(speed, speed / update_s)


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
    speed = Speed.measure(timing)
    plan = Plan(config.minutes, config.seed, RESERVE_SPEED / speed.audio)
    return _plan_part(plan, "pretrained", PRETRAIN_SHARE * plan.compute_left_s(spent_s), spent_s, speed)


def plan_finetuning(plan: Plan, spent_s: float, timing: Path) -> Plan:
    """Share out what pretraining has left between fine-tuning and training from scratch.

    Args:
        plan: of the pretraining.
        spent_s: time that is gone.
        timing: folder of a short fine-tuning that measures this machine's speed.
    """
    wanted_s = FINETUNE_S * min(1.0, plan.minutes / FULL_MINUTES)
    least_s = min(wanted_s, plan.compute_left_s(spent_s, STRETCH) / 2)
    seconds = max(least_s, plan.compute_left_s(spent_s) / 2)
    return _plan_part(plan, "finetuned", seconds, spent_s, Speed.measure(timing))


def plan_scratch(plan: Plan, spent_s: float, finetuned: Path) -> Plan:
    """Train from scratch for as many updates as fine-tuning made, or for as many as there is time.

    Args:
        plan: of the fine-tuning.
        spent_s: time that is gone.
        finetuned: folder of the fine-tuning.
    """
    plan, speed = measure_slowness(plan, "finetuned", finetuned)
    # It is cut only where the whole demo would become too long: unequal recognisers are hard to compare.
    left_s, planned = plan.compute_left_s(spent_s, STRETCH), plan.parts["finetuned"].updates
    part = Part(planned, planned, speed.audio, spent_s, spent_s + left_s)
    return plan.add("from_scratch", _fit(left_s, speed), part)


def shorten(plan: Plan, name: str, spent_s: float, run: Path) -> Plan:
    """Plan anew a training that has fallen behind, and stands saved after some of its updates.

    Args:
        plan: so far.
        name: of the training.
        spent_s: time that is gone.
        run: its folder.
    """
    from speechssl.training.metrics import read_metrics

    plan, speed = measure_slowness(plan, name, run)
    part = plan.parts[name]
    done = max(record["update"] for record in read_metrics(run) if record["split"] == "train")
    match name:
        case "pretrained":
            gone_s = spent_s - part.begun_s
            more_s = PRETRAIN_SHARE * (gone_s + plan.compute_left_s(spent_s)) - gone_s
        case "finetuned":
            # Training from scratch makes what this has made and what it makes yet.
            more_s = (plan.compute_left_s(spent_s, STRETCH) - GRACE * done / speed.updates - GRACE_S) / 2
        case _:
            more_s = plan.compute_left_s(spent_s, STRETCH)
    plan = plan.add(name, done + _fit(more_s, speed), part)
    seconds = (plan.parts[name].updates - done) / speed.updates
    part = replace(plan.parts[name], until_s=spent_s + GRACE * seconds + GRACE_S)
    return replace(plan, parts={**plan.parts, name: part})


def measure_slowness(plan: Plan, name: str, run: Path) -> tuple[Plan, Speed]:
    """Measure at the end of a training how slow the machine is now, compared with when it was planned."""
    speed = Speed.measure(run, skip=0)
    slowness = plan.slowness * plan.parts[name].speed / speed.audio
    part = replace(plan.parts[name], speed=speed.audio)
    return replace(plan, slowness=slowness, parts={**plan.parts, name: part}), speed


def compute_reserve_s(minutes: float) -> float:
    """Time kept for what is not training: validation, evaluation, language model, embeddings, probe and report."""
    return 15.0 + 110.0 * min(1.0, minutes / FULL_MINUTES)


def _fit(seconds: float, speed: Speed) -> int:
    """Count the updates that so many seconds are enough for, set-up and validation included."""
    return max(0, int((seconds - GRACE_S) / GRACE * speed.updates))


def _plan_part(plan: Plan, name: str, seconds: float, spent_s: float, speed: Speed) -> Plan:
    """Plan a training that has so many seconds."""
    updates = max(MIN_UPDATES, int(seconds * speed.updates))
    part = Part(updates, updates, speed.audio, spent_s, spent_s + GRACE * seconds + GRACE_S)
    return plan.add(name, updates, part)
