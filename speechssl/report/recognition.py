"""What a recogniser writes: a fine-tuning run's figures, and transcripts word under word with their sound."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.data.manifest import Manifest, load_manifests
from speechssl.errors import SpeechSSLError
from speechssl.inference.recognise import recognise
from speechssl.report.figures import (
    Figure,
    Section,
    Stat,
    Table,
    count,
    format_hours,
    format_number,
    is_number,
    make_series,
    plot,
)
from speechssl.report.live import (
    LONGEST_S,
    Live,
    Sounds,
    choose_evenly,
    choose_example,
    list_long_enough,
    read_waveform,
)
from speechssl.report.pictures import Strip, draw_spectrogram
from speechssl.report.pretraining import make_pair, pick_values
from speechssl.report.run_folder import RunFolder

NUM_SPREAD, NUM_ERRORS, NUM_DECODED = 6, 12, 12

RATES = (("wer", "word error rate"), ("cer", "character error rate"))


@dataclass(frozen=True)
class Transcript:
    """One utterance: what was said, what the model wrote, and its sound as a data URI."""

    id: str
    speaker: str
    reference: str
    hypothesis: str
    sound: str | None = None

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Both texts word by word, aligned with the fewest edits (jiwer); '' for a word that is not there."""
        import jiwer

        said, heard = self.reference.split(), self.hypothesis.split()
        if not said or not heard:
            return [(word, "") for word in said] + [("", word) for word in heard]
        pairs: list[tuple[str, str]] = []
        for chunk in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
            before = said[chunk.ref_start_idx : chunk.ref_end_idx]
            after = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            length = max(len(before), len(after))
            pairs += zip(before + [""] * (length - len(before)), after + [""] * (length - len(after)), strict=True)
        return pairs

    @property
    def num_errors(self) -> int:
        """Word errors."""
        return sum(said != written for said, written in self.pairs)


@dataclass(frozen=True)
class Gloss:
    """Transcripts as a gloss: where a word is wrong, what was written stands under what was said."""

    macro: ClassVar[str] = "gloss"
    transcripts: Sequence[Transcript]


def describe_recogniser(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what a fine-tuning run came to, and pick its first figures: those of the checkpoint that is used.

    It is the validation with the lowest WER, then CER, and never the state before the first update.
    """
    rows = [row for row in run.select("valid") if row["update"] > 0 and {"wer", "cer"} <= row.keys()]
    finite = [row for row in rows if all(is_number(row[key]) for key in ("loss", "wer", "cer") if key in row)]
    best = min(finite, key=lambda row: (row["wer"], row["cer"]), default={})
    stats = [Stat(f"{best[key]:.1f} %", name, "held out, at the best checkpoint") for key, name in RATES if best]
    hours = run.last("train", "hours_seen")
    stats += (
        [Stat(format_hours(hours), "speech heard", f"with repeats, in {count(run.num_updates, 'update')}")]
        if hours
        else []
    )
    return "" if run.get_config("init") else "Trained from scratch, without pretraining.", stats


def make_errors(run: RunFolder, sounds: Sounds) -> list[Section]:
    """Draw the curves of errors and losses, and show what the run's own evaluation stored of its transcripts."""
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
    stored = read_transcripts(run)
    chosen = add_sounds(choose_evenly(stored, NUM_SPREAD), load_test_set(run), sounds)
    written = show(chosen, "What it writes", "From the run’s evaluation, from the worst utterance to the best.")
    return [Section("Learning", figures), Section("What it writes", written + count_errors(stored, run.confusions))]


def make_writing(run: RunFolder, live: Live, sounds: Sounds) -> list[Section]:
    """Show one utterance with the letters in time, and without a stored evaluation what the model writes now."""
    figures = _draw_emissions(live, sounds)
    transcripts = [] if run.utterances else transcribe(live)
    chosen = add_sounds(choose_evenly(transcripts, NUM_SPREAD), live.manifest, sounds)
    where = "held-out" if live.held_out else "training"
    note = f"{len(transcripts)} {where} utterances, decoded for this page, greedily; shown from the worst to the best."
    figures += show(chosen, "What it writes", note) + count_errors(transcripts, [])
    return [Section("What it hears", figures)]


def read_transcripts(run: RunFolder) -> list[Transcript]:
    r"""Read utterances.tsv, worst first, without its escapes `\t`, `\n`, `\r`, `\\`; [] where it has other columns."""
    rows = [row for row in run.utterances if {"id", "reference", "hypothesis"} <= set(row)]
    letters = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    fields = [[row.get(name, "") for name in ("id", "speaker", "reference", "hypothesis")] for row in rows]
    return [
        Transcript(*(re.sub(r"\\([tnr\\])", lambda found: letters[found[1]], text) for text in row)) for row in fields
    ]


def load_test_set(run: RunFolder) -> Manifest | None:
    """Load the manifests that a run's transcripts are of; None where one has moved or is damaged."""
    try:
        is_there = run.test_sets and all(Path(path).is_file() for path in run.test_sets)
        return load_manifests(run.test_sets, key="data.test") if is_there else None
    except SpeechSSLError:
        return None


def add_sounds(transcripts: Sequence[Transcript], manifest: Manifest | None, sounds: Sounds) -> list[Transcript]:
    """Give utterances their sound; the texts stand without it where the manifest or a file has moved."""
    places = {} if manifest is None else {name: index for index, name in enumerate(manifest.column("id"))}
    found = []
    for item in transcripts:
        sound = None
        if manifest is not None and item.id in places:
            with suppress(SpeechSSLError):
                sound = sounds.encode(read_waveform(manifest, places[item.id]))
        found.append(replace(item, sound=sound))
    return found


def show(transcripts: Sequence[Transcript], title: str, note: str) -> list[Figure]:
    """Make the figure of some transcripts; [] without any."""
    return [Figure(title, Gloss(transcripts), note, is_wide=True)] if transcripts else []


def count_errors(transcripts: Sequence[Transcript], stored: Sequence[dict[str, str]]) -> list[Figure]:
    """Tabulate the commonest errors of words, and of letters where a table of them is stored.

    Args:
        transcripts: utterances whose words are counted where no table is stored.
        stored: rows of confusions.tsv: unit, kind, reference, hypothesis, count.
    """
    counts: dict[str, Counter[tuple[str, str]]] = {"word": Counter(), "letter": Counter()}
    for row in stored:
        if row.get("unit") in counts and {"reference", "hypothesis", "count"} <= set(row):
            counts[row["unit"]][row["reference"], row["hypothesis"]] = int(row["count"])
    if not counts["word"]:
        counts["word"].update(pair for item in transcripts for pair in item.pairs if pair[0] != pair[1])
    figures = []
    for unit, counted in counts.items():
        kinds: Counter[str] = Counter()
        for (said, written), number in counted.items():
            kinds["left out" if not written else "added" if not said else "written as another"] += number
        total = ", ".join(f"{format_number(number)} {kind}" for kind, number in kinds.most_common())
        rows = [(said.replace(" ", "␣") or "∅", written.replace(" ", "␣") or "∅", number)
                for (said, written), number in counted.most_common(NUM_ERRORS)]  # fmt: skip
        table = Table(("said", "written", "times"), rows)
        figures += [Figure(f"Commonest {unit} errors", table, f"∅ is nothing. In all: {total}.")] if rows else []
    return figures


def describe_interval(interval: Any) -> str:
    """Write an interval (`evaluation.statistics.Interval` as stored) with its unit and count; '' without one."""
    if not isinstance(interval, dict):
        return ""
    low, high, unit, number = (interval.get(name) for name in ("low", "high", "unit", "count"))
    if low is None or high is None:
        return f"no interval from {number} {unit}" if number else ""
    over = f", over {number} {unit}s" if number and unit else ""
    doubt = "" if interval.get("reliable", True) else ", too few to trust"
    return f"95 %: {low:.1f} to {high:.1f}{over}{doubt}"


def transcribe(live: Live) -> list[Transcript]:
    """Let the model write a few utterances, worst first; [] where there are no transcripts to compare with."""
    vocabulary = live.model.vocabulary
    if vocabulary is None or not live.manifest.has("text"):
        return []
    texts, lengths = live.manifest.column("text"), live.manifest.num_samples_16k / SAMPLE_RATE
    fitting = [k for k in list_long_enough(live, 0.5) if lengths[k] <= LONGEST_S and texts[k]]
    chosen = live.manifest.select(choose_evenly(fitting, NUM_DECODED))
    written = recognise(live.model, chosen) if len(chosen) else []
    rows = [chosen[k] for k in range(len(chosen))]
    transcripts = [
        Transcript(row.id, row.speaker or "", vocabulary.normalise_reference(row.text or ""), vocabulary.fold(text))
        for row, text in zip(rows, written, strict=True)
    ]
    return sorted(transcripts, key=lambda item: item.num_errors, reverse=True)


def _draw_emissions(live: Live, sounds: Sounds) -> list[Figure]:
    """Draw a spectrogram with the letters under the places where the model writes them."""
    index = choose_example(live, 6.0)
    if index is None or live.model.head is None or live.model.vocabulary is None:
        return []
    row, waveform = live.manifest[index], read_waveform(live.manifest, index, 9.0)
    with torch.inference_mode():
        best = live.model.logits(torch.from_numpy(waveform)[None], None)[0][0].argmax(-1).tolist()
    symbols = live.model.vocabulary.symbols
    letters = [(k, symbols[b]) for k, b in enumerate(best) if b != 0 and (k == 0 or best[k - 1] != b)]
    strip = Strip(len(waveform) / SAMPLE_RATE, draw_spectrogram(waveform), row.text or "", sounds.encode(waveform))
    strip.frame_rate = SAMPLE_RATE / live.model.config.output_hop
    strip.letters = [(k, "·" if symbol == "|" else symbol) for k, symbol in letters]
    note = (
        f"Each letter stands at the {round(1000 / strip.frame_rate)} ms frame in which the model writes it; a dot is "
        "the border of a word, and the frames between are blank. No transcript says when a letter is spoken: CTC finds "
        "the times by itself."
    )
    return [Figure(f"One utterance, {row.id}", strip, note, is_wide=True)]
