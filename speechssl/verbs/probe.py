"""`speechssl probe`: what a frozen model knows about speakers, by layer and mixed, beside two baselines."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from speechssl.checkpoints.model_folder import build_untrained
from speechssl.config.inference import ProbeConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_result
from speechssl.errors import DataError
from speechssl.evaluation.probe_features import Labelled, limit_source, pool_states, read_usable, split_stratified
from speechssl.evaluation.probe_figures import Figures, Pooled, list_paths, make_measure
from speechssl.evaluation.verification import read_trials
from speechssl.interop.load import find_update, load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.verbs.frame import verb
from speechssl.verbs.output import resolve_out

_logger = logging.getLogger("speechssl")

TEST_SHARE = 0.2
SATURATED_SHARE = 95.0
"""A baseline above this accuracy (or below 5 % EER) leaves a model nothing to show."""


@verb
def probe(config: ProbeConfig) -> dict[str, Any]:
    """Probe model, untrained encoder and log-mel statistics alike, and return the figures.

    Utterances whose audio cannot be used are left out and listed in `left_out.tsv`.

    Raises:
        DataError: no `speaker` column, too few utterances of a speaker, or no audio that can be used.
    """
    sets = load_sets(config)
    device = resolve_device(config.device)
    # Before the model: `best` of a run that goes on moves, and a name for an earlier update would be a lie.
    update = find_update(config.checkpoint)
    model = load_model(config.checkpoint, device, weights=config.weights, language=config.language)
    precision = resolve_precision(config.precision, device)
    out = resolve_out(config.out, "probe", config.overwrite)
    train, test, left_out = read_sets(config, *sets, model)
    measure = make_measure(config, train.manifest, test.manifest, left_out)
    tested = "data.test" if config.data.test else "data.train"
    parts = ((train.manifest, "data.train"), (test.manifest, tested))
    sources = [limit_source(manifest, config.data.max_s, key) for manifest, key in parts]
    untrained = build_untrained(model, config.seed)

    def pool(which: Any) -> Pooled:
        first, second = (pool_states(which, source, config.batch_s, precision) for source in sources)
        return first, second

    figures = {
        "model": measure(pool(model)),
        "untrained": measure(pool(untrained)),
        "log_mel": measure((train.log_mel, test.log_mel)),
    }
    result = summarise(config, figures, train.manifest, test.manifest)
    result |= {"num_left_out": len(left_out), "update": update, "out": str(out)}
    _log(result)
    left_out.save(out)
    write_result(out, result)
    return result


def load_sets(config: ProbeConfig) -> tuple[Manifest, Manifest | None]:
    """Load the two sets; None without `data.test`: the first is to be split.

    Raises:
        DataError: as `check_sets`, or a trial names what is not in `data.test`.
    """
    train = _load_labelled(config.data.train, "data.train", config.data.where)
    test = _load_labelled(config.data.test, "data.test", config.data.where) if config.data.test else None
    check_sets(config, train, test)
    if test is not None and config.data.trials:
        read_trials(config.data.trials, test.column("id"), list_paths(test))
    known = len(set(test.column("id")) & set(train.column("id"))) if test is not None else 0
    if known:
        _logger.warning("%d of %d utterances of data.test are in data.train too", known, len(test or ()))
    return train, test


def check_sets(config: ProbeConfig, train: Manifest, test: Manifest | None) -> None:
    """Make sure that the sets have the speakers that the task needs.

    Raises:
        DataError: the first has one speaker alone, or one utterance of a speaker and is to be split; or a speaker of
            the second is not in the first (identification).
    """
    speakers = train.column("speaker")
    if len(set(speakers)) < 2:
        raise DataError(f"`data.train` must have two speakers or more, but has {speakers[0]} alone")
    if test is None:
        lone = next((name for name, count in Counter(speakers).items() if count < 2), None)
        if lone is not None:
            raise DataError(f"`data.train` must have two utterances of each speaker to be split, but has one of {lone}")
        return
    unknown = sorted(set(test.column("speaker")) - set(speakers))
    if config.task == "identification" and unknown:
        raise DataError(f"`data.test` must have the speakers of data.train, but has {', '.join(unknown[:5])}")


def read_sets(
    config: ProbeConfig, train: Manifest, test: Manifest | None, model: SpeechModel
) -> tuple[Labelled, Labelled, LeftOut]:
    """Read both sets once, and go on with what can be used; without `data.test`, split by utterance.

    Every speaker is in both parts of a split.

    Raises:
        DataError: as `check_sets`, of what is left; or nothing can be used.
    """
    shortest = model.config.output_field
    left_out = LeftOut("data.train")
    first = read_usable(train, config.data.max_s, shortest, left_out)
    second = None
    if test is not None:
        left_out_of_test = LeftOut("data.test")
        second = read_usable(test, config.data.max_s, shortest, left_out_of_test)
        left_out.extend(left_out_of_test)
    if len(left_out):
        left_out.warn()
        check_sets(config, first.manifest, second.manifest if second else None)
    if second is not None:
        return first, second, left_out
    kept, held = split_stratified(first.manifest.column("speaker"), TEST_SHARE, config.seed)
    _logger.info("data.test is not given: %d utterances of the same speakers are held out", len(held))
    return first.select(kept), first.select(held), left_out


def _load_labelled(paths: list[str], key: str, where: str) -> Manifest:
    """Load the rows that have a speaker, and say how many have none."""
    manifest = load_manifests(paths, key).filter_where(where)
    manifest.require("speaker", key)
    kept = [row for row, name in enumerate(manifest.column("speaker")) if name]
    if len(kept) < len(manifest):
        missing = len(manifest) - len(kept)
        _logger.warning("%d of %d utterances of `%s` have no speaker and are left out", missing, len(manifest), key)
    return manifest.select(kept)


def summarise(config: ProbeConfig, figures: dict[str, Figures], train: Manifest, test: Manifest) -> dict[str, Any]:
    """Collect the figures of the JSON line."""
    name = "accuracy" if config.task == "identification" else "eer"
    model, baselines = figures["model"], {key: figures[key] for key in ("log_mel", "untrained")}
    result: dict[str, Any] = {
        "task": config.task,
        name: model.mixed,
        f"{name}_interval": model.interval.to_dict(),
        "layers": [{"layer": layer, name: value} for layer, value in enumerate(model.layers)],
        "layer_weights": model.weights,
        "baselines": {
            key: {name: value.mixed, f"{name}_interval": value.interval.to_dict()} for key, value in baselines.items()
        },
        "saturated": [key for key, value in baselines.items() if _is_saturated(value.mixed, name)],
        "num_speakers": len(set(test.column("speaker"))) if name == "accuracy" else model.interval.count,
        "num_train_utterances": len(train),
        "num_test_utterances": len(test),
        "checkpoint": config.checkpoint,
    }
    states = figures["untrained"].layers
    result["baselines"]["untrained"]["layers"] = [{"layer": k, name: value} for k, value in enumerate(states)]
    if not model.interval.reliable:
        result["speakers"] = model.by_speaker
    return result


def _is_saturated(value: float, name: str) -> bool:
    return value > SATURATED_SHARE if name == "accuracy" else value < 100 - SATURATED_SHARE


def _log(result: dict[str, Any]) -> None:
    """Log the figures of each layer, and of each speaker where they are few."""
    name = "accuracy" if result["task"] == "identification" else "eer"
    for row in result["layers"]:
        _logger.info("layer %-26d %6.2f %%", row["layer"], row[name])
    for speaker, value in result.get("speakers", {}).items():
        _logger.info("speaker %-24s %6.2f %%", speaker, value)
