"""What an evaluation, or a scoring of texts, came to: its figures, where the errors are, and the utterances."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from speechssl.evaluation.statistics import compute_interval
from speechssl.report.figures import (
    Figure,
    Section,
    Stat,
    Table,
    Verdict,
    count,
    format_number,
    is_number,
    make_series,
    plot,
)
from speechssl.report.live import Sounds, choose_evenly
from speechssl.report.recognition import (
    NUM_SPREAD,
    RATES,
    add_sounds,
    count_errors,
    describe_interval,
    load_test_set,
    read_transcripts,
    show,
)
from speechssl.report.run_folder import RunFolder

NUM_WORST, NUM_SPEAKERS = 6, 20

KINDS = (("substitutions", "written as another"), ("deletions", "left out"), ("insertions", "added"))

CONDITIONS = (
    ("seconds", "Errors by length", "seconds"),
    ("level_db", "Errors by level", "decibels against full scale (mean power)"),
)
"""Columns of utterances.tsv that word errors are drawn against: title of the chart, and the name of its axis."""

MAX_BINS, MIN_IN_BIN = 8, 8
"""Points of such a chart at most, and utterances behind each at least."""


def describe_evaluation(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what an evaluation came to, and pick its first figures."""
    result, beam, how = run.result, run.result.get("beam"), ""
    stats = [
        Stat(f"{result[key]:.1f} %", name, describe_interval(result.get(f"{key}_interval")))
        for key, name in RATES
        if is_number(result.get(key))
    ]
    words = result.get("num_words")
    for key, what in KINDS:
        if is_number(number := result.get(key)) and is_number(words) and words:
            stats.append(Stat(f"{100 * number / words:.1f} %", key, f"{count(int(number), 'word')} {what}"))
    for key, name in (("num_utterances", "utterances"), ("num_words", "words")):
        stats += [Stat(format_number(result[key]), name)] if is_number(result.get(key)) else []
    if result.get("decoding") == "beam" and isinstance(beam, dict):
        lm = f"the n-gram {beam['lm']}" if beam.get("lm") else "no language model"
        how = f", decoded with a beam of {beam.get('beam_width')} and {lm}"
    if result.get("normaliser") not in (None, "none"):
        how += f", both texts through the normaliser {result['normaliser']}"
    return f"Word and character error rates, as sums over the whole test set{how}.", stats


def judge_evaluation(run: RunFolder) -> Verdict:
    """Say whether the error rates mean something."""
    wer, interval, empty = (run.result.get(key) for key in ("wer", "wer_interval", "num_empty"))
    if wer is None or not is_number(wer):
        return Verdict("open", "No error rate", "The folder holds transcripts without their result.")
    text = f"{wer:.1f} of 100 words are wrong, left out or added"
    text += f"; {count(empty, 'utterance')} came out empty" if isinstance(empty, int) and empty else ""
    if wer >= 99:
        return Verdict("bad", "Hardly a word is right", f"{text}.")
    if isinstance(interval, dict) and not interval.get("reliable", True):
        return Verdict("doubt", "A rough figure", f"{text}. The interval is over too few {interval.get('unit')}s.")
    return Verdict("good", "Measured", f"{text}.")


def make_evaluation(run: RunFolder, sounds: Sounds) -> list[Section]:
    """Show the worst and some other utterances, the commonest errors, and each speaker's rate."""
    transcripts = read_transcripts(run)
    worst = add_sounds(transcripts[:NUM_WORST], load_test_set(run), sounds)
    figures = show(worst, "The worst utterances", "Those with the most word errors.")
    note = "Utterances at equal distances in the order of their errors."
    figures += show(choose_evenly(transcripts[NUM_WORST:], NUM_SPREAD), "From bad to good", note)
    errors = count_errors(transcripts, run.confusions) + _tabulate_speakers(run) + _tabulate_groups(run)
    errors += [figure for condition in CONDITIONS for figure in _draw_condition(run, *condition)]
    errors += _draw_calibration(run)
    return [Section("Where the errors are", errors), Section("Transcripts", figures)]


def _tabulate_speakers(run: RunFolder) -> list[Figure]:
    """Tabulate each speaker's word error rate, from the counts in utterances.tsv."""
    words: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for row in run.utterances:
        if row.get("speaker") and row.get("num_words") and row.get("word_errors"):
            words[row["speaker"]] += int(row["num_words"])
            errors[row["speaker"]] += int(row["word_errors"])
    rows = [(name, number, round(100 * errors[name] / max(number, 1), 1)) for name, number in words.items()]
    shown = sorted(rows, key=lambda row: -row[2])[:NUM_SPEAKERS]
    note = f"The {len(shown)} of {len(rows)} speakers with the most errors a word." if len(rows) > len(shown) else ""
    return [Figure("By speaker", Table(("speaker", "words", "WER %"), shown), note)] if len(rows) > 1 else []


def _tabulate_groups(run: RunFolder) -> list[Figure]:
    """Tabulate the rates of the groups that `by` asked for, a table a column."""
    groups = [group for group in run.result.get("groups") or [] if isinstance(group, dict)]
    figures = []
    for column in dict.fromkeys(str(group.get("column")) for group in groups):
        own = [group for group in groups if str(group.get("column")) == column]
        rows = [
            (str(group.get("value")) or "∅", group.get("num_words"), _round(group.get("wer")), _round(group.get("cer")),
             describe_interval(group.get("wer_interval")).removeprefix("95 %: "))
            for group in own
        ]  # fmt: skip
        figures.append(Figure(f"By {column}", Table((column, "words", "WER %", "CER %", "WER, 95 %"), rows)))
    return figures


def _draw_condition(run: RunFolder, column: str, title: str, x_label: str) -> list[Figure]:
    """Draw the word error rate against a number that each utterance has; [] where too few have one."""
    names = (column, "word_errors", "num_words")
    rows = [tuple(float(row[name]) for name in names) for row in run.utterances if all(row.get(k) for k in names)]
    table = np.array(sorted(row for row in rows if np.isfinite(row[0]))).reshape(-1, 3)
    num_bins = min(MAX_BINS, len(table) // MIN_IN_BIN)
    bins = [part for part in np.array_split(table, num_bins) if part[:, 2].any()] if num_bins > 1 else []
    if len(bins) < 2:
        return []
    x = [float(np.median(part[:, 0])) for part in bins]
    y = [float(100 * part[:, 1].sum() / part[:, 2].sum()) for part in bins]
    intervals = [compute_interval(part[:, 1], part[:, 2], None, 500, 1) for part in bins]
    low, high = (np.array([getattr(interval, end) for interval in intervals], np.float64) for end in ("low", "high"))
    series = make_series("words", "c1", x, y, low=low, high=high)
    note = f"Utterances in {len(bins)} equal parts; the band is the 95 % interval over the utterances of each."
    return plot(title, "WER, %", [series], note, x_label=x_label, from_zero=True)


def _draw_calibration(run: RunFolder) -> list[Figure]:
    """Draw the share of letters that are right against the confidence, beside what it would be if both were equal."""
    found = run.result.get("calibration")
    if not isinstance(found, dict) or len(found.get("bins") or []) < 2:
        return []
    sure, right, _ = zip(*found["bins"], strict=True)
    curves = [
        make_series("letters", "c1", sure, right),
        make_series("if both were equal", "ink", sure, sure, kind="thin"),
    ]
    note = (
        "Utterances by how sure the recogniser is of a letter of theirs, on average, against the share of the letters "
        f"it wrote that are right. Expected calibration error: {found['error']:.1f} points."
    )
    return plot("Confidence", "letters right, %", curves, note, x_label="confidence, %")


def _round(rate: Any) -> Any:
    return round(rate, 1) if is_number(rate) else "–"
