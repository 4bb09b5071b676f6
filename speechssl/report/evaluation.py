"""The sections of an evaluation: its error rates, the commonest errors, speakers, and transcripts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from speechssl.report.html import Stat, escape, format_number, make_figure, make_section, make_table
from speechssl.report.run_folder import RunFolder
from speechssl.report.transcripts import choose_some, draw_confusions, draw_transcripts, read_transcripts


def describe_evaluation(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what an evaluation came to, and pick its first figures."""
    stats = []
    for key, name in (("wer", "word error rate"), ("cer", "character error rate")):
        if isinstance(run.result.get(key), (int, float)):
            interval = describe_interval(run.result.get(f"{key}_interval"))
            stats.append(Stat(f"{run.result[key]:.1f} %", name, interval))
    for key, name in (("num_utterances", "utterances"), ("num_words", "words")):
        if isinstance(run.result.get(key), int):
            stats.append(Stat(format_number(run.result[key]), name))
    checkpoint = run.result.get("checkpoint")
    of = f" of {escape(checkpoint)}" if checkpoint else ""
    return f"Word and character error rates{of}, as sums over the whole test set{describe_decoding(run)}.", stats


def make_evaluation(run: RunFolder) -> str:
    """Draw the worst and some other utterances, the commonest errors, and each speaker's rate."""
    transcripts = read_transcripts(run)
    worst = draw_transcripts(transcripts[:4], "The worst utterances", "Those with the most word errors.")
    others = choose_some(transcripts[4:])
    spread = draw_transcripts(others, "From bad to good", "Utterances at equal distances in the order of their errors.")
    errors = draw_confusions(transcripts, run.confusions) + _draw_speakers(run)
    return make_section("Where the errors are", errors) + make_section("Transcripts", worst + spread)


def describe_decoding(run: RunFolder) -> str:
    """Say how the texts were read off the frames; '' for greedy decoding."""
    beam = run.result.get("beam")
    if run.result.get("decoding") != "beam" or not isinstance(beam, dict):
        return ""
    lm = f" and the n-gram {escape(beam['lm'])}" if beam.get("lm") else " and no language model"
    return f", decoded with a beam of {escape(beam.get('beam_width'))}{lm}"


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


def _draw_speakers(run: RunFolder) -> str:
    """Tabulate each speaker's word error rate, from the counts in utterances.tsv."""
    words: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for row in run.utterances:
        if row.get("speaker") and row.get("num_words") and row.get("word_errors"):
            words[row["speaker"]] += int(row["num_words"])
            errors[row["speaker"]] += int(row["word_errors"])
    if len(words) < 2:
        return ""
    order = sorted(words, key=lambda speaker: -errors[speaker] / max(words[speaker], 1))
    rows = [[s, format_number(words[s]), f"{100 * errors[s] / max(words[s], 1):.1f}"] for s in order[:20]]
    note = f"The {len(rows)} of {len(words)} speakers with the most errors a word." if len(words) > len(rows) else ""
    return make_figure("By speaker", make_table(("speaker", "words", "WER %"), rows, numeric=(1, 2)), note)
