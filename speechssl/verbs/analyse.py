"""`speechssl analyse`: model + speech → what each layer is like, and how alike layers are, with labels and without."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speechssl.config.analysis import AnalyseConfig
from speechssl.config.knobs import check
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.data.segments import read_segments
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_in_one_step, write_result
from speechssl.errors import DataError
from speechssl.evaluation.analysis import (
    compare_layers,
    compute_cca_chance,
    describe_classes,
    describe_layers,
    describe_units,
)
from speechssl.evaluation.probe_features import limit_source
from speechssl.inference.embedder import Embedder, choose_layers
from speechssl.inference.sampling import Plan, Sample, label_frames, plan_frames, sample_log_mel, sample_states
from speechssl.inference.source import FloatArray, Source
from speechssl.inference.units import choose_sample
from speechssl.interop.load import find_update, load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.printable import make_printable
from speechssl.progress import track
from speechssl.verbs.frame import verb
from speechssl.verbs.output import replacing_result, resolve_out

LAYERS_NAME = "layers.tsv"

LEAST_FRAMES = 100

DECIMALS = 4
"""Of CKA in the result: more than a sample of frames tells."""

_logger = logging.getLogger("speechssl")


@verb
def analyse(config: AnalyseConfig) -> dict[str, Any]:
    """Look at the frames of some utterances in every layer, and return the figures.

    `out` gets `result.json`, `layers.tsv` and, where audio cannot be used, `left_out.tsv`; `report` draws it.

    Raises:
        DataError: no audio can be used, it has too few frames, or `label` or `segments` give one class alone.
    """
    manifest = _load(config)
    segments = read_segments(config.segments, config.tier) if config.segments else None
    device = resolve_device(config.device)
    update = find_update(config.checkpoint)
    models = [load_model(config.checkpoint, device, weights=config.weights, language=config.language)]
    if config.against:
        models.append(load_model(config.against, device, key="against"))
    out = resolve_out(config.out, "analyse", config.overwrite)
    left_out = LeftOut("data.test")
    chosen = choose_sample(manifest, config.sample_s, config.seed)
    source = limit_source(chosen, config.data.max_s, "data.test", left_out)
    plan, samples, log_mel = _listen(config, models, source)
    kept = sorted(set.intersection(*(set(sample.frames) for sample in (*samples, log_mel))))
    left_out.require_others(len(kept))
    used = chosen.select(kept)
    layers, bands = [sample.stack(kept) for sample in samples], log_mel.stack(kept)[0]
    _check_frames(config, len(bands), max(states.shape[1] for model in layers for states in model))
    rows = [describe_layers(states, bands, config.weighted) for states in layers]
    reference = describe_layers([bands], bands, config.weighted)[0]
    classes = _find_classes(config, used) if config.label else None
    labels = label_frames(segments, plan, source.ids, kept) if segments else None
    for described, sample in zip((*rows, [reference]), (*samples, log_mel), strict=True):
        _add_classes(described, sample, kept, classes)
        _add_units(config, described, sample.stack(kept), labels)
    cka = [compare_layers(layers[0]), *(compare_layers(layers[0], other) for other in layers[1:])]
    for row, likeness in zip(rows[0], np.diagonal(cka[-1]) if config.against else (), strict=False):
        row["cka_against"] = float(likeness)
    result: dict[str, Any] = {
        "layers": rows[0],
        "log_mel": {name: value for name, value in reference.items() if name not in ("layer", "cca_log_mel")},
        "cca_chance": compute_cca_chance(layers[0][-1], bands, config.weighted, config.seed),
        "cka": _round(cka[0]),
        "collapsed": [row["layer"] for row in rows[0] if row["collapsed"]],
    }
    if config.against:
        result["against"] = {"checkpoint": config.against, "layers": rows[1], "cka": _round(cka[1])}
    if config.label:
        result["label"] = {"column": config.label, **_count_classes(used.column(config.label))}
    if labels:
        known = [label for label in labels if label is not None]
        facts = {"segments": config.segments, "num_codes": config.num_codes, "num_labelled": len(known)}
        result["units"] = {**facts, **_count_classes(known)}
    result |= {
        "weighted": config.weighted,
        "num_utterances": len(used),
        "num_left_out": len(left_out),
        "num_frames": len(bands),
        "checkpoint": config.checkpoint,
        "update": update,
        "data": [str(Path(path)) for path in config.data.test],
        "out": str(out),
    }
    with replacing_result(out):
        write_in_one_step(out / LAYERS_NAME, _format_table(result))
        left_out.save(out)
        write_result(out, result)
    _warn(config, rows)
    return result


def _listen(config: AnalyseConfig, models: Sequence[SpeechModel], source: Source) -> tuple[Plan, list[Sample], Sample]:
    """Choose frames, and give them of each model and of log-mel bands."""
    precision = resolve_precision(config.precision, models[0].device)
    embedders = [
        Embedder(model, choose_layers("all", model.num_layers), "frames", config.batch_s, config.window_s, precision)
        for model in models
    ]
    for embedder in embedders:
        source.leave_out_short(embedder.model.config.output_field)
    plan = plan_frames(source, embedders[0], config.num_frames, config.seed)
    samples = [sample_states(embedder, source, plan) for embedder in embedders]
    return plan, samples, sample_log_mel(source, plan)


def _load(config: AnalyseConfig) -> Manifest:
    """Load the rows that have the label that is asked for, and say how many have none."""
    manifest = load_manifests(config.data.test, "data.test").filter_where(config.data.where)
    if not config.label:
        return manifest
    manifest.require(config.label, "data.test")
    kept = [row for row, value in enumerate(manifest.column(config.label)) if value not in (None, "")]
    if len(kept) < len(manifest):
        missing = len(manifest) - len(kept)
        _logger.warning("%d of %d utterances have no %s and are left out", missing, len(manifest), config.label)
    return manifest.select(kept)


def _check_frames(config: AnalyseConfig, num_frames: int, dim: int) -> None:
    """Say where statistics of so many dimensions want more frames.

    Raises:
        DataError: there are too few to say anything.
    """
    if num_frames < LEAST_FRAMES:
        raise DataError(f"`data.test` must have {LEAST_FRAMES} frames or more, but has {num_frames}")
    if num_frames < 2 * dim:
        _logger.warning(
            "%d frames of %d dimensions: effective ranks come out too low and CCA too high (num_frames=%d, "
            "sample_s=%g; more of both help)",
            num_frames, dim, config.num_frames, config.sample_s,
        )  # fmt: skip


def _find_classes(config: AnalyseConfig, used: Manifest) -> Callable[[FloatArray], dict[str, Any]]:
    """Make the function that describes the classes of utterances in their means.

    Where the label is not the speaker, neighbours of the same speaker do not count: they sound alike in any case.

    Raises:
        DataError: there is one class alone.
    """
    labels = [str(value) for value in used.column(config.label)]
    if len(set(labels)) < 2:
        raise DataError(f"`label` must be a column with two values or more, but {config.label} has {labels[0]} alone")
    speakers = used.column("speaker") if used.has("speaker") else None
    groups = None
    if config.label != "speaker" and speakers is not None and all(speakers):
        groups, owners = speakers, defaultdict(set)
        for label, speaker in zip(labels, speakers, strict=True):
            owners[label].add(speaker)
        lone = sorted(label for label, found in owners.items() if len(found) == 1)
        if lone:
            _logger.warning(
                "%d of %d values of %s have one speaker, such as %s: no neighbour of another speaker is right there",
                len(lone), len(owners), config.label, lone[0],
            )  # fmt: skip
    return lambda means: describe_classes(means, labels, groups, speakers, config.num_resamples, config.seed)


def _add_classes(
    rows: Sequence[dict[str, Any]],
    sample: Sample,
    kept: Sequence[int],
    classes: Callable[[FloatArray], dict[str, Any]] | None,
) -> None:
    for number, row in enumerate(rows if classes else ()):
        assert classes is not None
        row |= classes(np.stack([sample.means[index][number] for index in kept]))


def _add_units(
    config: AnalyseConfig,
    rows: Sequence[dict[str, Any]],
    layers: Sequence[FloatArray],
    labels: Sequence[str | None] | None,
) -> None:
    """Add how well the units of each layer know the labels of frames.

    Raises:
        ConfigError: there are fewer frames than units.
        DataError: no frame has a label, or all have one.
    """
    if labels is None:
        return
    check(config.num_codes <= len(labels), "num_codes", f"at most the {len(labels)} frames", config.num_codes)
    if len({label for label in labels if label is not None}) < 2:
        has = "one" if any(labels) else "none, by the ids there"
        raise DataError(
            f"`segments` must give frames of data.test two labels or more, but {config.segments} gives {has}"
        )
    for row, states in zip(track(rows, "units", len(rows), "layers"), layers, strict=True):
        row |= describe_units(states, labels, config.num_codes, config.seed)


def _count_classes(labels: Sequence[Any]) -> dict[str, Any]:
    """Count the classes, and give what always naming the most frequent gets."""
    counts = Counter(map(str, labels))
    return {"num_values": len(counts), "majority": 100 * max(counts.values()) / len(labels)}


def _round(cka: npt.NDArray[np.float64]) -> list[list[float]]:
    return [[round(value, DECIMALS) for value in row] for row in cka.tolist()]


def _format_table(result: dict[str, Any]) -> str:
    """Write a line a layer of each model, and one of log-mel bands; what is not a number is empty."""
    parts = [("checkpoint", row) for row in result["layers"]]
    parts += [("against", row) for row in result.get("against", {"layers": []})["layers"]]
    parts.append(("log_mel", {"layer": "", **result["log_mel"]}))
    rows = []
    for of, row in parts:
        interval = row.get("neighbour_accuracy_interval", {})
        ends = {f"neighbour_accuracy_{end}": interval[end] for end in ("low", "high") if end in interval}
        rows.append({"of": of, **row, **ends})
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if not name.endswith("_interval")]

    def write(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}" if math.isfinite(value) else ""
        return "" if value is None else str(value).lower() if isinstance(value, bool) else make_printable(str(value))

    return "".join("\t".join(line) + "\n" for line in [names, *([write(row.get(n)) for n in names] for row in rows)])


def _warn(config: AnalyseConfig, rows: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Name the layers that have collapsed."""
    for name, described in zip((config.checkpoint, config.against), rows, strict=False):
        for row in described:
            if row["collapsed"]:
                _logger.warning(
                    "%s: layer %d has collapsed: effective rank %.1f of %d, and %.2g %% of the mean square differs "
                    "between frames",
                    name, row["layer"], row["rank"], row["dim"], 100 * row["spread"],
                )  # fmt: skip
