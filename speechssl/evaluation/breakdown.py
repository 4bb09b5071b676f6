"""Where a recogniser's errors are, as tables for people and as files for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

from speechssl.data.texts import format_trn
from speechssl.durable import remove
from speechssl.evaluation.statistics import RELIABLE_UNITS, Interval
from speechssl.evaluation.wer import Edit, Scores, SpeakerScore
from speechssl.printable import escape_field, make_printable
from speechssl.text.vocabulary import is_silent

UTTERANCES_NAME, CONFUSIONS_NAME, GROUPS_NAME = "utterances.tsv", "confusions.tsv", "groups.tsv"
TRN_NAMES = ("reference.trn", "hypothesis.trn")

_SPACE, _NOTHING = "␣", "∅"
_LONGEST = 160


@dataclass(frozen=True)
class Group:
    """The rates of the utterances that have one value in one column, in percent; None where nothing was said."""

    column: str
    value: str
    num_utterances: int
    num_words: int
    wer: float | None
    wer_interval: Interval
    cer: float | None
    cer_interval: Interval


def score_groups(scores: Scores, columns: Mapping[str, Sequence[str]], num_resamples: int, seed: int) -> list[Group]:
    """Compute rates and their intervals for every value of some columns, sorted by value; '' is a value too.

    Args:
        scores: n utterances.
        columns: n values of each column.
        num_resamples, seed: of the bootstrap.
    """
    groups = []
    for column, values in columns.items():
        for value in sorted(set(values)):
            own = scores.select([k for k, found in enumerate(values) if found == value])
            intervals = own.compute_wer_interval(num_resamples, seed), own.compute_cer_interval(num_resamples, seed)
            rates = [None if isnan(rate) else rate for rate in (own.wer, own.cer)]
            sizes = len(own.utterances), own.num_words
            groups.append(Group(column, value, *sizes, rates[0], intervals[0], rates[1], intervals[1]))
    return groups


def summarise(scores: Scores, groups: Sequence[Group], num_resamples: int, seed: int) -> dict[str, Any]:
    """Collect the figures of a result; those of speakers and of other columns where there are few of them."""
    kinds = Counter(edit.kind for utterance in scores.utterances for edit in utterance.word_edits)
    speakers = scores.score_speakers()
    sizes = Counter(group.column for group in groups)
    return {
        "wer": scores.wer,
        "wer_interval": scores.compute_wer_interval(num_resamples, seed).to_dict(),
        "wer_unit": "word" if scores.has_words else "character",
        "cer": scores.cer,
        "cer_interval": scores.compute_cer_interval(num_resamples, seed).to_dict(),
        "num_utterances": len(scores.utterances),
        "num_words": scores.num_words,
        "num_letters": scores.num_letters,
        "num_speakers": len(speakers) or None,
        "num_empty": sum(not utterance.hypothesis for utterance in scores.utterances),
        "num_silent": sum(not utterance.reference for utterance in scores.utterances),
        "num_wrong_utterances": sum(bool(utterance.word_edits) for utterance in scores.utterances),
        "substitutions": kinds["substitution"],
        "deletions": kinds["deletion"],
        "insertions": kinds["insertion"],
        "speakers": [asdict(speaker) for speaker in speakers] if len(speakers) < RELIABLE_UNITS else [],
        "groups": [asdict(group) for group in groups if sizes[group.column] < RELIABLE_UNITS],
    }


def format_groups(groups: Sequence[Group]) -> str:
    """Tabulate the rates of groups, with the intervals of their word error rates."""
    rows = []
    for group in groups:
        rates = ["-" if rate is None else f"{rate:.1f}" for rate in (group.wer, group.cer)]
        sizes = f"{group.num_utterances:,}", f"{group.num_words:,}"
        rows.append((group.column, group.value or _NOTHING, *sizes, *rates, str(group.wer_interval)))
    return format_table(("column", "value", "utterances", "words", "WER %", "CER %", "WER, 95 %"), rows)


def write_groups(groups: Sequence[Group], path: Path) -> None:
    """Write one line a group: column, value, sizes, and both rates with the ends of their intervals."""
    lines = ["column\tvalue\tnum_utterances\tnum_words\twer\twer_low\twer_high\tcer\tcer_low\tcer_high\tunit\tunits"]
    for group in groups:
        figures = [group.wer, group.wer_interval.low, group.wer_interval.high]
        figures += [group.cer, group.cer_interval.low, group.cer_interval.high]
        cells = [escape_field(group.column), escape_field(group.value), str(group.num_utterances), str(group.num_words)]
        cells += ["" if figure is None else f"{figure:.4f}" for figure in figures]
        lines.append("\t".join([*cells, group.wer_interval.unit, str(group.wer_interval.count)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align columns with spaces; the last column is as long as it is."""
    table = [[make_printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in table) for k in range(len(header) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in table
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def format_speakers(speakers: Sequence[SpeakerScore]) -> str:
    """Tabulate each speaker's rates."""
    rows = []
    for item in speakers:
        rates = ["-" if rate is None else f"{rate:.1f}" for rate in (item.wer, item.cer)]
        rows.append((item.speaker, str(item.num_utterances), str(item.num_words), *rates))
    return format_table(("speaker", "utterances", "words", "WER %", "CER %"), rows)


def format_confusions(scores: Scores, limit: int = 8) -> str:
    """Tabulate the commonest errors: words beside words, letters beside letters, each kind in its column."""
    kinds = ("substitution", "deletion", "insertion")
    parts = []
    for unit, counts in (("words", scores.count_word_confusions()), ("letters", scores.count_letter_confusions())):
        ordered = [(edit, f"{_show(edit)} ×{count:,}") for edit, count in _sort_commonest(counts)]
        columns = [[shown for edit, shown in ordered if edit.kind == kind][:limit] for kind in kinds]
        height = max(len(column) for column in columns)
        rows = [[column[k] if k < len(column) else "" for column in columns] for k in range(height)]
        totals = [sum(count for edit, count in counts.items() if edit.kind == kind) for kind in kinds]
        header = [f"{kind}s of {unit} ({total:,})" for kind, total in zip(kinds, totals, strict=True)]
        parts.append(format_table(header, rows))
    return "\n".join(parts)


def format_worst(scores: Scores, limit: int = 5) -> str:
    """Show the utterances with the most word errors, reference above hypothesis; empty where all are right."""
    worst = [utterance for utterance in scores.sort_worst_first()[:limit] if utterance.letter_edits]
    return "\n".join(
        f"  {make_printable(item.id)}: {len(item.word_edits)} word errors in {item.num_words} words\n"
        f"    said   {_shorten(item.reference)}\n"
        f"    heard  {_shorten(item.hypothesis)}"
        for item in worst
    )


def format_breakdown(scores: Scores, groups: Sequence[Group]) -> str:
    """Lay out where the errors are: by speaker where there are few, by group, the commonest, the worst utterances."""
    speakers, parts = scores.score_speakers(), []
    if 0 < len(speakers) < RELIABLE_UNITS:
        parts.append(f"speakers:\n{format_speakers(speakers)}")
    if groups:
        parts.append(f"groups:\n{format_groups(groups)}")
    if any(utterance.letter_edits for utterance in scores.utterances):
        parts.append(f"commonest errors:\n{format_confusions(scores)}")
        parts.append(f"worst utterances:\n{format_worst(scores)}")
    return "\n".join(parts)


def format_unknown(counts: Counter[str]) -> str:
    """Tabulate characters outside the vocabulary, with what became of them."""
    rows = [
        (repr(letter), f"U+{ord(letter):04X}", f"{count:,}", "separates words" if is_silent(letter) else "error")
        for letter, count in counts.most_common()
    ]
    return format_table(("character", "code", "count", "counts as"), rows)


def write_utterances(scores: Scores, path: Path, columns: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write one line an utterance, worst first: id, speaker, errors of each kind and sizes, the two texts, columns.

    Args:
        scores: n utterances with different ids.
        path: of the file.
        columns: n further values of each.
    """
    kinds = ("substitution", "deletion", "insertion")
    known = ("id", "speaker", "reference", "hypothesis")
    columns = {name: values for name, values in (columns or {}).items() if name not in known}
    header = ["id", "speaker", "word_errors", *(f"{kind}s" for kind in kinds), "num_words", "letter_errors"]
    header += ["num_letters", "reference", "hypothesis", *columns]
    rows = dict(zip((item.id for item in scores.utterances), zip(*columns.values(), strict=True), strict=False))
    lines = ["\t".join(header)]
    for item in scores.sort_worst_first():
        counts = Counter(edit.kind for edit in item.word_edits)
        cells = [item.id, item.speaker or "", len(item.word_edits), *(counts[kind] for kind in kinds), item.num_words]
        cells += [len(item.letter_edits), item.num_letters, item.reference, item.hypothesis, *rows.get(item.id, ())]
        lines.append("\t".join(escape_field(str(cell)) for cell in cells))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tables(
    scores: Scores, groups: Sequence[Group], out: Path, columns: Mapping[str, Sequence[str]], with_trn: bool
) -> None:
    """Write what a folder holds beside its result: utterances, confusions, and by choice groups and transcripts.

    Raises:
        ConfigError: `with_trn`, and an id cannot stand in a transcript.
    """
    for name in (UTTERANCES_NAME, CONFUSIONS_NAME, GROUPS_NAME, *TRN_NAMES):
        # It may be a link, which would be followed; or of an earlier result.
        remove(out / name)
    write_utterances(scores, out / UTTERANCES_NAME, columns)
    write_confusions(scores, out / CONFUSIONS_NAME)
    if groups:
        write_groups(groups, out / GROUPS_NAME)
    if with_trn:
        ids = [item.id for item in scores.utterances]
        sides = [item.reference for item in scores.utterances], [item.hypothesis for item in scores.utterances]
        for name, texts in zip(TRN_NAMES, sides, strict=True):
            (out / name).write_text(format_trn(ids, texts), encoding="utf-8")


def write_confusions(scores: Scores, path: Path) -> None:
    """Write one line an error and its count, commonest first: unit (`word`, `letter`), kind, said, heard."""
    lines = ["unit\tkind\treference\thypothesis\tcount"]
    for unit, counts in (("word", scores.count_word_confusions()), ("letter", scores.count_letter_confusions())):
        for edit, count in _sort_commonest(counts):
            lines.append(
                f"{unit}\t{edit.kind}\t{escape_field(edit.reference)}\t{escape_field(edit.hypothesis)}\t{count}"
            )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sort_commonest(counts: Counter[Edit]) -> list[tuple[Edit, int]]:
    """Sort by count, and by the edit itself where counts are equal, so that the order is always the same."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _show(edit: Edit) -> str:
    """Write an edit; a space has a sign of its own."""
    said, heard = (text.replace(" ", _SPACE) for text in (edit.reference, edit.hypothesis))
    return f"{said} → {heard}" if said and heard else said or heard


def _shorten(text: str) -> str:
    """Cut a text to a line or two of a terminal, safe for it; the file has it whole."""
    text = make_printable(text)
    return text if 0 < len(text) <= _LONGEST else f"{text[:_LONGEST]}…" if text else _NOTHING
