"""`speechssl finetune`: pretrained model + transcripts → CTC recogniser."""

from __future__ import annotations

from typing import Any

from speechssl.config.verbs import FinetuneConfig
from speechssl.training.lock import hold_run
from speechssl.verbs.frame import verb


@verb
def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune, or go on where an earlier run of the same configuration stopped.

    Args:
        config: with `init` and no `model`, the network is that of the checkpoint.

    Returns:
        As `pretrain`.

    Raises:
        Exception: as `pretrain`.
    """
    # As in `pretrain`.
    with hold_run(config.out):
        from speechssl.training.finetuning import build_task
        from speechssl.training.run import run_training

        return run_training(config, build_task)
