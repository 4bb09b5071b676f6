"""From audio to texts: the loop of `inference/batches.py` with the logits of a CTC head, and a decoder."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Set
from itertools import chain
from operator import itemgetter
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.config.decoding import DecodingConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.errors import CheckpointError, ConfigError
from speechssl.inference.batches import CHUNK_BATCHES, run_model
from speechssl.inference.decoding.decoder import Decode, Decoder, build_decoder
from speechssl.inference.decoding.processes import choose_workers, settle
from speechssl.inference.onnx_model import AnyModel, OnnxModel
from speechssl.inference.readings import Reader, Reading
from speechssl.inference.source import Audio, FloatArray, Source, find_source
from speechssl.text.vocabulary import Vocabulary

R = TypeVar("R")

_logger = logging.getLogger("speechssl")


class Witness(Protocol):
    """Is told what is read and recognised, by the number of the utterance."""

    def see(self, index: int, waveform: FloatArray) -> None:
        """Take the samples at 16 kHz; called from threads."""

    def note(self, index: int, reading: Reading) -> None:
        """Take what was recognised."""


def require_recogniser(model: AnyModel, name: str = "this model") -> Vocabulary:
    """Return the vocabulary of a model's CTC head.

    Args:
        model: any model.
        name: what the message calls it, such as its checkpoint.

    Raises:
        CheckpointError: the model has no CTC head.
    """
    if model.vocabulary is None:
        remedy = "convert to=onnx writes one of a recogniser" if isinstance(model, OnnxModel) else "finetune it first"
        raise CheckpointError(f"`checkpoint` must be a recogniser, but {name} has no CTC head: {remedy}")
    return model.vocabulary


def transcribe(
    model: AnyModel,
    audio: Audio,
    *,
    sample_rate: int | None = None,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
    decode: Decode | None = None,
) -> list[str]:
    """Recognise audio: `speechssl.transcribe`.

    Args:
        model: a recogniser, on whatever device.
        audio: what the key `audio` takes (files, folders, quoted globs, a manifest), or waveforms in [-1, 1]; one or
            several.
        sample_rate: of waveforms, in Hz; not for files, which know theirs.
        batch_s: seconds of audio that a forward may hold.
        window_s: audio up to this many seconds is one pass; longer audio goes in overlapping windows.
        precision: `float32` or `bf16`.
        decode: from logits to texts, such as `build_decoder(…).decode`, called with an utterance at a time; None:
            greedily.

    Returns:
        One text an utterance, in the order of `audio`.

    Raises:
        CheckpointError: the model has no CTC head.
        ConfigError: `decode` is no function.
        DataError: nothing matches, a file is not audio, or waveforms come without their sample rate.
    """
    require_recogniser(model)
    if decode is not None and not callable(decode):
        raise ConfigError(f"`decode` must be a function, such as build_decoder(…).decode, but is {decode!r}")
    source = find_source(audio, sample_rate)
    return [text for _, text in iterate_texts(model, source, batch_s, window_s, precision, decode)]


def recognise(
    model: AnyModel,
    manifest: Manifest,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
    decode: Decode | Decoder | None = None,
    left_out: LeftOut | None = None,
    witness: Witness | None = None,
) -> list[str]:
    """Recognise the utterances of a manifest: `iterate_texts`, all at once, without those that are left out.

    The witness is told of every waveform and reading.
    """
    source = Source.from_manifest(manifest, left_out, witness.see if witness else None)
    if witness is None:
        return [text for _, text in iterate_texts(model, source, batch_s, window_s, precision, decode)]
    reader = Reader(require_recogniser(model), _make_decoder(decode, model), find_frame_s(model), has_confidence=True)
    texts = []
    for index, reading in iterate_readings(model, source, batch_s, window_s, precision, reader):
        witness.note(index, reading)
        texts.append(reading.text)
    return texts


def iterate_texts(
    model: AnyModel,
    source: Source,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
    decode: Decode | Decoder | None = None,
) -> Iterator[tuple[int, str]]:
    """Recognise utterances and yield their texts in order, as they come.

    Args:
        model: a recogniser, on whatever device; it works in evaluation mode, and is left as it is.
        source: utterances.
        batch_s, window_s: as in `run_model`.
        precision: `float32` or `bf16`.
        decode: from logits (1, T, V) and valid frames (1,) to one text, or a decoder, whose beam search goes over
            processes; None: greedily.

    Yields:
        Number and text of each utterance that the source does not leave out; empty where nothing was recognised, or
        where the utterance is shorter than one frame's 25 ms, which is logged.

    Raises:
        CheckpointError: the model has no CTC head.
        DataError: a file is missing, damaged or not as long as the manifest says, and the source leaves none out.
    """
    reader = Reader(require_recogniser(model), _make_decoder(decode, model), find_frame_s(model))
    readings = iterate_readings(model, source, batch_s, window_s, precision, reader)
    yield from ((index, reading.text) for index, reading in readings)


def collect_logits(model: SpeechModel, source: Source, batch_s: float, window_s: float, precision: str) -> list[Tensor]:
    """Compute the logits (T, V) of the utterances that the source does not leave out, to decode them more than once."""
    return [logits for _, logits in iterate_logits(model, source, batch_s, window_s, precision)]


def iterate_logits(
    model: AnyModel, source: Source, batch_s: float, window_s: float, precision: str
) -> Iterator[tuple[int, Tensor]]:
    """Compute number and logits (T, V) of each utterance that the source does not leave out, in order."""
    nothing = torch.zeros(0, len(require_recogniser(model)))
    return _iterate(model, source, batch_s, window_s, precision, lambda pieces: torch.cat(list(pieces)), nothing)


def iterate_readings(
    model: AnyModel,
    source: Source,
    batch_s: float,
    window_s: float,
    precision: str,
    reader: Reader,
    done: Set[int] = frozenset(),
    in_order: bool = True,
) -> Iterator[tuple[int, Reading]]:
    """Recognise utterances as `iterate_texts`, with all that a reader says of them.

    A beam search goes over `decoding.num_workers` processes while the model computes in this one; what comes out is
    the same without them.

    Args:
        model, source, batch_s, window_s, precision: as there.
        reader: reads an utterance off its logits.
        done, in_order: as in `run_model`.

    Raises:
        ConfigError: one of the processes was killed.
    """
    search = reader.decoder.search
    num_workers = choose_workers(search.config.num_workers, len(source.ids) - len(done)) if search else 0
    with reader.searching(num_workers) as begin:
        rows = _iterate(model, source, batch_s, window_s, precision, begin, begin([]), done, in_order)
        yield from settle(rows, num_workers)


def _make_decoder(decode: Decode | Decoder | None, model: AnyModel) -> Decoder:
    if isinstance(decode, Decoder):
        return decode
    return Decoder(decode, {}) if decode else build_decoder(DecodingConfig(), require_recogniser(model))


def find_frame_s(model: AnyModel) -> float:
    """Give the time from one frame of a model to the next, in seconds."""
    return model.config.output_hop / SAMPLE_RATE


def _iterate(
    model: AnyModel,
    source: Source,
    batch_s: float,
    window_s: float,
    precision: str,
    read: Callable[[Iterator[Tensor]], R],
    nothing: R,
    done: Set[int] = frozenset(),
    in_order: bool = True,
) -> Iterator[tuple[int, R]]:
    """Yield what is read off the pieces (t, V) of each utterance's logits, and `nothing` of those without a frame."""
    short = np.flatnonzero(source.lengths < model.config.output_field).tolist()
    if short:
        names = ", ".join(source.ids[index] for index in short[:5]) + (" …" if len(short) > 5 else "")
        _logger.warning("%d utterances are shorter than one frame and stay empty: %s", len(short), names)

    def forward(model: AnyModel, waveforms: Tensor, num_samples: Tensor | None) -> tuple[list[Tensor], Tensor]:
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits, num_frames = model.logits(waveforms, num_samples)
        return [logits.float().cpu()], num_frames

    def reduce(pieces: Iterator[list[Tensor]]) -> R:
        return read(piece for (piece,) in pieces)

    results = run_model(
        model, source, forward, reduce,
        batch_s=batch_s, window_s=window_s, chunk_batches=CHUNK_BATCHES, description="recognise", is_output=True,
        done=done, in_order=in_order,
    )  # fmt: skip
    empty = ((index, nothing) for index in short if index not in done)
    yield from heapq.merge(empty, results, key=itemgetter(0)) if in_order else chain(empty, results)
