"""How well `align` finds the words of the demo's speech, whose synthesiser tells when it says each.

    python -m tests.benchmarks.word_times runs/demo-ctc

The recogniser is one that was trained on the demo's speech (docs/decoding.md has the commands). Sentences that the demo
does not have are spoken by the twelve speakers of its test split, through the same rooms and noises; eSpeak NG's events
give the sample at which each word begins. A word ends where the next one begins, or a pause. Of "in the" and the like,
which eSpeak NG takes for one word, the edge in between is not known, and not counted.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import soxr
import torch

from speechssl.demo.corpus import make_speakers
from speechssl.demo.espeak import Engine, Voice
from speechssl.demo.sound import EDGE_SILENCE_S, SAMPLE_RATE, finish_utterance
from speechssl.demo.text import make_sentences
from speechssl.evaluation.wer import compute_error_rates
from speechssl.inference.alignment import align_text
from speechssl.inference.decoding.greedy import greedy_decode
from speechssl.inference.recognise import collect_logits, require_recogniser
from speechssl.inference.source import Source
from speechssl.interop.load import load_for_inference

NUM_SENTENCES = 96

_WORD, _PHONEME = 1, 7
_WITH_PHONEMES = 1
_SYNCHRONOUS = 2


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


class Spoken(NamedTuple):
    """A sentence: its sound at 16 kHz, its text, and (n, 2) seconds at which its words begin and end, or NaN."""

    sound: np.ndarray
    text: str
    times: np.ndarray


class TellingEngine(Engine):
    """eSpeak NG with its events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int, int, bytes]] = []
        data_path = os.fsencode(importlib.import_module("espeakng_loader").get_data_path())
        self._library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _WITH_PHONEMES)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, num_samples: int, events: Any) -> int:
        event = ctypes.cast(events, ctypes.POINTER(Event))
        number = 0
        while event[number].type:
            one = event[number]
            self.events.append((one.type, one.sample, one.text_position, one.name))
            number += 1
        return super()._collect(samples, num_samples, events)


def speak(engine: TellingEngine, text: str, voice: Voice, session: int, seed: int) -> Spoken:
    """Speak a sentence as the demo does, and say when each of its words is."""
    engine.events.clear()
    speech = engine.speak(text, voice, seed)
    rate = engine.sample_rate * voice.tract_scale
    plain = np.abs(soxr.resample(speech.astype(np.float32), rate, SAMPLE_RATE, quality="HQ"))
    # As `finish_utterance` cuts the silence in front.
    shift_s = EDGE_SILENCE_S - np.flatnonzero(plain > 0.01 * plain.max())[0] / SAMPLE_RATE
    begun = {place - 1: sample for kind, sample, place, _ in engine.events if kind == _WORD}
    begins = [begun.get(match.start(), np.nan) for match in re.finditer(r"\S+", text)]
    pauses = [sample for kind, sample, _, name in engine.events if kind == _PHONEME and name.startswith(b"_")]
    nexts = [*begins[1:], len(speech)]
    ends = [min([after, *(p for p in pauses if begin < p < after)]) for begin, after in zip(begins, nexts, strict=True)]
    sound = finish_utterance(speech, engine.sample_rate, voice.tract_scale, session, seed)
    return Spoken(sound, text, np.stack([begins, ends], axis=1) / rate + shift_s)


def make_speech(seed: int = 1) -> Iterator[Spoken]:
    """Speak sentences of no split by the speakers of the test split."""
    speakers = make_speakers(50, seed)[-12:]
    engine = TellingEngine()
    for number, text in enumerate(make_sentences(1404 + NUM_SENTENCES, seed)[1404:]):
        yield speak(engine, text, speakers[number % 12].voice, number % 24, number)


def main(checkpoint: str) -> None:
    """Print the errors of starts and ends, and the error rate of the recogniser."""
    model = load_for_inference(checkpoint, torch.device("cpu"))
    vocabulary = require_recogniser(model)
    spoken = list(make_speech())
    logits = collect_logits(model, Source.from_arrays([one.sound for one in spoken], SAMPLE_RATE), 60, 30, "float32")
    frame_s = model.config.hop_samples / SAMPLE_RATE
    texts = [greedy_decode(row[None], torch.tensor([len(row)]), vocabulary)[0] for row in logits]
    wer, cer = compute_error_rates([vocabulary.normalise_reference(one.text) for one in spoken], texts, "speech")
    found = [align_text(row, one.text, vocabulary, frame_s)[0] for row, one in zip(logits, spoken, strict=True)]
    times = np.array([(word.start_s, word.end_s) for words in found for word in words])
    errors = 1000 * (times - np.concatenate([one.times for one in spoken]))
    num_known = np.isfinite(errors).all(1).sum()
    print(f"{len(spoken)} sentences, {num_known} of {len(times)} words known, frames of {1000 * frame_s:g} ms")
    print(f"WER {wer:.1f}, CER {cer:.1f} %")
    print("        bias  median |error|  95 %   under 20  40  120 ms")
    for name, column in zip(("starts", "ends"), errors.T, strict=True):
        column = column[np.isfinite(column)]
        size = np.abs(column)
        shares = "  ".join(f"{100 * (size < limit).mean():.1f} %" for limit in (20, 40, 120))
        middle, most = np.median(size), np.quantile(size, 0.95)
        print(f"{name:7} {np.median(column):+5.0f}  {middle:5.1f} ms  {most:5.0f} ms  {shares}")


if __name__ == "__main__":
    main(*sys.argv[1:])
