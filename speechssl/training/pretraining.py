"""What a pretraining learns, and from what."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from itertools import chain

from speechssl.checkpoints.model_folder import load_backbone_into, load_into
from speechssl.config.verbs import PretrainConfig
from speechssl.data.dataset import ReadOptions
from speechssl.data.sampler import UpdatePlanner
from speechssl.interop.load import load_model
from speechssl.objectives.masked_codes import MaskedCodesObjective
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.run import Task
from speechssl.training.small_batch import describe_departure
from speechssl.training.sources import (
    ManifestSource,
    build_source,
    select_long_enough,
    select_utterances,
)

_logger = logging.getLogger("speechssl")

PretrainObjective = ContrastiveObjective | MaskedCodesObjective


def build_task(config: PretrainConfig, ranks: Ranks, goes_on: bool) -> Task:
    """Build what a pretraining learns, and from what."""
    objective = build_objective(config)
    departure = describe_departure(config.model, config.training)
    if departure and not config.init and config.objective.name == "wav2vec2":
        _logger.warning(departure)
    if config.init and not goes_on:
        _start_from(objective, config.init, config.weights)
    source = _build_source(config, objective, config.data.train, "data.train", ranks)
    valid = _build_source(config, objective, config.data.valid, "data.valid", ranks) if config.data.valid else None
    if isinstance(objective, MaskedCodesObjective) and objective.needs_fit and not goes_on:
        _fit_codes(objective, source, config, ranks)
    return Task(objective, source, valid)


def build_objective(config: PretrainConfig) -> PretrainObjective:
    """Build the objective that `objective.name` says, with fresh weights."""
    updates = config.training.planned_updates
    warmup = round(config.training.warmup_share * updates)
    match config.objective.name:
        case "masked_codes":
            return MaskedCodesObjective(config.model, config.objective, config.seed, warmup)
        case "wav2vec2":
            return ContrastiveObjective(config.model, config.objective, config.seed, updates, warmup)
        case name:
            raise AssertionError(f"unknown objective {name}")


def _fit_codes(objective: MaskedCodesObjective, source: ManifestSource, config: PretrainConfig, ranks: Ranks) -> None:
    """Fit the codes as a run begins, on rank 0 for all; a run that goes on takes those of its checkpoint."""
    text = ""
    if ranks.is_main:
        heard_s = min(config.objective.fit_s, source.manifest.total_s)
        _logger.info("k-means: fitting to %g s of data.train", round(heard_s, 1))
        # What one process alone would hear in its first updates: a random sample, whatever the number of ranks.
        alone = UpdatePlanner(source.manifest.num_samples_16k, replace(source.planner.config, rank=0, num_ranks=1))
        last = math.ceil(min(config.objective.fit_s / config.training.update_s, alone.updates_per_epoch))
        batches = chain.from_iterable(replace(source, planner=alone)(1, last))
        text = objective.fit(batch.to(ranks.device) for batch in batches if batch.plan.is_counted).hex()
    objective.set_codes(bytes.fromhex(ranks.broadcast(text)))


def _build_source(
    config: PretrainConfig, objective: PretrainObjective, paths: list[str], key: str, ranks: Ranks
) -> ManifestSource:
    is_training = key == "data.train"
    manifest = select_long_enough(select_utterances(paths, key, config.data, config.seed, is_training), config, key)
    network = config.model
    options = ReadOptions(
        config.seed, network.normalize_waveform, config.data.cache_dir, is_training, network.waveform_epsilon
    )
    return build_source(
        manifest,
        objective.make_prepare(),
        options,
        config.training,
        config.data,
        max_s=config.data.max_s,
        speeds=config.data.speed_perturbation,
        is_training=is_training,
        ranks=ranks,
    )


def _start_from(objective: PretrainObjective, init: str, weights: str) -> None:
    """Copy the weights of a checkpoint: all of them where the contrastive task goes on, else its backbone.

    Raises:
        SpeechSSLError: they have other shapes than `model`.
    """
    source = load_model(init, key="init", weights=weights)
    if isinstance(objective, MaskedCodesObjective):
        _logger.warning("init=%s: the backbone goes on, codes and what predicts them start afresh", init)
    elif source.pretraining is not None:
        load_into(objective.module, source.state_dict())
        return
    else:
        _logger.warning("init=%s has no quantizer: quantizer and projections start afresh", init)
    load_backbone_into(objective.module, source)
