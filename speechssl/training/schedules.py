"""Learning rate and freezing: pure functions of the update number."""

from __future__ import annotations

import math

from speechssl.config import TrainingConfig


def compute_lr(config: TrainingConfig, update: int) -> float:
    """Learning rate of update `update` (from 1).

    Args:
        config: `schedule`, peak `lr`, `max_updates` and the shares of its stages.
        update: the update that is about to be made; the rate is that of `update - 1` completed ones for tri-stage
            and of `update` for polynomial, so that the first update already learns.

    Source: fairseq's polynomial_decay (power 1, end 0) and tri_stage (warm-up, hold, exponential decay).
    """
    if config.schedule == "polynomial":
        warmup = config.warmup_share * config.max_updates
        return config.lr * compute_polynomial_share(update, warmup, config.max_updates)
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
    warmup = config.warmup_share * config.max_updates
    hold = config.hold_share * config.max_updates
    decay = config.max_updates - warmup - hold
    if done < warmup:
        return config.initial_lr_scale + (1.0 - config.initial_lr_scale) * done / warmup
    if done < warmup + hold or decay <= 0:
        return 1.0
    return math.exp(math.log(config.final_lr_scale) * min((done - warmup - hold) / decay, 1.0))


def compute_frozen_updates(config: TrainingConfig) -> int:
    """Count the first updates in which only the head learns."""
    return round(config.freeze_share * config.max_updates)
