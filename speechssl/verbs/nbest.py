"""The table of the likeliest texts of each utterance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from speechssl.durable import remove
from speechssl.inference.decoding.hypotheses import Hypothesis
from speechssl.printable import escape_field, make_printable

NBEST_NAME = "nbest.tsv"

COLUMNS = ("id", "rank", "total", "acoustic", "lm", "num_unknown", "text")
"""Scores in nats: `Hypothesis` says what each is."""


def find_nbest(texts: Path) -> Path:
    """Give the place of the table that belongs to a file of texts."""
    return texts.with_name(NBEST_NAME if texts.name == "texts.tsv" else f"{texts.stem}.{NBEST_NAME}")


def listing(ids: Sequence[str], rows: Iterable[tuple[int, list[Hypothesis]]], path: Path) -> Iterator[tuple[int, str]]:
    """Yield the best text of each utterance, and write all of its texts; the file gets its name when it is whole."""
    partial = path.with_name(f".{path.name}.part")
    # It may be a link, which would be followed.
    remove(partial)
    try:
        with partial.open("x", encoding="utf-8") as file:
            print(*COLUMNS, sep="\t", file=file)
            for index, best in rows:
                file.writelines(_format_rows(make_printable(escape_field(ids[index])), best))
                yield index, best[0].text
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _format_rows(name: str, best: Sequence[Hypothesis]) -> Iterator[str]:
    for rank, found in enumerate(best, 1):
        scores = "\t".join(f"{score:.4f}" for score in (found.total, found.acoustic, found.lm))
        yield f"{name}\t{rank}\t{scores}\t{found.num_unknown}\t{make_printable(found.text)}\n"
