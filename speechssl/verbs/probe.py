"""`speechssl probe`: what a frozen model knows of a column, by layer and mixed, beside two baselines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.checkpoints.layout import DET
from speechssl.checkpoints.model_folder import build_untrained
from speechssl.config.inference import ProbeConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_in_one_step, write_result
from speechssl.evaluation.probe_features import Labelled, limit_source, pool_states, read_usable
from speechssl.evaluation.probe_figures import Figures, FloatArray, Measure, make_measure
from speechssl.evaluation.probe_plan import Plan, load_labelled, plan_probe
from speechssl.evaluation.probe_verification import find_trials, list_paths, make_verification, plan_verification
from speechssl.evaluation.trials import Trials, read_trials, write_trials
from speechssl.interop.load import find_update, load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.verbs.frame import verb
from speechssl.verbs.output import resolve_out

_logger = logging.getLogger("speechssl")

SATURATED_SHARE = 95.0
"""A baseline above this accuracy (or below 5 % EER) leaves a model nothing to show."""

MEASURES = {"identification": "accuracy", "regression": "r2", "verification": "eer"}


@verb
def probe(config: ProbeConfig) -> dict[str, Any]:
    """Probe model, untrained encoders and log-mel statistics alike, and return the figures.

    Utterances whose audio cannot be used are left out and listed in `left_out.tsv`. Trials that were drawn are in
    `trials.txt`, what the model scores them in `scores.txt`, and DET curves in `det.json`.

    Raises:
        DataError: no column of that name, too few utterances of a label, a group on both sides of a split, or no audio
            that can be used.
    """
    sets = load_sets(config)
    device = resolve_device(config.device)
    # Before the model: `best` of a run that goes on moves, and a name for an earlier update would be a lie.
    update = find_update(config.checkpoint)
    model = load_model(config.checkpoint, device, weights=config.weights, language=config.language)
    precision = resolve_precision(config.precision, device)
    out = resolve_out(config.out, "probe", config.overwrite)
    parts, left_out = read_sets(config, sets, model)
    plan = plan_probe(config, [part.manifest for part in parts])
    trials, measure = prepare_measure(config, plan, parts, left_out, out)
    keys = ("data.train", "data.test")
    sources = [limit_source(each.manifest, config.data.max_s, key) for each, key in zip(parts, keys, strict=False)]

    def pool(which: Any) -> FloatArray:
        return np.concatenate([pool_states(which, source, config.batch_s, precision) for source in sources])

    def draw() -> Iterator[FloatArray]:
        for number in range(config.num_untrained):
            yield pool(build_untrained(model, config.seed + number))

    figures = {
        "model": measure([pool(model)]),
        "untrained": measure(draw()),
        "log_mel": measure([np.concatenate([each.log_mel for each in parts])]),
    }
    if trials is not None:
        write_trials(out / "scores.txt", *trials, scores=figures["model"].scores)
        curves = {name: dict(zip(("misses", "alarms"), each.det, strict=True)) for name, each in figures.items()}
        write_in_one_step(out / DET, json.dumps(curves))
    result = summarise(config, plan, figures)
    result |= {"num_left_out": len(left_out), "update": update, "out": str(out)}
    _log(result)
    left_out.save(out)
    write_result(out, result)
    return result


def load_sets(config: ProbeConfig) -> list[Manifest]:
    """Load `data.train`, and `data.test` where it is given, and see that they are what the task needs.

    Raises:
        DataError: as `plan_probe`, or a trial names what is not in `data.test`.
    """
    keys = {"data.train": config.data.train} | ({"data.test": config.data.test} if config.data.test else {})
    sets = [load_labelled(paths, key, config.data.where, config.label) for key, paths in keys.items()]
    plan_probe(config, sets)
    if len(sets) < 2:
        return sets
    train, test = sets
    if config.data.trials:
        read_trials(config.data.trials, test.column("id"), list_paths(test))
    known = len(set(test.column("id")) & set(train.column("id")))
    if known and config.task != "verification":
        _logger.warning("%d of %d utterances of data.test are in data.train too", known, len(test))
    return sets


def read_sets(config: ProbeConfig, sets: list[Manifest], model: SpeechModel) -> tuple[list[Labelled], LeftOut]:
    """Read both sets once, and go on with what can be used.

    Raises:
        DataError: nothing can be used.
    """
    left_out, parts = LeftOut("data.train"), []
    for manifest, key in zip(sets, ("data.train", "data.test"), strict=False):
        of_part = LeftOut(key)
        parts.append(read_usable(manifest, config.data.max_s, model.config.output_field, of_part))
        left_out.extend(of_part)
    if len(left_out):
        left_out.warn()
    return parts, left_out


def prepare_measure(
    config: ProbeConfig, plan: Plan, parts: list[Labelled], left_out: LeftOut, out: Path
) -> tuple[tuple[Trials, list[str]] | None, Measure]:
    """Say what is measured, and make the function that measures it; the trials and their ids, in verification."""
    if plan.confound:
        _logger.warning("%s", plan.confound)
    if plan.kind != "verification":
        fold = plan.folds[0]
        folds = f" in the first of {len(plan.folds)} folds" if len(plan.folds) > 1 else ""
        apart = f", no {plan.unit} in both" if plan.is_apart else ""
        told = (plan.kind, config.label, len(fold.train), len(fold.test), folds, apart)
        _logger.info("%s of %s: learnt from %d utterances, tested on %d%s%s", *told)
        return None, make_measure(config, plan)
    last = parts[-1].manifest
    test = last if len(parts) > 1 else last.select(plan.folds[0].test)
    trials, ids = find_trials(config, test, left_out), test.column("id")
    if not config.data.trials:
        write_trials(out / "trials.txt", trials, ids)
    have_sex = all(part.manifest.has("sex") for part in parts)
    sexes = [sex for part in parts for sex in part.manifest.column("sex")] if have_sex else None
    return (trials, ids), make_verification(config, plan_verification(config, plan, trials, sexes))


def summarise(config: ProbeConfig, plan: Plan, figures: dict[str, Figures]) -> dict[str, Any]:
    """Collect the figures of the JSON line."""
    name = MEASURES[plan.kind]
    model, baselines = figures["model"], {key: figures[key] for key in ("log_mel", "untrained")}
    tested = np.concatenate([fold.test for fold in plan.folds])
    result: dict[str, Any] = {
        "task": plan.kind,
        "label": config.label,
        name: model.mixed,
        f"{name}_interval": model.interval.to_dict(),
        **model.more,
        "layers": [{"layer": layer, name: value} for layer, value in enumerate(model.layers)],
        "layer_weights": model.weights,
        "lr": model.rates,
        "baselines": {
            key: {name: value.mixed, f"{name}_interval": value.interval.to_dict(), **value.more}
            for key, value in baselines.items()
        },
        "saturated": [key for key, value in baselines.items() if _is_saturated(value.mixed, name)],
        "num_speakers": model.interval.count if name == "eer" else len({plan.groups[row] for row in tested}),
        "num_folds": len(plan.folds),
        "num_train_utterances": round(float(np.mean([len(fold.train) for fold in plan.folds]))),
        "num_test_utterances": len(tested),
        "confound": plan.confound,
        "checkpoint": config.checkpoint,
    }
    untrained = figures["untrained"]
    result["baselines"]["untrained"] |= {
        "layers": [{"layer": layer, name: value} for layer, value in enumerate(untrained.layers)],
        "seeds": untrained.seeds,
    }
    if not model.interval.reliable:
        result["speakers"] = model.by_group
    return result


def _is_saturated(value: float, name: str) -> bool:
    return value < 100 - SATURATED_SHARE if name == "eer" else value > SATURATED_SHARE


def _log(result: dict[str, Any]) -> None:
    """Log the figures of each layer, and of each speaker where they are few."""
    name = MEASURES[result["task"]]
    for row in result["layers"]:
        _logger.info("layer %-26d %6.2f %%", row["layer"], row[name])
    unit = "error" if name == "r2" else "%"
    for speaker, value in result.get("speakers", {}).items():
        _logger.info("%s %-24s %6.2f %s", result[f"{name}_interval"]["unit"], speaker, value, unit)
