"""From audio to texts: the loop of `inference/batches.py` with the logits of a CTC head, and a decoder."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from speechssl.config.decoding import DecodingConfig
from speechssl.data.left_out import LeftOut
from speechssl.data.manifest import Manifest
from speechssl.errors import CheckpointError, ConfigError
from speechssl.inference.batches import CHUNK_BATCHES, run_model
from speechssl.inference.decoding.beam import Decode, build_decoder
from speechssl.inference.source import Audio, Source, find_source
from speechssl.model.speech_model import SpeechModel
from speechssl.text.vocabulary import Vocabulary

_logger = logging.getLogger("speechssl")


def require_recogniser(model: SpeechModel, name: str = "this model") -> Vocabulary:
    """Return the vocabulary of a model's CTC head.

    Args:
        model: any model.
        name: what the message calls it, such as its checkpoint.

    Raises:
        CheckpointError: the model has no CTC head.
    """
    if model.head is None or model.vocabulary is None:
        raise CheckpointError(f"`checkpoint` must be a recogniser, but {name} has no CTC head: finetune it first")
    return model.vocabulary


def transcribe(
    model: SpeechModel,
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
    model: SpeechModel,
    manifest: Manifest,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
    decode: Decode | None = None,
    left_out: LeftOut | None = None,
) -> list[str]:
    """Recognise the utterances of a manifest: `iterate_texts`, all at once, without those that are left out."""
    source = Source.from_manifest(manifest, left_out)
    return [text for _, text in iterate_texts(model, source, batch_s, window_s, precision, decode)]


def iterate_texts(
    model: SpeechModel,
    source: Source,
    batch_s: float = 60.0,
    window_s: float = 30.0,
    precision: str = "float32",
    decode: Decode | None = None,
) -> Iterator[tuple[int, str]]:
    """Recognise utterances and yield their texts in order, as they come.

    Args:
        model: a recogniser, on whatever device; it works in evaluation mode, and is left as it is.
        source: utterances.
        batch_s, window_s: as in `run_model`.
        precision: `float32` or `bf16`.
        decode: from logits (1, T, V) and valid frames (1,) to one text; None: greedily.

    Yields:
        Number and text of each utterance that the source does not leave out; empty where nothing was recognised, or
        where the utterance is shorter than one frame's 25 ms, which is logged.

    Raises:
        CheckpointError: the model has no CTC head.
        DataError: a file is missing, damaged or not as long as the manifest says, and the source leaves none out.
    """
    vocabulary = require_recogniser(model)
    decode = decode or build_decoder(DecodingConfig(), vocabulary).decode
    short = np.flatnonzero(source.lengths < model.config.receptive_field).tolist()
    if short:
        names = ", ".join(source.ids[index] for index in short[:5]) + (" …" if len(short) > 5 else "")
        _logger.warning("%d utterances are shorter than one frame and stay empty: %s", len(short), names)

    def forward(model: SpeechModel, waveforms: Tensor, num_samples: Tensor | None) -> tuple[list[Tensor], Tensor]:
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits, num_frames = model.logits(waveforms, num_samples)
        return [logits.float().cpu()], num_frames

    def read(pieces: Iterator[list[Tensor]]) -> str:
        logits = torch.cat([piece for (piece,) in pieces])
        return decode(logits[None], torch.tensor([len(logits)]))[0]

    texts = run_model(
        model, source, forward, read,
        batch_s=batch_s, window_s=window_s, chunk_batches=CHUNK_BATCHES, description="recognise",
    )  # fmt: skip
    yield from heapq.merge(((index, "") for index in short), texts)
