"""What is published of wav2vec 2.0 BASE with little audio an update: the best learning rate, and where it is known.

Source: Vaessen and van Leeuwen, arXiv 2402.13723, pretraining from scratch on LibriSpeech 960 h with 87.5 s to 80 min
of audio an update, each batch size at its best peak rate.
"""

from __future__ import annotations

import math

from speechssl.config.model import ModelConfig
from speechssl.config.training import TrainingConfig

PEAK_LR = 5e-4
FLAT_FROM_S = 40 * 60.0
"""From here on the best rate was that of the published batch (40 and 80 min)."""

REFERENCE_S = 100 * 60.0
LEAST_S = 150.0
"""The smallest batch that converged well. At 87.5 s the rule's rate lost to one eight times lower, 7.3e-6."""

TOO_HIGH = 2.0


def compute_published_lr(update_s: float) -> float:
    """Compute the peak learning rate that is best for BASE at a batch size: 5e-4 · sqrt(batch / 100 min), then flat.

    Args:
        update_s: seconds of audio an update, over all ranks and accumulation steps.

    Returns:
        The rate. Measured at 150 s (7.9e-5), 5 min (1.1e-4), 10 min (1.6e-4), 20 min (2.2e-4), 40 and 80 min (5e-4);
        the rule lies between them, and below 150 s it does not hold.
    """
    return PEAK_LR if update_s >= FLAT_FROM_S else PEAK_LR * math.sqrt(update_s / REFERENCE_S)


def describe_departure(model: ModelConfig, training: TrainingConfig) -> str:
    """Say in one sentence how a pretraining from scratch leaves the range in which BASE has been seen to converge.

    Returns:
        '' within the range, and for a network of another size than BASE, of which nothing is known.
    """
    if not _is_base(model):
        return ""
    if training.update_s < LEAST_S:
        return (
            f"training.update_s={training.update_s:g} is under {LEAST_S:g} s, below which nobody has published that "
            f"BASE converges well: at 87.5 s it was the edge of stability, with training.lr=7.3e-6 (here "
            f"{training.lr:g}; training=pretrain_base_small_batch has 600 s)"
        )
    best = compute_published_lr(training.update_s)
    if training.lr > TOO_HIGH * best:
        return (
            f"training.lr={training.lr:g} is {training.lr / best:.1f} times the best published rate for BASE at "
            f"{training.update_s:g} s an update, {best:.2g} (5e-4 · sqrt(batch / 100 min)): nobody has published that "
            "it converges"
        )
    return ""


def _is_base(model: ModelConfig) -> bool:
    """Say whether a network has BASE's front-end and transformer, whatever its name and its dropout."""
    base = ModelConfig()
    names = ("conv_channels", "conv_kernels", "conv_strides", "num_layers", "model_dim", "ffn_dim", "num_heads")
    return all(getattr(model, name) == getattr(base, name) for name in names)
