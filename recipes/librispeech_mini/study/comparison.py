"""The table of differences: every arm beside scratch with the same total compute, and with the same fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from recipes.librispeech_mini.study.cells import list_arms
from recipes.librispeech_mini.study.figures import (
    RATES,
    Rate,
    Row,
    Rows,
    collect_rates,
    compare_by_seed,
    compare_by_speaker,
    select,
    sort_kinds,
)
from recipes.librispeech_mini.study.markdown import LABELS, SPLITS, tabulate, title_arm
from recipes.librispeech_mini.study.paired import compute_relative

BASELINES = {"scratch": "minus scratch", "scratch_short": "minus scratch, same fine-tuning"}

LEFT_OUT = ("scratch_less",)
"""Arms that are neither compared nor compared with: what they cost is no other arm's."""

EXPLANATION = (
    "Arms: means over seeds, and differences from scratch with the same total compute (`scratch`) and with the same "
    "fine-tuning (`scratch_short`), in points and in % of the baseline. By seed: paired, Student's 95 % interval. By "
    "speaker: of the row's own split, weighted by the words of each speaker (the records hold no letters of each), "
    "with a bootstrap that resamples speakers only: with one seed it says nothing about other seeds. `both` is `test` "
    "and `test-other` as one set. A difference is blank where its baseline has not been run."
)


def build_comparison(rows: Sequence[Row]) -> str:
    """Build a table for each set of labels."""
    header = ["arm", "rate", "split", "seeds", "mean"]
    for title in BASELINES.values():
        header += [f"{title}: by seed", "by speaker"]
    parts = []
    for labels, title in LABELS.items():
        arms = [arm for arm in list_arms() if arm not in LEFT_OUT]
        lines = [line for kind in sort_kinds(rows) for arm in arms for line in _compare_arm(rows, arm, labels, kind)]
        if lines:
            parts.append(f"Arms with {title}:\n\n{tabulate(header, lines)}")
    return "\n\n".join([EXPLANATION, *parts]) if parts else ""


def _compare_arm(rows: Sequence[Row], arm: str, labels: str, kind: str) -> list[list[str]]:
    # What was measured counts, also where the rest of an evaluation was not.
    own = select(rows, arm, labels, kind, in_part=True)
    others = [select(rows, name, labels, kind, in_part=True) if name != arm else {} for name in BASELINES]
    lines = []
    for rate in RATES:
        for split, splits in SPLITS.items():
            rates = collect_rates(own, splits, rate)
            if not rates:
                continue
            line = [title_arm(arm, kind), rate.title, split, str(len(rates)), f"{mean(rates.values()):.1f}"]
            lines.append([*line, *(cell for other in others for cell in _compare(other, own, splits, rate))])
    return lines


def _compare(base: Rows, own: Rows, splits: Sequence[str], rate: Rate) -> tuple[str, str]:
    """Say the difference by seed, with its share of the baseline over the seeds that both have, and by speaker."""
    by_seed = compare_by_seed(base, own, splits, rate)
    if by_seed is None:
        return "", ""
    paired = {seed: row for seed, row in base.items() if seed in collect_rates(own, splits, rate)}
    before = mean(collect_rates(paired, splits, rate).values())
    relative = compute_relative(before, before + by_seed.mean)
    by_speaker = compare_by_speaker(base, own, splits, rate)
    return f"{by_seed.mean:+.1f}, {relative:+.1f} % {by_seed.chance}", "" if by_speaker is None else str(by_speaker)
