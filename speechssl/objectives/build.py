"""From `objective=…` to the objective: the one place that knows them all."""

from __future__ import annotations

from speechssl.config.objective import ContrastiveConfig, MaskedCodesConfig
from speechssl.config.verbs import PretrainConfig
from speechssl.objectives import masked_codes, wav2vec2
from speechssl.objectives.protocol import Beginning, Objective


def build_objective(config: PretrainConfig, beginning: Beginning) -> Objective:
    """Build what a pretraining learns, with fresh weights and all that it needs before the first update.

    Raises:
        ConfigError: network, teacher or data do not fit it.
    """
    match config.objective:
        case ContrastiveConfig() as task:
            return wav2vec2.build(config, task)
        case MaskedCodesConfig() as task:
            return masked_codes.build(config, task, beginning)
