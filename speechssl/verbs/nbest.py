"""The table of the likeliest texts of each utterance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from speechssl.inference.decoding.hypotheses import Hypothesis
from speechssl.printable import escape_field, make_printable

NBEST_NAME = "nbest.tsv"

COLUMNS = ("id", "rank", "total", "acoustic", "lm", "num_unknown", "text")
"""Scores in nats: `Hypothesis` says what each is."""


def find_nbest(texts: Path) -> Path:
    """Give the place of the table that belongs to a file of texts."""
    return texts.with_name(NBEST_NAME if texts.name == "texts.tsv" else f"{texts.stem}.{NBEST_NAME}")


def format_nbest(rows: Iterable[tuple[str, Sequence[Hypothesis]]]) -> Iterator[str]:
    """Format the table: ids, and the texts of each, best first."""
    yield "\t".join(COLUMNS) + "\n"
    for id, best in rows:
        yield from _format_rows(make_printable(escape_field(id)), best)


def _format_rows(name: str, best: Sequence[Hypothesis]) -> Iterator[str]:
    for rank, found in enumerate(best, 1):
        scores = "\t".join(f"{score:.4f}" for score in (found.total, found.acoustic, found.lm))
        yield f"{name}\t{rank}\t{scores}\t{found.num_unknown}\t{make_printable(found.text)}\n"
