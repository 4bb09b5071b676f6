"""The pictures of docs/healthy.md, from the metrics of real runs: `python docs/draw_curves.py <folder of runs>`.

Needs matplotlib, which is no dependency of the package. The runs are named in docs/healthy.md. Without a folder it
draws the picture of recipes/librispeech_mini, from the results there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent / "pictures"
GOOD, BAD, FLAT, GREY = "#2a9d5c", "#d1495b", "#e09f3e", "#8a8f98"
# Grey text on no background reads on the site's light and its dark page.
STYLE = {
    "svg.hashsalt": "speechssl", "svg.fonttype": "none",
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": GREY, "axes.labelcolor": GREY, "text.color": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "legend.frameon": False, "savefig.transparent": True, "lines.linewidth": 1.8, "axes.titlesize": 10,
}  # fmt: skip
Line = dict[str, Any]


def read(folder: Path, split: str) -> list[Line]:
    """Read the lines of one split, a tenth of those of a long run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] == split and line["update"] > 0]
    return lines[:: max(1, len(lines) // 60)]


def draw(ax: Any, folder: Path, split: str, name: str | Callable[[Line], float], label: str, **style: Any) -> None:
    """Draw one metric of one run."""
    take = name if callable(name) else lambda line: line[name]
    lines = [line for line in read(folder, split) if callable(name) or name in line]
    ax.plot([line["update"] for line in lines], [take(line) for line in lines], label=label, **style)


def save(figure: Any, name: str) -> None:
    """Write a picture."""
    HERE.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(HERE / name, metadata={"Date": None})
    plt.close(figure)


def draw_contrastive(runs: Path) -> None:
    """Draw a healthy contrastive run, one that collapsed and one that never learned."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.7))
    kinds = (("healthy", "healthy", GOOD), ("collapsed", "collapsed", BAD), ("flat", "rate far too low", FLAT))
    panels: tuple[tuple[str, str | Callable[[Line], float]], ...] = (
        ("contrastive loss, bits", "loss_contrastive"),
        ("hard perplexity, mean of codebooks", lambda line: fmean(line["hard_perplexity"])),
        ("removed negatives, %", lambda line: 100 * line["removed_negatives"]),
    )
    for ax, (title, name) in zip(axes, panels, strict=True):
        for folder, label, colour in kinds:
            draw(ax, runs / folder, "train", name, label, color=colour)
        ax.set(title=title, xlabel="update", ylim=(0, None) if ax is not axes[0] else None)
    line = axes[0].axhline(6.658, color=GREY, linestyle=":", linewidth=1)
    axes[0].legend([line], ["guessing"], loc="center right")
    axes[2].legend(loc="center right")
    save(figure, "contrastive.svg")


def draw_codes(runs: Path) -> None:
    """Draw a healthy run of masked codes."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.7))
    draw(axes[0], runs / "mine", "train", "loss_codes", "loss_codes", color=GOOD)
    draw(axes[0], runs / "mine", "train", "target_entropy", "target_entropy", color=GREY, linestyle=":")
    draw(axes[1], runs / "mine", "train", "prediction_perplexity", "prediction_perplexity", color=GOOD)
    draw(axes[1], runs / "mine", "train", "code_perplexity", "code_perplexity", color=GREY, linestyle=":")
    for ax, title in zip(axes, ("bits a masked frame", "codes in use"), strict=True):
        ax.set(title=title, xlabel="update")
        ax.legend()
    save(figure, "codes.svg")


def draw_finetuning(runs: Path) -> None:
    """Draw fine-tuning of a pretrained network, and from scratch."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.7))
    for folder, label, colour in (("asr", "pretrained", GOOD), ("scratch", "from scratch", FLAT)):
        draw(axes[0], runs / folder, "train", "loss_per_label", label, color=colour)
        draw(axes[1], runs / folder, "valid", "cer", f"CER, {label}", color=colour, marker="o", markersize=4)
        draw(axes[1], runs / folder, "valid", "wer", f"WER, {label}", color=colour, linestyle=":")
    axes[0].set(title="loss, nats a letter", xlabel="update", ylim=(1, 4.5))
    axes[1].set(title="wrong on held-out speakers, %", xlabel="update", ylim=(40, 105))
    axes[0].legend()
    axes[1].legend(loc="upper right", bbox_to_anchor=(1.0, 0.87))
    save(figure, "finetuning.svg")


def draw_study(results: Path) -> None:
    """Draw characters wrong on dev against processor time, pretraining included, for each amount of labels."""
    colours = {"scratch": GREY, "contrastive": BAD, "codes": FLAT, "self": GOOD}
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    labels = [name for name in ("10m", "1h", "all") if any(result["labels"] == name for result in found)]
    figure, axes = plt.subplots(1, len(labels), figsize=(9, 2.9), sharey=True)
    for ax, name in zip(axes, labels, strict=True):
        for result in (result for result in found if result["labels"] == name):
            minutes, wrong = zip(*((seconds / 60, cer) for seconds, cer in result["curve"]), strict=True)
            style: dict[str, Any] = {"color": colours[result["arm"]], "zorder": 3 if result["arm"] == "scratch" else 2}
            style |= {"label": result["arm"] if result["seed"] == 1 else None}
            ax.plot(minutes, wrong, marker="o", markersize=3, **style)
        ax.set(title=f"{name} of labels", xlabel="processor minutes in all", ylim=(25, 65))
        ax.legend()
    axes[0].set_ylabel("characters wrong on dev, %")
    save(figure, "study.svg")


if __name__ == "__main__" and len(sys.argv) == 1:
    with mpl.rc_context(STYLE):
        draw_study(Path(__file__).parents[1] / "recipes" / "librispeech_mini" / "results")
elif __name__ == "__main__":
    folder = Path(sys.argv[1])
    with mpl.rc_context(STYLE):
        draw_contrastive(folder)
        draw_codes(folder)
        draw_finetuning(folder)
