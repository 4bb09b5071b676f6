"""The sections of a fine-tuning run: how its error rates fell, what it writes, and when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.inference.recognise import recognise
from speechssl.report.curves import draw_curves, make_curve
from speechssl.report.html import (
    Stat,
    escape,
    format_hours,
    format_number,
    make_figure,
    make_quote,
    make_section,
)
from speechssl.report.live import Live, choose_evenly, choose_example, list_long_enough, read_waveform
from speechssl.report.pretraining import draw_trainer, make_figure_of, pick_values
from speechssl.report.run_folder import RunFolder
from speechssl.report.spectrogram import compute_log_mel, draw_spectrogram
from speechssl.report.strip import Strip, count_seconds
from speechssl.report.transcripts import (
    Transcript,
    choose_some,
    count_errors,
    draw_confusions,
    draw_transcripts,
    read_transcripts,
)

LIVE_UTTERANCES, LONGEST_S = 12, 20.0


def describe_recogniser(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what a fine-tuning run came to, and pick its first figures."""
    init = run.get_config("init") or ""
    start = f"Fine-tuned from {escape(init)}" if init else "Trained from scratch, without pretraining"
    wer, stats = _find_best(run, "wer"), []
    for key, name in (("wer", "word error rate"), ("cer", "character error rate")):
        value = _find_best(run, key)
        if value is not None:
            stats.append(Stat(f"{value:.1f} %", name, "held out, at the best checkpoint"))
    hours, rows = run.last("train", "hours_seen"), run.select("train")
    if hours and rows:
        updates = f"with repeats, in {format_number(rows[-1]['update'])} updates"
        stats.append(Stat(format_hours(hours), "speech heard", updates))
    if wer is None:
        return f"{start}.", stats
    return f"{start}. Its best checkpoint has a word error rate of {wer:.1f} % on held-out speech.", stats


def make_recogniser(run: RunFolder, live: Live | None) -> str:
    """Draw the curves, one utterance with what the model writes, and transcripts with their errors."""
    parts = [_draw_learning(run)]
    transcripts, source = find_transcripts(run, live)
    heard = _draw_emissions(live) if live is not None else ""
    heard += draw_transcripts(choose_some(transcripts), "What it writes", source)
    heard += draw_confusions(transcripts, run.confusions)
    parts.append(make_section("What it writes", heard))
    parts.append(make_section("Under the bonnet", draw_trainer(run), css="grid small"))
    return "".join(parts)


def find_transcripts(run: RunFolder, live: Live | None) -> tuple[list[Transcript], str]:
    """Find what the run's model wrote: in its evaluation, or by letting it write now."""
    stored = read_transcripts(run)
    if stored:
        return stored, "From the run’s evaluation, from the worst utterance to the best."
    if live is None or live.model.vocabulary is None or not live.manifest.has("text"):
        return [], ""
    vocabulary = live.model.vocabulary
    texts, lengths = live.manifest.column("text"), live.manifest.num_samples_16k / SAMPLE_RATE
    fitting = [k for k in list_long_enough(live, 0.5) if lengths[k] <= LONGEST_S and texts[k]]
    chosen = live.manifest.select(choose_evenly(fitting, LIVE_UTTERANCES))
    if len(chosen) == 0:
        return [], ""
    written = recognise(live.model, chosen)
    rows = [chosen[k] for k in range(len(chosen))]
    transcripts = [
        Transcript(row.id, row.speaker or "", vocabulary.normalise_reference(row.text or ""), vocabulary.fold(text))
        for row, text in zip(rows, written, strict=True)
    ]
    where = "held-out" if live.held_out else "training"
    note = f"{len(transcripts)} {where} utterances, decoded for this page, greedily; shown from the worst to the best."
    return sorted(transcripts, key=count_errors, reverse=True), note


def _draw_learning(run: RunFolder) -> str:
    note = "The cost of the right letters. It often stands still while the model writes only blanks, then falls."
    loss = make_figure_of(run, "loss", "CTC loss", "nats an utterance", note, from_zero=True)
    per_label = make_figure_of(run, "loss_per_label", "CTC loss a letter", "nats", "", from_zero=True)
    words = make_curve("words", "c1", *pick_values(run, "valid", "wer"))
    characters = make_curve("characters", "c2", *pick_values(run, "valid", "cer"))
    picture = draw_curves([words, characters], from_zero=True)
    note = (
        "Errors (wrong, left out and added) for each 100 words or characters of held-out speech. "
        "Writing nothing at all gets 100 %."
    )
    errors = make_figure("Error rates", picture, note, "%") if picture else ""
    return make_section("Learning", errors + loss + per_label)


def _draw_emissions(live: Live) -> str:
    """Draw a spectrogram with the letters under the places where the model writes them."""
    index = choose_example(live, 6.0)
    if index is None or live.model.head is None or live.model.vocabulary is None:
        return ""
    waveform = read_waveform(live.manifest, index, 9.0)
    with torch.inference_mode():
        best = live.model.logits(torch.from_numpy(waveform)[None], None)[0][0].argmax(-1).tolist()
    symbols = live.model.vocabulary.symbols
    letters = [(k, symbols[b]) for k, b in enumerate(best) if b != 0 and (k == 0 or best[k - 1] != b)]
    strip = Strip(count_seconds(len(waveform)))
    strip.add_spectrogram(draw_spectrogram(compute_log_mel(waveform)))
    strip.add_letters("letters", [(k, "·" if symbol == "|" else symbol) for k, symbol in letters])
    row = live.manifest[index]
    note = (
        "Each letter stands at the 20 ms frame in which the model writes it; a dot is the border of a word, and the "
        "frames between are blank. No transcript says when a letter is spoken: CTC finds the times by itself."
    )
    picture = make_quote(row.text) + strip.render(f"Spectrogram of {row.id} with letters")
    return make_figure(f"One utterance, {row.id}", picture, note, kind="wide")


def _find_best(run: RunFolder, name: str) -> float | None:
    """Give the metric at the validation with the lowest WER, then CER: the checkpoint that is used.

    Never that of the state before the first update, as of a recogniser that goes on: it is no checkpoint.
    """
    rows = [row for row in run.select("valid") if row["update"] > 0 and {"wer", name} <= row.keys() and _is_finite(row)]
    return float(min(rows, key=lambda row: (row["wer"], row.get("cer", 0.0)))[name]) if rows else None


def _is_finite(row: Mapping[str, Any]) -> bool:
    """Say whether all numbers of a validation are; the log has null for one that is not."""
    return all(
        value is not None and not (isinstance(value, float) and not math.isfinite(value)) for value in row.values()
    )
