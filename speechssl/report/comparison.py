"""What several runs have in common, side by side: first figures of each, and the curves that can be compared."""

from __future__ import annotations

from collections.abc import Sequence

from speechssl.report.curves import draw_curves, make_curve
from speechssl.report.html import escape, make_figure, make_section
from speechssl.report.pretraining import pick_values
from speechssl.report.run_folder import RunFolder

METRICS = (
    ("pretrain", "loss_contrastive", "Contrastive loss, held out", "bits a masked frame", False),
    ("pretrain", "accuracy", "Contrastive accuracy, held out", "share of masked frames", True),
    ("finetune", "wer", "Word error rate, held out", "%", True),
    ("finetune", "cer", "Character error rate, held out", "%", True),
)


def make_comparison(runs: Sequence[RunFolder], names: Sequence[str], cards: Sequence[str]) -> str:
    """Lay out a card for each run, and one chart for each metric that two or more of them have.

    Args:
        runs: the runs of the page.
        names: what the page calls them.
        cards: HTML of each run's card.
    """
    figures = "".join(_draw_metric(runs, names, *metric) for metric in METRICS)
    items = "".join(f"<li>{card}</li>" for card in cards)
    return f'<ol class="cards">{items}</ol>' + make_section("Side by side", figures)


def _draw_metric(
    runs: Sequence[RunFolder], names: Sequence[str], kind: str, metric: str, title: str, unit: str, from_zero: bool
) -> str:
    pairs = [(run, name) for run, name in zip(runs, names, strict=True) if run.kind == kind]
    curves = [
        make_curve(name, f"c{number % 5 + 1}", *pick_values(run, "valid", metric))
        for number, (run, name) in enumerate(pairs)
    ]
    present = [curve for curve in curves if curve is not None]
    if len(present) < 2:
        return ""
    picture = draw_curves(present, from_zero=from_zero)
    lowest = {c.label: (c.y.max() if metric == "accuracy" else c.y.min()) for c in present}
    best = max(lowest, key=lambda k: lowest[k]) if metric == "accuracy" else min(lowest, key=lambda k: lowest[k])
    return make_figure(title, picture, f"The best value is that of {escape(best)}.", unit)
