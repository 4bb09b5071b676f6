"""`speechssl embed`: model + audio → embeddings in a file."""

from __future__ import annotations

import hashlib
import time
from itertools import chain
from pathlib import Path
from typing import Any

from speechssl import __version__
from speechssl.audio.reading import SAMPLE_RATE
from speechssl.checkpoints.clusters import digest_backbone
from speechssl.config.inference import EmbedConfig
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.data.segments import read_segments
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_result
from speechssl.inference.embed import Embedder, Rows, choose_layers
from speechssl.inference.embedding_files import SUFFIXES, Earlier, check_place, write_embeddings
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.shards import Shards
from speechssl.inference.source import Source
from speechssl.interop.load import load_for_inference
from speechssl.model.speech_model import SpeechModel
from speechssl.parsing import open_regular
from speechssl.verbs.frame import verb
from speechssl.verbs.output import resolve_out


@verb
def embed(config: EmbedConfig) -> dict[str, Any]:
    """Embed every utterance and return what was written where; what cannot be used is left out and listed.

    Memory does not grow with the length or the number of files. An interrupted command, given again, goes on from what
    it has kept beside `out`.

    Raises:
        ConfigError: `layer` is out of range, `out` has a suffix that is no format, or what is kept beside it, or added
            to, was made with other keys.
        DataError: nothing matches `audio`, no file can be used, or `segments` are none.
    """
    left_out = LeftOut("audio")
    manifest = expand_audio(config.audio, left_out=left_out, channel=config.channel)
    segments = read_segments(config.segments, config.tier) if config.segments else None
    device = resolve_device(config.device)
    model = load_for_inference(config.checkpoint, device, weights=config.weights, language=config.language)
    precision = resolve_precision(config.precision, device)
    choice = choose_layers(config.layer, model.num_layers)
    embedder = Embedder(model, choice, config.pooling, config.batch_s, config.window_s, precision)
    out = _resolve_file(config)
    rows = Rows(embedder, Source.from_manifest(manifest, left_out), segments, config.normalise, config.dtype)
    facts = _describe(config, rows)
    earlier = Earlier(out, rows.schema, facts["settings"]) if config.append and out.exists() else None
    if earlier:
        manifest = earlier.find_new(manifest)
    start = time.monotonic()
    # What is there already is left as it is.
    num_rows, done_s = len(earlier) if earlier else 0, 0.0
    if len(manifest):
        rows.source = Source.from_manifest(manifest, left_out)
        num_rows, done_s = _write(out, rows, manifest, facts, earlier, config.overwrite)
    seconds = time.monotonic() - start
    is_folder = not Path(config.out).suffix
    left_out.save(out.parent if is_folder else out)
    used = left_out.drop_from(manifest) if len(manifest) else manifest
    result: dict[str, Any] = {
        "out": str(out),
        "num_utterances": len(used),
        "num_left_out": len(left_out),
        "num_rows": num_rows,
        "dim": embedder.dim,
        "layers": list(choice.names),
        "pooling": config.pooling,
        "hours": used.total_s / 3600,
        "audio_s_per_s": max(0.0, used.total_s - done_s) / seconds,
        "checkpoint": config.checkpoint,
    }
    if is_folder:
        write_result(out.parent, result)
    return result


def _write(
    out: Path, rows: Rows, manifest: Manifest, facts: dict[str, Any], earlier: Earlier | None, overwrite: bool
) -> tuple[int, float]:
    """Write the table, keeping what is done until it is whole.

    Returns:
        its rows, and the seconds of audio that an earlier run had done.
    """
    left_out = rows.source.left_out
    assert left_out is not None
    request = facts["settings"] | {
        "audio": manifest.digest,
        "segments": rows.segments.digest if rows.segments else "",
        "append": len(earlier) if earlier else 0,
    }
    with Shards(out, request, left_out, overwrite) as shards:
        done, rows.begun = shards.find_place(rows)
        for table in rows.iterate(done):
            shards.add(table)
        shards.flush()
        num_earlier = len(earlier) if earlier else 0
        left_out.require_others(shards.num_rows + num_earlier)
        tables = chain(earlier.iterate() if earlier else (), shards.iterate(rows.schema))
        num_rows = write_embeddings(out, tables, rows.schema, facts)
    return num_rows, float(rows.source.lengths[sorted(done)].sum()) / SAMPLE_RATE


def _describe(config: EmbedConfig, rows: Rows) -> dict[str, Any]:
    """Say what made the vectors: in `settings` what decides about their numbers, so that others can be put beside."""
    embedder, model = rows.embedder, rows.embedder.model
    settings = {
        "weights_sha256": _digest(model),
        "layers": list(embedder.choice.names),
        "mix": str(config.layer) if embedder.choice.names == ("mix",) else "",
        "pooling": config.pooling,
        "normalise": config.normalise,
        "dtype": config.dtype,
        "window_s": config.window_s,
        "precision": embedder.precision,
        "channel": config.channel,
        "sample_rate": SAMPLE_RATE,
        "tier": config.tier,
    }
    checkpoint = {"checkpoint": config.checkpoint, "weights": config.weights, "language": config.language}
    return {"speechssl": __version__, **checkpoint, "segments": config.segments, "settings": settings}


def _digest(model: AnyModel) -> str:
    """Give the SHA-256 of what makes the vectors: the backbone's weights, or an export's file."""
    if isinstance(model, SpeechModel):
        return digest_backbone(model)
    with open_regular(model.name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed wants readinto


def _resolve_file(config: EmbedConfig) -> Path:
    """Find the file to write: `out` itself, or `embeddings.<format>` in the folder that it names."""
    may_replace = config.overwrite or config.append
    if config.out and Path(config.out).suffix:
        check_place(Path(config.out), may_replace)
        return resolve_out(config.out, "embed", may_replace, is_file=True)
    folder = resolve_out(config.out, "embed", may_replace)
    name = f"embeddings.{config.format}"
    assert Path(name).suffix in SUFFIXES, name
    check_place(folder / name, may_replace)
    return resolve_out(str(folder / name), "embed", may_replace, is_file=True)
