"""A fine-tuning run: how its error rates fell, what it writes, and when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.inference.recognise import recognise
from speechssl.report.charts import make_series, plot
from speechssl.report.content import Figure, Section, Stat, count, format_hours
from speechssl.report.evaluation import (
    Transcript,
    add_sounds,
    choose_some,
    count_errors,
    load_test_set,
    read_transcripts,
    show,
)
from speechssl.report.live import Live, choose_evenly, choose_example, list_long_enough
from speechssl.report.pretraining import make_pair, pick_values
from speechssl.report.run_folder import RunFolder
from speechssl.report.sounds import LONGEST_S, Sounds, read_waveform
from speechssl.report.strip import Strip, draw_spectrogram

LIVE_UTTERANCES = 12


def describe_recogniser(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what a fine-tuning run came to, and pick its first figures."""
    start, stats = "" if run.get_config("init") else "Trained from scratch, without pretraining.", []
    for key, name in (("wer", "word error rate"), ("cer", "character error rate")):
        value = find_best(run, key)
        if value is not None:
            stats.append(Stat(f"{value:.1f} %", name, "held out, at the best checkpoint"))
    hours = run.last("train", "hours_seen")
    if hours:
        updates = f"with repeats, in {count(run.num_updates, 'update')}"
        stats.append(Stat(format_hours(hours), "speech heard", updates))
    return start, stats


def make_errors(run: RunFolder) -> list[Section]:
    """Draw the curves of errors and losses."""
    words = make_series("words", "c1", *pick_values(run, "valid", "wer"))
    characters = make_series("characters", "c2", *pick_values(run, "valid", "cer"))
    note = (
        "Errors (wrong, left out and added) for each 100 words or characters of held-out speech. "
        "Writing nothing at all gets 100 %."
    )
    figures = plot("Error rates", "%", [words, characters], note, from_zero=True)
    note = "The cost of the right letters. It often stands still while the model writes only blanks, then falls."
    figures += plot("CTC loss", "nats an utterance", make_pair(run, "loss"), note, from_zero=True)
    figures += plot("CTC loss a letter", "nats", make_pair(run, "loss_per_label"), from_zero=True)
    return [Section("Learning", figures)] if figures else []


def make_stored(run: RunFolder, sounds: Sounds) -> list[Section]:
    """Show what the run's evaluation stored of its transcripts; [] without one."""
    stored = read_transcripts(run)
    chosen = add_sounds(choose_some(stored), load_test_set(run), sounds)
    figures = show(chosen, "What it writes", "From the run’s evaluation, from the worst utterance to the best.")
    return [Section("What it writes", figures + count_errors(stored, run.confusions))] if stored else []


def make_writing(run: RunFolder, live: Live, sounds: Sounds) -> list[Section]:
    """Show one utterance with the letters in time, and without a stored evaluation what the model writes now."""
    figures = _draw_emissions(live, sounds)
    transcripts = [] if run.utterances else transcribe(live)
    chosen = add_sounds(choose_some(transcripts), live.manifest, sounds)
    where = "held-out" if live.held_out else "training"
    note = f"{len(transcripts)} {where} utterances, decoded for this page, greedily; shown from the worst to the best."
    figures += show(chosen, "What it writes", note) + count_errors(transcripts, [])
    return [Section("What it hears", figures)] if figures else []


def transcribe(live: Live) -> list[Transcript]:
    """Let the model write a few utterances, worst first; [] where there are no transcripts to compare with."""
    vocabulary = live.model.vocabulary
    if vocabulary is None or not live.manifest.has("text"):
        return []
    texts, lengths = live.manifest.column("text"), live.manifest.num_samples_16k / SAMPLE_RATE
    fitting = [k for k in list_long_enough(live, 0.5) if lengths[k] <= LONGEST_S and texts[k]]
    chosen = live.manifest.select(choose_evenly(fitting, LIVE_UTTERANCES))
    written = recognise(live.model, chosen) if len(chosen) else []
    rows = [chosen[k] for k in range(len(chosen))]
    transcripts = [
        Transcript(row.id, row.speaker or "", vocabulary.normalise_reference(row.text or ""), vocabulary.fold(text))
        for row, text in zip(rows, written, strict=True)
    ]
    return sorted(transcripts, key=lambda item: item.num_errors, reverse=True)


def find_best(run: RunFolder, name: str) -> float | None:
    """Give the metric at the validation with the lowest WER, then CER: the checkpoint that is used.

    Never that of the state before the first update, as of a recogniser that goes on: it is no checkpoint.
    """
    rows = [row for row in run.select("valid") if row["update"] > 0 and {"wer", name} <= row.keys() and _is_finite(row)]
    return float(min(rows, key=lambda row: (row["wer"], row.get("cer", 0.0)))[name]) if rows else None


def _draw_emissions(live: Live, sounds: Sounds) -> list[Figure]:
    """Draw a spectrogram with the letters under the places where the model writes them."""
    index = choose_example(live, 6.0)
    if index is None or live.model.head is None or live.model.vocabulary is None:
        return []
    waveform = read_waveform(live.manifest, index, 9.0)
    with torch.inference_mode():
        best = live.model.logits(torch.from_numpy(waveform)[None], None)[0][0].argmax(-1).tolist()
    symbols = live.model.vocabulary.symbols
    letters = [(k, symbols[b]) for k, b in enumerate(best) if b != 0 and (k == 0 or best[k - 1] != b)]
    row = live.manifest[index]
    strip = Strip(len(waveform) / SAMPLE_RATE, draw_spectrogram(waveform), row.text or "", sounds.encode(waveform))
    strip.letters = [(k, "·" if symbol == "|" else symbol) for k, symbol in letters]
    note = (
        "Each letter stands at the 20 ms frame in which the model writes it; a dot is the border of a word, and the "
        "frames between are blank. No transcript says when a letter is spoken: CTC finds the times by itself."
    )
    return [Figure(f"One utterance, {row.id}", strip, note, is_wide=True)]


def _is_finite(row: Mapping[str, Any]) -> bool:
    """Say whether all numbers of a validation are; the log has null for one that is not."""
    return all(
        value is not None and not (isinstance(value, float) and not math.isfinite(value)) for value in row.values()
    )
