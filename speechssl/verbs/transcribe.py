"""`speechssl transcribe`: a recogniser and audio → `id<TAB>text` lines, or a manifest for self-training."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from speechssl.config.inference import TranscribeConfig
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, save_manifest
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import remove, write_result
from speechssl.errors import DataError
from speechssl.inference.recognise import (
    Reading,
    iterate_hypotheses,
    iterate_readings,
    iterate_texts,
    require_recogniser,
)
from speechssl.inference.source import Source
from speechssl.interop.load import load_for_inference
from speechssl.printable import escape_field, make_printable
from speechssl.verbs.frame import verb
from speechssl.verbs.kept import choose_decoder
from speechssl.verbs.nbest import find_nbest, listing
from speechssl.verbs.output import STDOUT, print_line, resolve_out

TEXTS_NAME = "texts.tsv"
"""The file of `id<TAB>text` lines, where `out` is a folder."""

_logger = logging.getLogger("speechssl")


@verb
def transcribe(config: TranscribeConfig) -> dict[str, Any]:
    """Recognise every utterance in the order given, one line each, and return the result.

    Without `out` the lines go to stdout, and nothing is written. `out` with a suffix is a file and gets the lines;
    without one it is a folder and gets `texts.tsv` and `result.json`. With `decoding.nbest` above 1, `nbest.tsv`
    (`<name>.nbest.tsv` beside a file) lists the likeliest texts of each utterance with their scores. What cannot be
    used is left out, and listed in `left_out.tsv` (`<name>.left_out.tsv` beside a file). With `min_confidence`, `out`
    is a manifest of what has a text that is sure enough (`measure_confidence`).

    Raises:
        CheckpointError: the checkpoint is no recogniser.
        DataError: nothing to transcribe, no file can be used, no text is sure enough, or `decoding.lm` is no ARPA file.
    """
    left_out = LeftOut("audio")
    manifest = expand_audio(config.audio, left_out=left_out, channel=config.channel)
    device = resolve_device(config.device)
    model = load_for_inference(config.checkpoint, device, weights=config.weights, language=config.language)
    decoder = choose_decoder(config.decoding, config.checkpoint, require_recogniser(model, config.checkpoint))
    is_file = bool(Path(config.out).suffix) and not config.out.endswith(os.sep) and not Path(config.out).is_dir()
    is_file |= config.makes_manifest
    out = resolve_out(config.out, "transcribe", config.overwrite, is_file=is_file) if config.out else None
    target = out / TEXTS_NAME if out and not is_file else out
    precision = resolve_precision(config.precision, device)
    source = Source.from_manifest(manifest, left_out)
    given = (model, source, config.batch_s, config.window_s, precision)
    kept: dict[str, Any] = {}
    if target is not None and config.makes_manifest:
        readings = iterate_readings(*given, decoder.decode)
        num_empty, kept = _write_manifest(manifest, readings, target, config.min_confidence, left_out)
    elif target is not None and config.decoding.nbest > 1:
        kept = {"nbest": str(find_nbest(target))}
        texts = listing(source.ids, iterate_hypotheses(*given, decoder), find_nbest(target))
        num_empty = _write_lines(source.ids, texts, target, left_out)
    else:
        num_empty = _write_lines(source.ids, iterate_texts(*given, decoder), target, left_out)
    if out:
        left_out.save(out)
    elif len(left_out):
        left_out.warn()
    used = left_out.drop_from(manifest)
    if num_empty:
        _logger.warning("nothing was recognised in %d of %d utterances", num_empty, len(used))
    result: dict[str, Any] = {
        "num_utterances": len(used),
        "num_left_out": len(left_out),
        "num_empty": num_empty,
        "audio_s": used.total_s,
        **kept,
        "checkpoint": config.checkpoint,
        **decoder.describe(),
        "texts": str(target or STDOUT),
        "out": str(out or STDOUT),
    }
    if decoder.fit:
        decoder.fit.warn_of_silence()
    if out and not is_file:
        write_result(out, result)
    return result


def _write_manifest(
    manifest: Manifest, readings: Iterable[tuple[int, Reading]], target: Path, least: float, left_out: LeftOut
) -> tuple[int, dict[str, Any]]:
    """Write the rows whose text is sure enough, with it as `text` and a column `confidence`.

    Returns:
        How many texts are empty, and what a result says of the rows that were kept.

    Raises:
        DataError: nothing could be used, or no text is sure enough.
    """
    found = list(readings)
    left_out.require_others(len(found))
    confidences = np.array([reading.confidence for _, reading in found])
    kept = {index: reading for index, reading in found if reading.text and reading.confidence >= least}
    if not any(reading.text for _, reading in found):
        raise DataError(f"`checkpoint` must recognise something, but all {len(found)} texts are empty")
    if not kept:
        raise DataError(
            f"`min_confidence` must leave some utterances, but none of {len(found)} has a text with {least:g} or more; "
            f"the highest is {confidences.max():.4f}"
        )
    chosen = manifest.select(list(kept))
    columns = {name: chosen.table.column(name) for name in chosen.table.column_names}
    columns["text"] = pa.array([reading.text for reading in kept.values()])
    columns["confidence"] = pa.array([round(reading.confidence, 4) for reading in kept.values()])
    save_manifest(Manifest(pa.table(columns), manifest.root, str(target)), target)
    facts = {
        "num_kept": len(kept),
        "kept_s": chosen.total_s,
        "min_confidence": least,
        "confidence_quartiles": np.quantile(confidences, [0.25, 0.5, 0.75]).round(4).tolist(),
    }
    return sum(not reading.text for _, reading in found), facts


def _write_lines(ids: Sequence[str], texts: Iterable[tuple[int, str]], target: Path | None, left_out: LeftOut) -> int:
    """Write a line an utterance, to stdout where there is no file, and count the empty texts.

    Raises:
        DataError: nothing could be used.
    """
    num_lines = num_empty = 0
    with _open_lines(target) as write:
        for index, text in texts:
            write(f"{make_printable(escape_field(ids[index]))}\t{make_printable(text)}")
            num_lines += 1
            num_empty += not text
        left_out.require_others(num_lines)
    return num_empty


@contextmanager
def _open_lines(target: Path | None) -> Iterator[Callable[[str], None]]:
    """Give the function that writes a line. A file gets its name when it is whole; what was begun stays beside it."""
    if target is None:
        yield print_line
        return
    partial = target.with_name(f".{target.name}.part")
    # It may be a link, which would be followed.
    remove(partial)
    num_lines = 0

    def write(line: str) -> None:
        nonlocal num_lines
        print(line, file=file, flush=True)
        num_lines += 1

    try:
        with partial.open("x", encoding="utf-8") as file:
            yield write
        partial.replace(target)
    finally:
        if num_lines and partial.exists():
            _logger.warning("broken off: the first %d texts are in %s", num_lines, partial)
        else:
            partial.unlink(missing_ok=True)
