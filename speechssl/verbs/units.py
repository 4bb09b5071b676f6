"""`speechssl units`: model + audio → discrete units, and the clusters that they are named by."""

from __future__ import annotations

import logging
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechssl.checkpoints.clusters import (
    Clusters,
    digest_backbone,
    find_nearest,
    fit_centroids,
    read_clusters,
    write_clusters,
)
from speechssl.config.inference import UnitsConfig
from speechssl.config.knobs import check
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_result
from speechssl.errors import CheckpointError, ConfigError
from speechssl.inference.embed import Embedder, choose_layers
from speechssl.inference.source import Source
from speechssl.inference.units import (
    SUFFIXES,
    Row,
    UnitWriter,
    choose_sample,
    collect_states,
    find_units,
    merge_repeats,
)
from speechssl.interop.load import load_model
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.losses import compute_entropy
from speechssl.verbs.frame import verb
from speechssl.verbs.output import resolve_out

CLUSTERS = "clusters.safetensors"
"""The clusters in a folder; beside a file `x.tsv` they are `x.clusters.safetensors`."""

DEFAULT_CODES = 100
"""GSLM's middle size (50, 100 or 200), and that of HuBERT's first iteration."""

COUNTED_AT_ONCE = 10_000
"""Frames whose distances to all clusters are held at once."""

_logger = logging.getLogger("speechssl")


@verb
def units(config: UnitsConfig) -> dict[str, Any]:
    """Name the units of every utterance and return what was written where; what cannot be used is left out and listed.

    Raises:
        CheckpointError: `codes` is no file of clusters, or layer=quantizer and the model has none.
        ConfigError: `layer` or `num_codes` does not fit the model, the audio or `codes`, or `out` has another suffix.
        DataError: nothing matches `audio`, or no file can be used.
    """
    device = resolve_device(config.device)
    model = load_model(config.checkpoint, device, weights=config.weights, language=config.language)
    clusters = _read_codes(config, model) if config.codes else None
    layer = _choose_layer(config, model, clusters)
    is_quantizer = layer == "quantizer"
    choice = choose_layers("last" if is_quantizer else layer, model.num_layers)
    precision = resolve_precision(config.precision, device)
    embedder = Embedder(model, choice, "frames", config.batch_s, config.window_s, precision)
    left_out = LeftOut("audio")
    manifest = expand_audio(config.audio, left_out=left_out, channel=config.channel)
    out, kept = _resolve_files(config, not is_quantizer and clusters is None)
    if kept is not None:
        clusters = _fit(config, embedder, manifest, left_out)
    quantizer = model.config.quantizer
    size = (1, len(clusters.centroids)) if clusters else (quantizer.num_groups, quantizer.num_codes)
    counts, num_units = np.zeros(size, dtype=np.int64), 0
    # A folder of its own, so that whatever was begun goes with it, however the writing ends.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        begun = Path(scratch) / out.name
        source = Source.from_manifest(manifest, left_out)
        with closing(UnitWriter(begun, len(counts), config.merge)) as writer:
            for index, found in find_units(embedder, source, clusters):
                counts += [np.bincount(codes, minlength=counts.shape[1]) for codes in found.T]
                row = Row(source[index], *(merge_repeats(found) if config.merge else (found, None)))
                writer.write(row)
                num_units += len(row.units)
        if clusters is not None and kept is not None:
            write_clusters(begun.with_name(kept.name), clusters)
            begun.with_name(kept.name).replace(kept)
        begun.replace(out)
    left_out.save(out if Path(config.out).suffix else out.parent)
    used = left_out.drop_from(manifest)
    result: dict[str, Any] = {
        "out": str(out),
        "clusters": str(kept) if kept else config.codes or None,
        "num_utterances": len(used),
        "num_left_out": len(left_out),
        "hours": used.total_s / 3600,
        "layer": "quantizer" if is_quantizer else choice.names[0],
        "num_codes": size[1],
        "num_frames": int(counts[0].sum()),
        "num_units": num_units,
        "num_used": [int((row > 0).sum()) for row in counts],
        "perplexity": [2.0 ** compute_entropy(torch.from_numpy(row).double()) for row in counts],
        "checkpoint": config.checkpoint,
    }
    if not Path(config.out).suffix:
        write_result(out.parent, result)
    return result


def _read_codes(config: UnitsConfig, model: SpeechModel) -> Clusters:
    clusters = read_clusters(config.codes, "codes")
    clusters.check_model(model, "checkpoint", config.checkpoint)
    clusters.check_number(config.num_codes, "num_codes")
    must = f"{clusters.layer}, which {config.codes} has clusters of"
    check(config.layer in ("", clusters.layer) or str(config.layer) == clusters.layer, "layer", must, config.layer)
    return clusters


def _choose_layer(config: UnitsConfig, model: SpeechModel, clusters: Clusters | None) -> int | str:
    """Find the one layer that is meant; what a file of clusters says is checked like what a user does."""
    if config.layer == "quantizer":
        if model.pretraining is None:
            must = "`checkpoint` must be a model of the contrastive task with its quantizer for layer=quantizer"
            raise CheckpointError(f"{must}, but {config.checkpoint} has none")
        return "quantizer"
    layer = clusters.layer if clusters is not None else "last" if config.layer == "" else config.layer
    layer = int(layer) if isinstance(layer, str) and layer.isdecimal() else layer
    is_number = isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer <= model.num_layers
    must = f"one layer: 0 to {model.num_layers}, mean, last or quantizer"
    check(is_number or layer in ("mean", "last"), "layer", must, layer)
    return layer


def _resolve_files(config: UnitsConfig, fits: bool) -> tuple[Path, Path | None]:
    """Find the file to write, `out` itself or `units.tsv` in the folder that it names, and that of new clusters."""
    if suffix := Path(config.out).suffix:
        check(suffix in SUFFIXES, "out", f"a folder, or a file that ends in {', '.join(SUFFIXES)}", config.out)
        out = resolve_out(config.out, "units", config.overwrite, is_file=True)
        kept = out.with_name(f"{out.stem}.{CLUSTERS}")
    else:
        folder = resolve_out(config.out, "units", config.overwrite)
        out, kept = resolve_out(str(folder / "units.tsv"), "units", config.overwrite, is_file=True), folder / CLUSTERS
    if fits and kept.exists() and not config.overwrite:
        raise ConfigError(
            f"`out` must be a new place, but {kept} is there (overwrite=true replaces it, codes={kept} takes it)"
        )
    return out, kept if fits else None


def _fit(config: UnitsConfig, embedder: Embedder, manifest: Manifest, left_out: LeftOut) -> Clusters:
    sample = choose_sample(manifest, config.fit_s, config.seed)
    _logger.info("k-means: fitting to %d of %d utterances (fit_s=%g)", len(sample), len(manifest), config.fit_s)
    states = collect_states(embedder, Source.from_manifest(sample, left_out), config.fit_s)
    num_codes = config.num_codes or DEFAULT_CODES
    centroids = fit_centroids(states, num_codes, config.seed, section="")
    parts, codes = torch.split(torch.from_numpy(states), COUNTED_AT_ONCE), torch.from_numpy(centroids)
    counts = torch.bincount(torch.cat([find_nearest(part, codes) for part in parts]), minlength=num_codes).numpy()
    assert isinstance(embedder.model, SpeechModel)
    digest = digest_backbone(embedder.model)
    return Clusters(centroids, counts, embedder.choice.names[0], config.checkpoint, digest, config.seed)
