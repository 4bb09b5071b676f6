"""`speechssl pretrain`: unlabelled speech → model."""

from __future__ import annotations

from typing import Any

from speechssl.config.verbs import PretrainConfig
from speechssl.training.lock import hold_run
from speechssl.verbs.frame import verb


@verb
def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Pretrain, or go on where an earlier run of the same configuration stopped.

    Args:
        config: with `init` and no `model`, the network is that of the checkpoint.

    Returns:
        The result, as in `result.json`; under torchrun, on the other ranks than 0, that of a finished run is empty.

    Raises:
        ConfigError, DataError, CheckpointError: a mistake of the user.
        StoppedOnRequest: a signal or `training.max_hours`; the state is saved, and the same call goes on.
        CollapseError, NumericalError: the training has failed.
    """
    # Before torch is imported, which takes seconds: a second run in the folder is refused at once.
    with hold_run(config.out):
        from speechssl.training.pretraining import build_task
        from speechssl.training.run import run_training

        return run_training(config, build_task)
