"""Where a recogniser's errors are, as tables for people and as files for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from speechssl.evaluation.wer import Edit, Scores, SpeakerScore
from speechssl.printable import escape_field, make_printable
from speechssl.text.vocabulary import is_silent

UTTERANCES_NAME, CONFUSIONS_NAME = "utterances.tsv", "confusions.tsv"

_SPACE, _NOTHING = "␣", "∅"
_LONGEST = 160


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


def format_unknown(counts: Counter[str]) -> str:
    """Tabulate characters outside the vocabulary, with what became of them."""
    rows = [
        (repr(letter), f"U+{ord(letter):04X}", f"{count:,}", "separates words" if is_silent(letter) else "error")
        for letter, count in counts.most_common()
    ]
    return format_table(("character", "code", "count", "counts as"), rows)


def write_utterances(scores: Scores, path: Path) -> None:
    """Write one line an utterance, worst first: id, speaker, errors and sizes, the two texts."""
    header = "id\tspeaker\tword_errors\tnum_words\tletter_errors\tnum_letters\treference\thypothesis"
    lines = [
        "\t".join(
            (
                escape_field(item.id), escape_field(item.speaker or ""), str(len(item.word_edits)), str(item.num_words),
                str(len(item.letter_edits)), str(item.num_letters), escape_field(item.reference),
                escape_field(item.hypothesis),
            )
        )
        for item in scores.sort_worst_first()
    ]  # fmt: skip
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


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
