"""`speechssl transcribe`: a recogniser and audio → texts, in time where the format has it, or a manifest."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from speechssl.config.inference import TranscribeConfig
from speechssl.data.files import expand_audio
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest, Utterance, save_manifest
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_in_one_step, write_result, writing
from speechssl.errors import DataError
from speechssl.inference.decoding.decoder import Decoder
from speechssl.inference.journal import Entry, Journal
from speechssl.inference.onnx_model import AnyModel
from speechssl.inference.readings import Reader
from speechssl.inference.recognise import find_frame_s, iterate_readings, require_recogniser
from speechssl.inference.source import Source
from speechssl.inference.text_formats import choose_format, name_file, render
from speechssl.inference.timed import TimedText
from speechssl.interop.load import find_update, load_for_inference
from speechssl.verbs.frame import verb
from speechssl.verbs.kept import choose_decoder
from speechssl.verbs.nbest import find_nbest, format_nbest
from speechssl.verbs.output import STDOUT, print_text, resolve_out

TEXTS_NAME = "texts.tsv"
"""The file of `id<TAB>text` lines, where `out` is a folder."""

_logger = logging.getLogger("speechssl")


@dataclass(frozen=True)
class _Job:
    """What is recognised, and how.

    Attributes:
        config: the keys.
        format: of the texts, one of `SUFFIXES`.
        model: a recogniser.
        decoder: reads its logits.
        source: the utterances.
    """

    config: TranscribeConfig
    format: str
    model: AnyModel
    decoder: Decoder
    source: Source

    @property
    def has_times(self) -> bool:
        """Whether words are wanted in time."""
        return self.format != "tsv"

    def iterate(self, done: frozenset[int] = frozenset(), in_order: bool = True) -> Iterator[Entry]:
        """Recognise the utterances that are not done."""
        config, vocabulary = self.config, require_recogniser(self.model, self.config.checkpoint)
        has_confidence = self.has_times or config.makes_manifest
        frame_s = find_frame_s(self.model)
        reader = Reader(vocabulary, self.decoder, frame_s, has_confidence, self.has_times)
        precision = resolve_precision(config.precision, self.model.device)
        readings = iterate_readings(
            self.model, self.source, config.batch_s, config.window_s, precision, reader, done, in_order
        )
        for index, reading in readings:
            row = self.source[index]
            about = (row.id, str(row.path), row.speaker or "", row.channel, row.duration_s)
            text = TimedText(*about, reading.text, reading.confidence, reading.words, reading.characters)
            yield Entry(text, reading.counts, reading.hypotheses if config.decoding.nbest > 1 else ())

    def describe(self) -> dict[str, Any]:
        """Name what decides about the texts: an interrupted command goes on from those that were made with the same."""
        config = self.config
        keys = {name: getattr(config, name) for name in ("checkpoint", "weights", "language", "window_s", "precision")}
        wanted = {"format": self.format, "min_confidence": config.makes_manifest, "nbest": config.decoding.nbest}
        return keys | wanted | {"update": find_update(config.checkpoint)} | self.decoder.facts


@verb
def transcribe(config: TranscribeConfig) -> dict[str, Any]:
    """Recognise every utterance, write the texts in the order given, and return the result.

    Without `out` they go to stdout, and nothing is written. `out` with a suffix is a file for all of them; without one
    it is a folder and gets `result.json` and a file an utterance, named by its id, or `texts.tsv`. What cannot be used
    is left out, and listed in `left_out.tsv` (`<name>.left_out.tsv` beside a file). With `min_confidence`, `out` is a
    manifest of what has a text that is sure enough (`measure_confidence`). With `decoding.nbest` above 1, `nbest.tsv`
    (`<name>.nbest.tsv` beside a file) lists the likeliest texts of each utterance with their scores. An interrupted
    command, given again, goes on from what it has kept beside `out`.

    Raises:
        CheckpointError: the checkpoint is no recogniser.
        ConfigError: what is kept beside `out` is of another command.
        DataError: nothing to transcribe, no file can be used, no text is sure enough, or `decoding.lm` is no ARPA file.
    """
    format = choose_format(config.format, "" if config.makes_manifest else config.out)
    left_out = LeftOut("audio")
    manifest = expand_audio(config.audio, left_out=left_out, channel=config.channel)
    device = resolve_device(config.device)
    model = load_for_inference(config.checkpoint, device, weights=config.weights, language=config.language)
    decoder = choose_decoder(config.decoding, config.checkpoint, require_recogniser(model, config.checkpoint))
    job = _Job(config, format, model, decoder, Source.from_manifest(manifest, left_out))
    is_file = bool(Path(config.out).suffix) and not config.out.endswith(os.sep) and not Path(config.out).is_dir()
    is_file |= config.makes_manifest
    out = resolve_out(config.out, "transcribe", config.overwrite, is_file=is_file) if config.out else None
    facts = _write(job, manifest, out, is_file) if out else _print(job)
    if out:
        left_out.save(out)
    elif len(left_out):
        left_out.warn()
    if facts["num_empty"]:
        _logger.warning("nothing was recognised in %d of %d utterances", facts["num_empty"], facts["num_utterances"])
    result: dict[str, Any] = {
        "num_utterances": facts.pop("num_utterances"),
        "num_left_out": len(left_out),
        **facts,
        "checkpoint": config.checkpoint,
        **decoder.describe(),
        "format": "manifest" if config.makes_manifest else format,
        "out": str(out or STDOUT),
    }
    if decoder.fit:
        decoder.fit.warn_of_silence()
    if out and not is_file:
        write_result(out, result)
    return result


class _Tally:
    """Counts what goes through it."""

    def __init__(self) -> None:
        self.num_utterances = self.num_empty = 0
        self.audio_s = 0.0
        self.fit = (0, 0, 0)

    def count(self, entries: Iterable[Entry]) -> Iterator[TimedText]:
        """Hand on the texts."""
        for text, counts, _ in entries:
            self.num_utterances += 1
            self.num_empty += not text.text
            self.audio_s += text.duration_s
            self.fit = (self.fit[0] + counts[0], self.fit[1] + counts[1], self.fit[2] + counts[2])
            yield text

    def describe(self) -> dict[str, Any]:
        """Give what a result says."""
        return {name: getattr(self, name) for name in ("num_utterances", "num_empty", "audio_s")}


def _print(job: _Job) -> dict[str, Any]:
    """Print the texts as they come.

    Raises:
        DataError: nothing could be used.
    """
    tally = _Tally()
    for piece in render(_require_some(job, tally.count(job.iterate())), job.format):
        print_text(piece)
    return tally.describe() | {"texts": STDOUT}


def _require_some(job: _Job, texts: Iterator[TimedText]) -> Iterator[TimedText]:
    num_texts = 0
    for text in texts:
        yield text
        num_texts += 1
    assert job.source.left_out is not None
    job.source.left_out.require_others(num_texts)


def _write(job: _Job, manifest: Manifest, out: Path, is_file: bool) -> dict[str, Any]:
    """Write the texts to a file, or into a folder, and keep what is done beside it until all is.

    Raises:
        ConfigError: what is kept there is of another command.
        DataError: nothing could be used, or no text is sure enough.
    """
    source, tally = job.source, _Tally()
    target = out if is_file else out / TEXTS_NAME if job.format == "tsv" else None
    part = target.with_name(f".{target.name}.part") if target else out / ".texts.part"
    with Journal(part, job.describe(), job.config.overwrite) as journal:
        rows = {id: row for row, id in enumerate(source.ids)}
        journal.keep(
            entry.text.id for entry in journal.iterate(source.ids) if _is_of(entry, manifest[rows[entry.text.id]])
        )
        for entry in job.iterate(frozenset(rows[id] for id in source.ids if id in journal), in_order=False):
            if target is None:
                _write_one(out / name_file(entry.text.id, job.format), entry.text, job.format)
            journal.add(entry)
        assert source.left_out is not None
        source.left_out.require_others(len(journal))
        texts, more = tally.count(journal.iterate(source.ids)), {}
        if target is not None and job.config.makes_manifest:
            more = _write_manifest(manifest, list(texts), target, job.config.min_confidence)
        elif target is not None:
            write_in_one_step(target, render(texts, job.format), ".whole")
        else:
            deque(texts, maxlen=0)
        if job.config.decoding.nbest > 1:
            path = find_nbest(target or out / TEXTS_NAME)
            listed = ((entry.text.id, entry.hypotheses) for entry in journal.iterate(source.ids))
            write_in_one_step(path, format_nbest(listed))
            more = {"nbest": str(path)}
    if job.decoder.fit:
        job.decoder.fit.counts = tally.fit
    return tally.describe() | more | {"texts": str(target or out)}


def _write_one(path: Path, text: TimedText, format: str) -> None:
    """Write the file of one utterance, in the folders that its name names."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(path, render([text], format))


def _is_of(entry: Entry, row: Utterance) -> bool:
    """Say whether a text is of the file and the stretch that a row names now."""
    return (entry.text.path, entry.text.duration_s) == (str(row.path), row.duration_s)


def _write_manifest(manifest: Manifest, texts: Sequence[TimedText], target: Path, least: float) -> dict[str, Any]:
    """Write the rows whose text is sure enough, with it as `text` and a column `confidence`.

    Returns:
        What a result says of the rows that were kept.

    Raises:
        DataError: no text is sure enough.
    """
    rows = {id: row for row, id in enumerate(manifest.column("id"))}
    confidences = np.array([text.confidence for text in texts])
    kept = [text for text in texts if text.text and text.confidence >= least]
    if not any(text.text for text in texts):
        raise DataError(f"`checkpoint` must recognise something, but all {len(texts)} texts are empty")
    if not kept:
        raise DataError(
            f"`min_confidence` must leave some utterances, but none of {len(texts)} has a text with {least:g} or more; "
            f"the highest is {confidences.max():.4f}"
        )
    chosen = manifest.select([rows[text.id] for text in kept])
    columns = {name: chosen.table.column(name) for name in chosen.table.column_names}
    columns["text"] = pa.array([text.text for text in kept])
    columns["confidence"] = pa.array([round(text.confidence, 4) for text in kept])
    save_manifest(Manifest(pa.table(columns), manifest.root, str(target)), target)
    return {
        "num_kept": len(kept),
        "kept_s": chosen.total_s,
        "min_confidence": least,
        "confidence_quartiles": np.quantile(confidences, [0.25, 0.5, 0.75]).round(4).tolist(),
    }
