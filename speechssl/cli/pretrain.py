"""`speechssl pretrain`: unlabelled speech → model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from speechssl.audio import SAMPLE_RATE
from speechssl.cli.training_run import choose_precision, open_folder, seed_weights, train
from speechssl.config import PretrainConfig
from speechssl.data.dataset import ReadOptions
from speechssl.data.manifest import Manifest
from speechssl.interop.checkpoint import load_backbone_into
from speechssl.interop.load import load_model
from speechssl.model.lengths import compute_num_frames
from speechssl.model.masking import compute_min_frames
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.training.distributed import Ranks, join_ranks
from speechssl.training.small_batch import describe_departure
from speechssl.training.sources import ManifestSource, build_source, describe_plan, leave_out, select_utterances

_logger = logging.getLogger("speechssl")


def run(config: PretrainConfig) -> dict[str, Any]:
    """Pretrain, or go on where an earlier run of the same command stopped."""
    with join_ranks(config.device) as ranks:
        return _run(config, ranks)


def _run(config: PretrainConfig, ranks: Ranks) -> dict[str, Any]:
    folder, result = open_folder(config, ranks)
    if result is not None:
        _logger.info("%s is finished; raise training.max_updates to go on", folder)
        return result
    precision = choose_precision(config, ranks)
    seed_weights(config.seed)
    updates = config.training.max_updates
    warmup = round(config.training.warmup_share * updates)
    objective = ContrastiveObjective(config.model, config.objective, config.seed, updates, warmup)
    departure = describe_departure(config.model, config.training)
    if departure and not config.init:
        _logger.warning(departure)
    if config.init:
        _start_from(objective, config.init, config.weights)
    source = _build_source(config, objective, config.data.train, "data.train", ranks)
    valid = _build_source(config, objective, config.data.valid, "data.valid", ranks) if config.data.valid else None
    _logger.info(describe_plan(source, config.training, "data.train"))
    return train(config, folder, objective, source, valid, ranks, precision)


def _build_source(
    config: PretrainConfig, objective: ContrastiveObjective, paths: list[str], key: str, ranks: Ranks
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
        is_training=is_training,
        ranks=ranks,
    )


def select_long_enough(manifest: Manifest, config: PretrainConfig, key: str) -> Manifest:
    """Leave out utterances shorter than `data.min_s`, or with too few frames for the mask's least spans.

    Raises:
        DataError: none is long enough.
    """
    samples = manifest.num_samples_16k
    frames = compute_num_frames(samples, config.model.conv_kernels, config.model.conv_strides)
    keep = (samples >= config.data.min_s * SAMPLE_RATE) & (frames >= compute_min_frames(config.model.mask))
    reason = f"shorter than data.min_s={config.data.min_s:g} s or too short to mask"
    return leave_out(manifest, np.asarray(keep), key, reason)


def _start_from(objective: ContrastiveObjective, init: str, weights: str) -> None:
    """Copy the weights of a checkpoint: all of them where it was pretrained, else its backbone."""
    source = load_model(init, key="init", weights=weights)
    if source.pretraining is not None:
        objective.module.load_state_dict(source.state_dict())
        return
    _logger.warning("init=%s has no quantizer: quantizer and projections start afresh", init)
    load_backbone_into(objective.speech_model, source)
