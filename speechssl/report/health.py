"""What a training run has to say of its own health: skipped updates, signs of a collapse, the averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from speechssl.report.html import escape, format_number, format_value, make_section, make_table
from speechssl.report.run_folder import Row, RunFolder

SHOWN, NAMED = 20, 3


def make_health(run: RunFolder) -> str:
    """List what went wrong, or was done about it; '' for a run with nothing to say."""
    parts = [_tell_problems(run), _tell_warnings(run), _tell_skipped(run), _tell_average(run)]
    return make_section("Health of the run", "".join(parts), css="health")


def _tell_problems(run: RunFolder) -> str:
    return "".join(f'<p class="apology">{escape(problem)}</p>' for problem in run.problems)


def _tell_skipped(run: RunFolder) -> str:
    """Count the updates that the guard skipped, and tabulate the last of them."""
    if not run.skipped:
        return ""
    count = len(run.skipped)
    sentence = (
        f"{format_number(count)} update{' was' if count == 1 else 's were'} skipped: the numbers could not be right, "
        "and the weights stayed as they were."
    )
    rows = [(format_value(row.get("update")), str(row.get("reason", "")), _name(row)) for row in run.skipped[-SHOWN:]]
    title = f"The last {SHOWN}" if count > SHOWN else ""
    return f"<p>{sentence}</p>" + make_table(("update", "why", "utterances"), rows, caption=title, numeric=(0,))


def _tell_warnings(run: RunFolder) -> str:
    """Say in which stretches of updates the signs of a collapse held."""
    stretches = find_stretches(run.select("train"), "collapse_warning")
    if not stretches:
        return ""
    named = ", ".join(f"from {format_number(first)} to {format_number(last)}" for first, last in stretches[-NAMED:])
    return (
        f'<p class="apology">Signs of a collapse held in the updates {named}: see perplexity, masked share, '
        "removed negatives, spread of contexts and feature variance there.</p>"
    )


def _tell_average(run: RunFolder) -> str:
    decay = run.get_config("training.ema_decay", 0.0)
    if not decay:
        return ""
    uses = "Validation used it, and chose the best checkpoint by it" if run.get_config("training.validate_ema") else ""
    lies = f"A moving average of the weights (decay {decay:g}) lies beside them; weights=ema takes it."
    return f"<p>{escape(lies)} {escape(uses + '.' if uses else '')}</p>"


def find_stretches(rows: Sequence[Row], name: str) -> list[tuple[int, int]]:
    """Find the first and last update of each stretch in which a metric is not 0."""
    stretches = []
    for is_set, members in groupby(rows, key=lambda row: bool(row.get(name))):
        updates = [int(row["update"]) for row in members]
        if is_set:
            stretches.append((updates[0], updates[-1]))
    return stretches


def _name(row: Row) -> str:
    ids = [str(name) for name in row.get("ids", [])]
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more
