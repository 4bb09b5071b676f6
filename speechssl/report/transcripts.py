"""Transcripts with their errors coloured, word under word, and the commonest confusions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechssl.report.html import escape, format_number, make_figure
from speechssl.report.marks import draw_counts
from speechssl.report.run_folder import RunFolder

NUM_SHOWN = 6
LEGEND = (
    '<p class="legend gloss-legend">'
    '<span><span class="pair sub"><span>said</span><span>written</span></span> another word</span>'
    '<span><span class="pair del"><span>said</span><span>–</span></span> left out</span>'
    '<span><span class="pair ins"><span>–</span><span>written</span></span> added</span></p>'
)


@dataclass(frozen=True)
class Transcript:
    """One utterance: what was said and what the model wrote."""

    id: str
    speaker: str
    reference: str
    hypothesis: str


def read_transcripts(run: RunFolder) -> list[Transcript]:
    """Read utterances.tsv in its order, worst first; [] where it is not there or has other columns."""
    rows = [row for row in run.utterances if {"id", "reference", "hypothesis"} <= set(row)]
    names = ("id", "speaker", "reference", "hypothesis")
    return [Transcript(*(_unescape(row.get(name) or "") for name in names)) for row in rows]


def choose_some(transcripts: list[Transcript]) -> list[Transcript]:
    """Choose a few at equal distances in the order they have."""
    places = np.unique(np.linspace(0, len(transcripts) - 1, min(NUM_SHOWN, len(transcripts))).round())
    return [transcripts[int(k)] for k in places]


def pair_words(reference: str, hypothesis: str) -> list[tuple[str, str]]:
    """Align two texts word by word, with the fewest edits (jiwer).

    Returns:
        Pairs of what was said and what was written; '' in one of them for a word that was left out or added.
    """
    import jiwer

    said, heard = reference.split(), hypothesis.split()
    if not said or not heard:
        return [(word, "") for word in said] + [("", word) for word in heard]
    pairs: list[tuple[str, str]] = []
    for chunk in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
        before = said[chunk.ref_start_idx : chunk.ref_end_idx]
        after = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        length = max(len(before), len(after))
        pairs += zip(before + [""] * (length - len(before)), after + [""] * (length - len(after)), strict=True)
    return pairs


def draw_transcripts(transcripts: Sequence[Transcript], title: str, note: str) -> str:
    """Set transcripts as a gloss: where a word is wrong, what was written stands under what was said."""
    if not transcripts:
        return ""
    items = "".join(_draw_transcript(transcript) for transcript in transcripts)
    return make_figure(title, f'{LEGEND}<ol class="gloss">{items}</ol>', note, kind="wide")


def count_errors(transcript: Transcript) -> int:
    """Count the word errors of one utterance."""
    return sum(said != written for said, written in pair_words(transcript.reference, transcript.hypothesis))


def draw_confusions(transcripts: Sequence[Transcript], stored: Sequence[dict[str, str]], number: int = 12) -> str:
    """Draw the commonest errors of words, and of letters where a table of them is stored.

    Args:
        transcripts: utterances whose words are counted where no table is stored.
        stored: rows of confusions.tsv: unit, kind, reference, hypothesis, count.
        number: rows to draw.
    """
    words, letters = _read_counts(stored, "word"), _read_counts(stored, "letter")
    if not words:
        for transcript in transcripts:
            words.update(pair for pair in pair_words(transcript.reference, transcript.hypothesis) if pair[0] != pair[1])
    return _draw_counter(words, "Commonest word errors", number) + _draw_counter(
        letters, "Commonest letter errors", number
    )


def _read_counts(stored: Sequence[dict[str, str]], unit: str) -> Counter[tuple[str, str]]:
    rows = [row for row in stored if row.get("unit") == unit and {"reference", "hypothesis", "count"} <= set(row)]
    return Counter({(row["reference"], row["hypothesis"]): int(row["count"]) for row in rows})


def _draw_counter(counted: Counter[tuple[str, str]], title: str, number: int) -> str:
    if not counted:
        return ""
    kinds: Counter[str] = Counter()
    for (said, written), count in counted.items():
        kinds["left out" if not written else "added" if not said else "written as another"] += count
    total = ", ".join(f"{format_number(count)} {kind}" for kind, count in kinds.most_common())
    rows = [(describe_pair(*pair), count) for pair, count in counted.most_common(number)]
    return make_figure(title, draw_counts(rows, title), f"What was said → what was written. In all: {total}.")


def describe_pair(said: str, written: str) -> str:
    """Write one error as HTML: said → written."""
    before, after = (
        f"<b>{escape(text.replace(' ', '␣'))}</b>" if text else '<i class="gap">nothing</i>' for text in (said, written)
    )
    return f"{before} → {after}"


def _draw_transcript(transcript: Transcript) -> str:
    pairs = pair_words(transcript.reference, transcript.hypothesis)
    wrong = sum(a != b for a, b in pairs)
    words = len(transcript.reference.split())
    small = " capitals" if transcript.reference.isupper() else ""
    body = "".join(_draw_pair(said, written) for said, written in pairs)
    verdict = "every word right" if wrong == 0 else f"{wrong} of {words} words wrong" if words else f"{wrong} added"
    speaker = f" · speaker {escape(transcript.speaker)}" if transcript.speaker else ""
    return f'<li><p class="who">{escape(transcript.id)}{speaker} · {verdict}</p><p class="words{small}">{body}</p></li>'


def _draw_pair(said: str, written: str) -> str:
    if said == written:
        return f"<span class=word>{escape(said)}</span> "
    kind = "del" if not written else "ins" if not said else "sub"
    return f'<span class="pair {kind}"><span>{escape(said or "–")}</span><span>{escape(written or "–")}</span></span> '


def _unescape(text: str) -> str:
    r"""Undo the escapes of a tab-separated file: `\t`, `\n`, `\r` and `\\`."""
    letters = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([tnr\\])", lambda match: letters[match[1]], text)
