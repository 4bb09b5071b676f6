"""What a pretraining learns, and from what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from speechssl.checkpoints.model_folder import load_backbone_into, load_into
from speechssl.config.verbs import PretrainConfig
from speechssl.data.loader import Batch
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.build import build_objective
from speechssl.objectives.protocol import Beginning, Objective
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.run import Task
from speechssl.training.sources import (
    ManifestSource,
    build_source,
    select_long_enough,
    select_utterances,
)

_logger = logging.getLogger("speechssl")


def build_task(config: PretrainConfig, ranks: Ranks, goes_on: bool) -> Task:
    """Build what a pretraining learns, and from what."""
    source = _build_source(config, config.data.train, "data.train", ranks)
    valid = _build_source(config, config.data.valid, "data.valid", ranks) if config.data.valid else None
    objective = build_objective(config, _begin(source, goes_on, ranks))
    if config.init and not goes_on:
        _start_from(objective, config)
    return Task(objective, source, valid)


def _begin(source: ManifestSource, goes_on: bool, ranks: Ranks) -> Beginning:
    """Make what an objective may ask for before the first update."""

    def share(make: Callable[[], bytes]) -> bytes:
        return bytes.fromhex(ranks.broadcast(make().hex() if ranks.is_main else ""))

    def listen(seconds: float) -> Iterator[Batch]:
        return (batch.to(ranks.device) for batch in source.listen(seconds))

    return Beginning(goes_on, source.manifest.total_s, listen, share)


def _build_source(config: PretrainConfig, paths: list[str], key: str, ranks: Ranks) -> ManifestSource:
    is_training = key == "data.train"
    manifest = select_long_enough(select_utterances(paths, key, config.data, config.seed, is_training), config, key)
    return build_source(
        manifest,
        config.seed,
        config.model,
        config.training,
        config.data,
        max_s=config.data.max_s,
        speeds=config.data.speed_perturbation,
        is_training=is_training,
        ranks=ranks,
    )


def _start_from(objective: Objective, config: PretrainConfig) -> None:
    """Copy the weights of `init`: all of them where both have a quantizer, else its backbone.

    Raises:
        SpeechSSLError: they have other shapes than `model`.
    """
    source, module = load_model(config.init, key="init", weights=config.weights), objective.module
    assert isinstance(module, SpeechModel), "pretraining trains a SpeechModel"
    if source.pretraining is not None and module.pretraining is not None:
        load_into(module, source.state_dict())
        return
    name = config.objective.name
    _logger.warning("init=%s gives the backbone; what else objective=%s trains starts from scratch", config.init, name)
    load_backbone_into(module, source)
