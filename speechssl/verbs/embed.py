"""`speechssl embed`: model + audio → embeddings in a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from speechssl.config.inference import EmbedConfig
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_result
from speechssl.inference.embed import Embedder, choose_layers, iterate_tables
from speechssl.inference.embedding_files import SUFFIXES, check_place, write_embeddings
from speechssl.inference.source import Source
from speechssl.interop.load import load_for_inference
from speechssl.verbs.frame import verb
from speechssl.verbs.output import resolve_out


@verb
def embed(config: EmbedConfig) -> dict[str, Any]:
    """Embed every utterance and return what was written where; what cannot be used is left out and listed.

    Raises:
        ConfigError: `layer` is out of range, or `out` has a suffix that is no format.
        DataError: nothing matches `audio`, or no file can be used.
    """
    device = resolve_device(config.device)
    model = load_for_inference(config.checkpoint, device, weights=config.weights, language=config.language)
    precision = resolve_precision(config.precision, device)
    choice = choose_layers(config.layer, model.num_layers)
    embedder = Embedder(model, choice, config.pooling, config.batch_s, config.window_s, precision)
    left_out = LeftOut("audio")
    manifest = expand_audio(config.audio, left_out=left_out, channel=config.channel)
    out = _resolve_file(config)
    start = time.monotonic()
    tables = iterate_tables(embedder, Source.from_manifest(manifest, left_out))
    facts = {name: getattr(config, name) for name in ("checkpoint", "layer", "pooling", "weights", "window_s")}
    num_rows = write_embeddings(out, tables, embedder.dim, facts)
    seconds = time.monotonic() - start
    is_folder = not Path(config.out).suffix
    left_out.save(out.parent if is_folder else out)
    used = left_out.drop_from(manifest)
    result: dict[str, Any] = {
        "out": str(out),
        "num_utterances": len(used),
        "num_left_out": len(left_out),
        "num_rows": num_rows,
        "dim": embedder.dim,
        "layers": list(choice.names),
        "pooling": config.pooling,
        "hours": used.total_s / 3600,
        "audio_s_per_s": used.total_s / seconds,
        "checkpoint": config.checkpoint,
    }
    if is_folder:
        write_result(out.parent, result)
    return result


def _resolve_file(config: EmbedConfig) -> Path:
    """Find the file to write: `out` itself, or `embeddings.<format>` in the folder that it names."""
    if config.out and Path(config.out).suffix:
        check_place(Path(config.out), config.overwrite)
        return resolve_out(config.out, "embed", config.overwrite, is_file=True)
    folder = resolve_out(config.out, "embed", config.overwrite)
    name = f"embeddings.{config.format}"
    assert Path(name).suffix in SUFFIXES, name
    check_place(folder / name, config.overwrite)
    return resolve_out(str(folder / name), "embed", config.overwrite, is_file=True)
