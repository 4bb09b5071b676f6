"""What a recogniser writes: error rates, the commonest errors, and transcripts word under word with their sound."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from speechssl.data.manifest import Manifest, load_manifests
from speechssl.errors import SpeechSSLError
from speechssl.report.content import Bars, Figure, Section, Stat, Table, Verdict, format_number
from speechssl.report.run_folder import RunFolder
from speechssl.report.sounds import Sounds, read_waveform

NUM_WORST, NUM_SPREAD, NUM_ERRORS, NUM_SPEAKERS = 4, 6, 12, 20


@dataclass(frozen=True)
class Transcript:
    """One utterance: what was said, what the model wrote, and its sound as a data URI."""

    id: str
    speaker: str
    reference: str
    hypothesis: str
    sound: str | None = None

    @property
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

    @property
    def verdict(self) -> str:
        """How many of its words are wrong, in words."""
        words = len(self.reference.split())
        if self.num_errors == 0:
            return "every word right"
        return f"{self.num_errors} of {words} words wrong" if words else f"{self.num_errors} added"


@dataclass(frozen=True)
class Gloss:
    """Transcripts as a gloss: where a word is wrong, what was written stands under what was said."""

    macro: ClassVar[str] = "gloss"
    transcripts: Sequence[Transcript]


def describe_evaluation(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what an evaluation came to, and pick its first figures."""
    stats = []
    for key, name in (("wer", "word error rate"), ("cer", "character error rate")):
        if isinstance(run.result.get(key), (int, float)):
            stats.append(Stat(f"{run.result[key]:.1f} %", name, describe_interval(run.result.get(f"{key}_interval"))))
    for key, name in (("num_utterances", "utterances"), ("num_words", "words")):
        if isinstance(run.result.get(key), int):
            stats.append(Stat(format_number(run.result[key]), name))
    beam, how = run.result.get("beam"), ""
    if run.result.get("decoding") == "beam" and isinstance(beam, dict):
        lm = f"the n-gram {beam['lm']}" if beam.get("lm") else "no language model"
        how = f", decoded with a beam of {beam.get('beam_width')} and {lm}"
    return f"Word and character error rates, as sums over the whole test set{how}.", stats


def judge_evaluation(run: RunFolder) -> Verdict:
    """Say whether the error rates mean something."""
    wer, interval = run.result.get("wer"), run.result.get("wer_interval")
    if not isinstance(wer, (int, float)):
        return Verdict("open", "No error rate", "The folder holds transcripts without their result.")
    text = f"{wer:.1f} of 100 words are wrong, left out or added"
    empty = run.result.get("num_empty")
    text += f"; {format_number(empty)} utterances came out empty" if isinstance(empty, int) and empty else ""
    if wer >= 99:
        return Verdict("bad", "Hardly a word is right", f"{text}.")
    if isinstance(interval, dict) and not interval.get("reliable", True):
        return Verdict("doubt", "A rough figure", f"{text}. The interval is over too few {interval.get('unit')}s.")
    return Verdict("good", "Measured", f"{text}.")


def make_evaluation(run: RunFolder, sounds: Sounds) -> list[Section]:
    """Show the worst and some other utterances, the commonest errors, and each speaker's rate."""
    transcripts = read_transcripts(run)
    worst = add_sounds(transcripts[:NUM_WORST], load_test_set(run), sounds)
    note = "Utterances at equal distances in the order of their errors."
    figures = show(worst, "The worst utterances", "Those with the most word errors.")
    figures += show(choose_some(transcripts[NUM_WORST:]), "From bad to good", note)
    sections = (Section("Where the errors are", count_errors(transcripts, run.confusions) + _tabulate_speakers(run)),
                Section("Transcripts", figures))  # fmt: skip
    return [section for section in sections if section.figures]


def read_transcripts(run: RunFolder) -> list[Transcript]:
    """Read utterances.tsv in its order, worst first; [] where it is not there or has other columns."""
    rows = [row for row in run.utterances if {"id", "reference", "hypothesis"} <= set(row)]
    names = ("id", "speaker", "reference", "hypothesis")
    return [Transcript(*(_unescape(row.get(name) or "") for name in names)) for row in rows]


def choose_some(transcripts: list[Transcript]) -> list[Transcript]:
    """Choose a few at equal distances in the order they have."""
    places = np.unique(np.linspace(0, len(transcripts) - 1, min(NUM_SPREAD, len(transcripts))).round())
    return [transcripts[int(k)] for k in places]


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
    """Draw the commonest errors of words, and of letters where a table of them is stored.

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
        note = f"What was said → what was written. In all: {total}."
        bars = Bars(counted.most_common(NUM_ERRORS))
        figures += [Figure(f"Commonest {unit} errors", bars, note)] if counted else []
    return figures


def describe_interval(interval: Any) -> str:
    """Write an interval (`evaluation.statistics.Interval` as stored) with its unit and count; '' without one."""
    if not isinstance(interval, dict):
        return ""
    low, high, unit, count = (interval.get(name) for name in ("low", "high", "unit", "count"))
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return f"no interval from {count} {unit}" if count else ""
    over = f", over {count} {unit}s" if count and unit else ""
    doubt = "" if interval.get("reliable", True) else ", too few to trust"
    return f"95 %: {low:.1f} to {high:.1f}{over}{doubt}"


def _tabulate_speakers(run: RunFolder) -> list[Figure]:
    """Tabulate each speaker's word error rate, from the counts in utterances.tsv."""
    words: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for row in run.utterances:
        if row.get("speaker") and row.get("num_words") and row.get("word_errors"):
            words[row["speaker"]] += int(row["num_words"])
            errors[row["speaker"]] += int(row["word_errors"])
    if len(words) < 2:
        return []
    rates = {speaker: 100 * errors[speaker] / max(words[speaker], 1) for speaker in words}
    worst = sorted(rates, key=lambda speaker: -rates[speaker])[:NUM_SPEAKERS]
    rows = [(speaker, words[speaker], round(rates[speaker], 1)) for speaker in worst]
    note = f"The {len(rows)} of {len(words)} speakers with the most errors a word." if len(words) > len(rows) else ""
    return [Figure("By speaker", Table(("speaker", "words", "WER %"), rows), note)]


def _unescape(text: str) -> str:
    r"""Undo the escapes of a tab-separated file: `\t`, `\n`, `\r` and `\\`."""
    letters = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([tnr\\])", lambda match: letters[match[1]], text)
