"""Learning rate and freezing: pure functions of the update number."""

from __future__ import annotations

import math
from dataclasses import replace

from speechssl.config.training import TrainingConfig


def compute_lr(config: TrainingConfig, update: int) -> float:
    """Learning rate of update `update` (from 1).

    Args:
        config: `schedule`, peak `lr`, `planned_updates` and the shares of its stages.
        update: the update that is about to be made; the rate is that of `update - 1` completed ones for tri-stage
            and of `update` for polynomial, so that the first update already learns.

    Source: fairseq's polynomial_decay (power 1, end 0) and tri_stage (warm-up, hold, exponential decay).
    """
    if config.schedule == "polynomial":
        warmup = config.warmup_share * config.planned_updates
        return config.lr * compute_polynomial_share(update, warmup, config.planned_updates)
    return config.lr * compute_tri_stage_share(config, update - 1)


def compute_polynomial_share(update: float, warmup: float, total: float) -> float:
    """Share of the peak: rises linearly to 1 at `warmup`, then falls linearly to 0 at `total`."""
    if update < warmup:
        return update / warmup
    if update >= total:
        return 0.0 if total > warmup else 1.0
    return 1.0 - (update - warmup) / (total - warmup)


def compute_tri_stage_share(config: TrainingConfig, done: float) -> float:
    """Share of the peak after `done` updates: rises from the initial share, holds, falls exponentially."""
    warmup = config.warmup_share * config.planned_updates
    hold = config.hold_share * config.planned_updates
    decay = config.planned_updates - warmup - hold
    if done < warmup:
        return config.initial_lr_scale + (1.0 - config.initial_lr_scale) * done / warmup
    if done < warmup + hold or decay <= 0:
        return 1.0
    return math.exp(math.log(config.final_lr_scale) * min((done - warmup - hold) / decay, 1.0))


def compute_frozen_updates(config: TrainingConfig, share: float | None = None) -> int:
    """Count the first updates in which something is frozen; with a share of 1 that is all, however long the run.

    Args:
        config: with the length of the schedule.
        share: of the updates; None: `freeze_share`, in which only the head learns.
    """
    share = config.freeze_share if share is None else share
    return config.max_updates if share >= 1 else round(share * config.planned_updates)


def is_out_of_patience(config: TrainingConfig, validated: int, best: int) -> bool:
    """Say whether validation has been no better for so long that the run ends.

    Args:
        config: `patience` and `validate_every`.
        validated: update of the last validation.
        best: update of the best checkpoint.
    """
    return 0 < config.patience * config.validate_every <= validated - best


def describe_schedule(config: TrainingConfig, before: int, done: int) -> list[str]:
    """Say where the schedule is another one than a run has had so far, and where a run goes on behind its end.

    Args:
        config: of the run from now on.
        before: `training.schedule_updates` until now.
        done: updates made.

    Returns:
        A line for each, of people's interest only.
    """
    lines, planned = [], config.planned_updates
    if planned != before:
        old, new = (compute_lr(replace(config, schedule_updates=size), done + 1) for size in (before, planned))
        lines.append(
            f"training.schedule_updates is {planned} where the run had {before} so far: the learning rate of update "
            f"{done + 1} is {new:.3g} instead of {old:.3g}"
        )
    if config.max_updates > planned:
        rate = compute_lr(config, config.max_updates)
        what = f"stays {rate:.3g}" if rate else "is 0, so that nothing is learned any more"
        lines.append(
            f"the schedule ends at update {planned}: from there to training.max_updates={config.max_updates} the "
            f"learning rate {what} (training.schedule_updates={config.max_updates} lays it over the whole run)"
        )
    return lines
