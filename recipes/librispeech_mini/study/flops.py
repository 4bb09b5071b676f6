"""How many floating-point operations a second of audio takes in an arm, from its configuration."""

from __future__ import annotations

import math
from typing import Any

from recipes.librispeech_mini.study.cells import Keys
from speechssl.audio.reading import SAMPLE_RATE
from speechssl.bench.flops import BACKWARD, count_pretraining_heads, count_row
from speechssl.cli.compose import build_config
from speechssl.cli.words import Request, escape
from speechssl.config.verbs import FinetuneConfig, PretrainConfig

VOCABULARY = 32
"""Labels of the CTC head."""


def compose(verb: str, keys: Keys) -> Any:
    """Compose the configuration that a verb would be run with, without a checkpoint that need not be there yet."""
    request = Request(verb)
    for key, value in keys.items():
        if key not in ("init", "reset_layers"):
            request.add(key, escape(value))
    return build_config(request)


def count_pretraining(keys: Keys, seconds: float) -> float:
    """Count the operations of pretraining on a second of audio, forward and backward.

    Args:
        keys: of the verb `pretrain`.
        seconds: of a row; attention grows with it.

    The share that is masked is 1 - exp(-p) with p = `model.mask.prob`, since spans overlap; codes are predicted at all
    frames where the others have a weight.
    """
    config: PretrainConfig = compose("pretrain", keys)
    network, num_samples = config.model, round(seconds * SAMPLE_RATE)
    num_frames = network.count_frames(num_samples)
    num_masked = num_frames * (1.0 - math.exp(-network.mask.prob))
    if keys.get("objective") == "masked_codes":
        predicted = num_frames if keys.get("objective.unmasked_weight") else num_masked
        heads = 2.0 * predicted * network.model_dim * int(keys["objective.num_codes"])
    else:
        heads = count_pretraining_heads(network, num_masked)
    # A teacher that is a network says in every update which codes they are.
    is_taught = keys.get("objective.teacher", "mfcc") != "mfcc"
    teacher = count_row(network, num_samples, backward=False) if is_taught else 0.0
    return (count_row(network, num_samples, heads) + teacher) / seconds


def count_finetuning(keys: Keys, seconds: float) -> float:
    """Count the operations of CTC on a second of audio; an encoder that is frozen for good runs forward only.

    Here as in pretraining every block counts, those that LayerDrop skips too (5 % of 12 x 512's; `small` skips none).

    Args:
        keys: of the verb `finetune`.
        seconds: of a row.
    """
    config: FinetuneConfig = compose("finetune", keys)
    network, num_samples = config.model, round(seconds * SAMPLE_RATE)
    num_frames = network.count_frames(num_samples)
    head = 2.0 * num_frames * network.model_dim * VOCABULARY
    if config.training.freeze_share >= 1:
        return (count_row(network, num_samples, backward=False) + (1.0 + BACKWARD) * head) / seconds
    return count_row(network, num_samples, head) / seconds


def match_updates(updates: int, extra_flop: float, flop_per_update: float) -> int:
    """Count the updates of a fine-tuning that costs as much as another one and the pretraining before it.

    Args:
        updates: of the other fine-tuning, at the same cost an update.
        extra_flop: operations of the pretraining.
        flop_per_update: of the fine-tuning.
    """
    return updates + round(extra_flop / flop_per_update)
