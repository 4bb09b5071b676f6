"""The search for weights of a language model: the best sets of them, and what they are worth beside greedy decoding."""

from __future__ import annotations

from speechssl.config.decoding import WEIGHTS
from speechssl.report.figures import Figure, Section, Stat, Table, Verdict, is_number
from speechssl.report.run_folder import RunFolder

COLUMNS = (*WEIGHTS, "beam_width", "wer", "cer")


def describe_tuning(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say what a search came to, and pick its first figures."""
    rates = (("wer", "word error rate"), ("cer", "character error rate"))
    figures = [(source.get(key), f"{name}{how}") for how, source in _list_rates(run) for key, name in rates]
    stats = [Stat(f"{value:.1f} %", name, "development speech") for value, name in figures if is_number(value)]
    return f"The weights with which the n-gram {run.result.get('lm')} leaves the fewest words wrong.", stats


def judge_tuning(run: RunFolder) -> Verdict:
    """Say whether the language model pays."""
    own, greedy = (source.get("wer") for _, source in _list_rates(run))
    if not is_number(own) or not is_number(greedy):
        return Verdict("open", "Nothing to compare with", "The error rates are not in the result.")
    text = f"{own:.1f} of 100 words are wrong with the language model, {greedy:.1f} with greedy decoding."
    if own < greedy:
        return Verdict("good", "The language model pays", text)
    return Verdict("doubt", "The language model does not pay", text)


def make_tuning(run: RunFolder) -> list[Section]:
    """Tabulate the best sets of weights."""
    points = run.result.get("points")
    rows = [row for row in points if isinstance(row, dict)] if isinstance(points, list) else []
    cells = [[str(row.get("note", "")), *(row[name] for name in COLUMNS)] for row in rows if _is_whole(row)]
    note = "By their errors in percent. `kept` is what evaluations use, `start` where the search began."
    table = Table(("", *COLUMNS), cells)
    return [Section("Weights", [Figure("The best sets of weights", table, note, is_wide=True)])] if cells else []


def _is_whole(row: dict[str, object]) -> bool:
    return all(is_number(row.get(name)) for name in COLUMNS)


def _list_rates(run: RunFolder) -> list[tuple[str, dict[str, object]]]:
    greedy = run.result.get("greedy")
    return [("", run.result), (", greedily", greedy if isinstance(greedy, dict) else {})]
