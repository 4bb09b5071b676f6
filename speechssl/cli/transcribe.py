"""`speechssl transcribe`: a recogniser and audio → `id<TAB>text` lines."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechssl.cli.output import print_line, resolve_out, write_result
from speechssl.config import TranscribeConfig
from speechssl.data.inputs import expand_audio
from speechssl.data.manifest import Manifest
from speechssl.evaluation.beam import build_decoder
from speechssl.evaluation.breakdown import escape_field
from speechssl.evaluation.recognition import Source, iterate_texts, require_recogniser
from speechssl.interop.load import load_model
from speechssl.progress import track
from speechssl.training.devices import resolve_device, resolve_precision

TEXTS_NAME = "texts.tsv"
"""The file of `id<TAB>text` lines, where `out` is a folder."""

_logger = logging.getLogger("speechssl")


def run(config: TranscribeConfig) -> dict[str, Any]:
    """Recognise every utterance in the order given, write one line each, and return the result.

    `out` with a suffix is a file and gets the lines; without one it is a folder and gets `texts.tsv` and
    `result.json`. The lines go to stdout as well, ahead of the JSON line.

    Raises:
        CheckpointError: the checkpoint is no recogniser.
        DataError: nothing to transcribe, or `decoding.lm` is no ARPA file.
    """
    manifest = expand_audio(config.audio, channel=config.channel)
    device = resolve_device(config.device)
    model = load_model(config.checkpoint, device, weights=config.weights)
    decoder = build_decoder(config.decoding, require_recogniser(model, config.checkpoint))
    is_file = bool(Path(config.out).suffix) and not config.out.endswith(os.sep) and not Path(config.out).is_dir()
    out = resolve_out(config.out, "transcribe", config.overwrite, is_file=is_file)
    target = out if is_file else out / TEXTS_NAME
    precision = resolve_precision(config.precision, device)
    source = Source.from_manifest(manifest)
    texts = iterate_texts(model, source, config.batch_s, config.window_s, precision, decoder.decode)
    num_empty = _write_lines(manifest, texts, target)
    if num_empty:
        _logger.warning("nothing was recognised in %d of %d utterances", num_empty, len(manifest))
    result: dict[str, Any] = {
        "num_utterances": len(manifest),
        "num_empty": num_empty,
        "audio_s": manifest.total_s,
        "checkpoint": config.checkpoint,
        **decoder.facts,
        "texts": str(target),
        "out": str(out),
    }
    if not is_file:
        write_result(out, result)
    return result


def _write_lines(manifest: Manifest, texts: Iterable[str], target: Path) -> int:
    """Write and print a line an utterance; count the empty texts. The file gets its name when it is whole."""
    partial = target.with_name(f".{target.name}.part")
    num_empty = 0
    with partial.open("w", encoding="utf-8") as file:
        for name, text in zip(
            manifest.column("id"), track(texts, "transcribe", len(manifest), "utterances"), strict=True
        ):
            line = f"{escape_field(name)}\t{text}"
            print(line, file=file, flush=True)
            print_line(line)
            num_empty += not text
    partial.replace(target)
    return num_empty
