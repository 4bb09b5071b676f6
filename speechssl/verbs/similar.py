"""`speechssl similar`: embeddings + a clip or an id → the nearest rows by cosine."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechssl.config.analysis import SimilarConfig
from speechssl.config.knobs import check, check_choice
from speechssl.data.files import expand_audio
from speechssl.devices import resolve_device
from speechssl.durable import write_in_one_step, write_result
from speechssl.errors import DataError
from speechssl.inference.embedder import POOLINGS, Embedder, choose_layers
from speechssl.inference.embedding_reading import Embeddings, read_embeddings
from speechssl.inference.neighbours import find_neighbours
from speechssl.inference.source import Source
from speechssl.interop.load import load_for_inference
from speechssl.parsing import show
from speechssl.printable import escape_field, format_columns, make_printable
from speechssl.verbs.frame import verb
from speechssl.verbs.output import STDOUT, print_line, resolve_out

SUFFIXES = (".tsv", ".parquet")

_logger = logging.getLogger("speechssl")


@verb
def similar(config: SimilarConfig) -> dict[str, Any]:
    """Find the rows nearest to one of them, or to a clip, and print or write them.

    A clip is embedded as the rows were, by what the metadata of Parquet says; keys that are given come first. Of an id
    with several rows (segments, frames) their mean is asked for, and none of them is an answer.

    Raises:
        ConfigError: the layer is not said, or neither the metadata nor `checkpoint` say how to embed a clip.
        DataError: the file is no embeddings, or `query` is neither an id nor audio.
    """
    out = _resolve_file(config)
    embeddings = _choose_rows(config, read_embeddings(config.embeddings))
    ids = embeddings.rows.column("id")
    own = np.flatnonzero(pc.equal(ids, config.query).to_numpy())
    query = _average(config, embeddings, own) if len(own) else _embed(config, embeddings)
    start = time.monotonic()
    found = find_neighbours(embeddings.vectors, query, config.top, own)
    seconds = time.monotonic() - start
    if found.num_without:
        _logger.warning(
            "%d of %d embeddings have no direction (zeros, or values that are not finite) and are left out",
            found.num_without, len(ids),
        )  # fmt: skip
    table = embeddings.rows.take(found.rows)
    table = table.add_column(0, "similarity", pa.array(found.cosines, pa.float32()))
    table = table.add_column(0, "rank", pa.array(np.arange(1, len(found.rows) + 1)))
    are_parts = len(pc.unique(ids)) < len(ids)
    if out is None:
        _print(table.drop_columns(["layer"] if are_parts else ["layer", "start_s", "end_s"]))
    elif out.suffix == ".parquet":
        pq.write_table(table, out)
    else:
        write_in_one_step(out, "".join(f"{line}\n" for line in _format_lines(table)))
    result = {
        "query": config.query,
        "is_id": bool(len(own)),
        "neighbours": table.drop_columns(["rank", "layer"]).to_pylist(),
        "num_embeddings": len(ids),
        "dim": embeddings.vectors.shape[1],
        "layer": table.column("layer")[0].as_py() if len(table) else None,
        "seconds": seconds,
        "embeddings": config.embeddings,
        "out": str(out or STDOUT),
    }
    if out and not Path(config.out).suffix:
        write_result(out.parent, result)
    return result


def _resolve_file(config: SimilarConfig) -> Path | None:
    """Find the table to write, `out` itself or `similar.tsv` in the folder that it names; None prints."""
    if not config.out:
        return None
    if suffix := Path(config.out).suffix:
        check(suffix in SUFFIXES, "out", f"a folder, or a file that ends in {' or '.join(SUFFIXES)}", config.out)
        return resolve_out(config.out, "similar", config.overwrite, is_file=True)
    folder = resolve_out(config.out, "similar", config.overwrite)
    return resolve_out(str(folder / "similar.tsv"), "similar", config.overwrite, is_file=True)


def _choose_rows(config: SimilarConfig, embeddings: Embeddings) -> Embeddings:
    """Take the rows of the layer that is meant.

    Raises:
        ConfigError: there are several and none is said, or not the one that is.
    """
    names = pc.unique(embeddings.rows.column("layer")).to_pylist()
    layer = str(config.layer)
    if layer == "" and len(names) == 1:
        return embeddings
    check(layer in names, "layer", f"one of those of {config.embeddings} ({', '.join(map(show, names[:30]))})", layer)
    return embeddings.select_layer(layer)


def _average(config: SimilarConfig, embeddings: Embeddings, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Give the mean of the rows of an id.

    Raises:
        DataError: it has no direction.
    """
    mean: npt.NDArray[np.float32] = embeddings.vectors[rows].astype(np.float64).mean(0).astype(np.float32)
    return _require_direction(mean, config.query)


def _embed(config: SimilarConfig, embeddings: Embeddings) -> npt.NDArray[np.float32]:
    """Embed the clip as the rows were.

    Raises:
        ConfigError: it is not known how, or the model gives vectors of another length.
        DataError: it is no audio, or several files.
    """
    if not Path(config.query).is_file():
        raise DataError(
            f"`query` must be an id in {config.embeddings} or an audio file, but {show(config.query)} is neither"
        )
    facts = embeddings.facts
    checkpoint = config.checkpoint or facts.get("checkpoint", "")
    must = f"given where a clip is asked for and {config.embeddings} does not name the model (Parquet of embed does)"
    check(checkpoint != "", "checkpoint", must, "")
    # Of frames, what is asked for is their mean, as with an id.
    pooling = config.pooling or facts.get("pooling", "mean").replace("frames", "mean")
    check_choice("pooling", pooling, POOLINGS)
    weights, window_s = config.weights or facts.get("weights", ""), facts.get("window_s", config.window_s)
    language = config.language or facts.get("language", "")
    manifest = expand_audio([config.query], "query", channel=facts.get("channel", 0))
    if len(manifest) != 1:
        raise DataError(f"`query` must be one audio file, but {config.query} names {len(manifest)}")
    model = load_for_inference(checkpoint, resolve_device(config.device), weights=weights, language=language)
    name = embeddings.rows.column("layer")[0].as_py()
    # A mix is the probe's, whose folder the metadata name.
    layer = facts.get("mix") or name if name == "mix" else int(name) if name.isdecimal() and len(name) < 6 else name
    # Precision as embed has it by default; more decimals than a cosine needs.
    embedder = Embedder(model, choose_layers(layer, model.num_layers), pooling, config.batch_s, window_s, "float32")
    source = replace(Source.from_manifest(manifest), key="query")
    _, (vector,) = next(embedder.iterate(source, "query"))
    dim = embeddings.vectors.shape[1]
    if vector.shape[1] != dim:
        raise DataError(
            f"`checkpoint` must be the model of {config.embeddings}, whose vectors have {dim} numbers, but "
            f"{checkpoint} with pooling={pooling} gives {vector.shape[1]}"
        )
    return _require_direction(vector[0], config.query)


def _require_direction(vector: npt.NDArray[np.float32], query: str) -> npt.NDArray[np.float32]:
    norm = np.linalg.norm(vector.astype(np.float64))
    if not np.isfinite(norm) or norm == 0:
        raise DataError(f"`query` must have an embedding with a direction, but that of {query} is zero or not finite")
    return vector


def _print(table: pa.Table) -> None:
    """Print a table: in columns for a person, tab-separated where stdout is a file or a pipe."""
    lines = _format_lines(table)
    if sys.stdout.isatty():
        lines = format_columns([line.split("\t") for line in lines], right=(0, 1)).split("\n")
    for line in lines:
        print_line(line)


def _format_lines(table: pa.Table) -> list[str]:
    """Write a head and a line a row."""

    def write(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.4f}"
        return "" if value is None else make_printable(escape_field(str(value)))

    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return ["\t".join(table.column_names), *("\t".join(map(write, row)) for row in rows)]
