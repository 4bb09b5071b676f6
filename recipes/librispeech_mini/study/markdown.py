"""How the tables are written: Markdown, rates with one decimal, and what sets of labels and splits are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recipes.librispeech_mini.study.cells import ALL, FEW, FEWEST, list_arms
from recipes.librispeech_mini.study.plan import TEST_SPLITS

LABELS = {FEW: "1 h of labels", ALL: "all labels (4.47 h)", FEWEST: "10 min of labels"}
"""Sets of labels in order of the tables, with their titles."""

SPLITS = {"test": TEST_SPLITS[:1], "test-other": TEST_SPLITS[1:], "both": TEST_SPLITS}
"""What rates are over: each set alone, and the two as one."""


def tabulate(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def format_rate(rate: float | None) -> str:
    """Write a rate in percent; nothing where it was not measured."""
    return "" if rate is None else f"{rate:.1f}"


def title_arm(arm: str, kind: str = "main") -> str:
    """Say what an arm is called, with the kind of cell where it is no main one."""
    arms = list_arms()
    return f"{arms[arm].title if arm in arms else arm}{'' if kind == 'main' else f', {kind}'}"
