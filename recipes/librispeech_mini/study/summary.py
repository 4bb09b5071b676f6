"""The first table of the page: an hour of labels, arm by arm, and which arms have no figures yet."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from recipes.librispeech_mini.study.cells import FEW, list_arms
from recipes.librispeech_mini.study.figures import RATES, Rate, Records, Row, Rows, collect_rates, list_rows, select
from recipes.librispeech_mini.study.markdown import LABELS, format_rate, tabulate, title_arm
from recipes.librispeech_mini.study.plan import TEST_SPLITS

EMPTY = "No cell has been run."

SHOWN = tuple(rate for rate in RATES if (rate.name, rate.decoding) != ("wer", "greedy"))


def build_summary(records: Records) -> str:
    """Build the table of the main arms with an hour of labels."""
    found = {arm: select(list_rows(records), arm, FEW) for arm in list_arms()}
    lines = [_describe(arm, rows) for arm, rows in found.items() if rows]
    if not lines:
        return f"{EMPTY}\n"
    header = ["arm", "seeds", "hours heard", "TFLOP", "wall h", *(f"{rate.title}, test / other" for rate in SHOWN)]
    missing = [title_arm(arm) for arm, rows in found.items() if list_arms()[arm].seeds and not rows]
    title = f"With {LABELS[FEW]}, two CPU cores, means over seeds, in % (costs: pretraining and fine-tuning together):"
    note = f"\n\nWithout figures for it yet: {'; '.join(missing)}." if missing else ""
    return f"{title}\n\n{tabulate(header, lines)}{note}\n"


def _describe(arm: str, rows: Rows) -> list[str]:
    every: Sequence[Row] = list(rows.values())
    return [
        title_arm(arm),
        str(len(every)),
        f"{mean(row.hours_seen.known for row in every):.1f}",
        f"{mean(row.flop.known for row in every) / 1e12:,.0f}",
        f"{mean(row.wall_s.known for row in every) / 3600:.2f}",
        *(" / ".join(_average(rows, split, rate) for split in TEST_SPLITS) for rate in SHOWN),
    ]


def _average(rows: Rows, split: str, rate: Rate) -> str:
    rates = collect_rates(rows, (split,), rate)
    return format_rate(mean(rates.values()) if rates else None)
