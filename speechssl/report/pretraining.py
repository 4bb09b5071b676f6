"""The sections of a pretraining run that its metrics tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any

from speechssl.report.curves import Curve, draw_curves, make_curve
from speechssl.report.html import (
    THIN_SPACE,
    Stat,
    format_hours,
    format_number,
    format_percent,
    make_figure,
    make_section,
)
from speechssl.report.run_folder import RunFolder
from speechssl.report.svg import Level


def pick_values(run: RunFolder, split: str, name: str, element: int | None = None) -> tuple[list[float], list[float]]:
    """Take one metric over the updates of a split; of a list, one element.

    Returns:
        Updates and values; lines without the metric are left out.
    """
    updates: list[float] = []
    values: list[float] = []
    for row in run.select(split):
        value: Any = row.get(name)
        if isinstance(value, list) and element is not None:
            value = value[element] if element < len(value) else None
        if isinstance(value, (int, float)):
            updates.append(float(row["update"]))
            values.append(float(value))
    return updates, values


def make_pair(run: RunFolder, name: str) -> list[Curve | None]:
    """Make the curves of a metric in training (smoothed) and in validation."""
    return [
        make_curve("training", "train", *pick_values(run, "train", name), smooth=True),
        make_curve("held out", "valid", *pick_values(run, "valid", name)),
    ]


def make_figure_of(run: RunFolder, name: str, title: str, unit: str = "", note: str = "", **options: Any) -> str:
    """Draw one metric as a figure; '' where the run has no such metric."""
    picture = draw_curves(make_pair(run, name), **options)
    kind = "small" if options.get("small") else ""
    return make_figure(title, picture, note, unit, kind) if picture else ""


def predicts_codes(run: RunFolder) -> bool:
    """Say whether a run names codes rather than choosing among frames: its accuracy is of another task."""
    return bool(run.get_config("objective.name") == "masked_codes")


def describe_pretraining(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say in one or two sentences what the run came to, and pick its first figures."""
    split = "valid" if any(row["update"] > 0 for row in run.select("valid")) else "train"
    where = "its training speech" if split == "train" else "held-out speech"
    if predicts_codes(run):
        return describe_codes(run, split, where)
    loss, accuracy = find_latest(run, split, "loss_contrastive"), find_latest(run, split, "accuracy")
    if loss is None or accuracy is None:
        return "No update has been logged yet.", []
    chance_loss, chance = _find_chance(run, split)
    verdict = _judge(loss, chance_loss)
    hours = run.last(split, "hours_seen")
    heard = f" after {format_hours(hours)} of speech heard" if hours else ""
    sentence = (
        f"{verdict} Shown a masked stretch of {where}, the model finds the true sound among "
        f"{format_number(round(1 / chance))} candidates for {format_percent(accuracy)} of the frames{heard}; "
        f"guessing would find {format_percent(chance, 2)}."
    )
    stats = [
        Stat(format_percent(accuracy), "accuracy", f"chance {format_percent(chance, 2)}"),
        Stat(f"{format_number(loss)} bits", "contrastive loss", f"chance {format_number(chance_loss)} bits"),
    ]
    return sentence, stats + _list_more_stats(run, split)


def describe_codes(run: RunFolder, split: str, where: str) -> tuple[str, list[Stat]]:
    """The same for a run that predicts discrete codes: what it knows beyond how often each code comes."""
    names = ("loss_codes", "accuracy", "target_entropy", "code_perplexity")
    loss, accuracy, entropy, used = (find_latest(run, split, name) for name in names)
    if loss is None or accuracy is None or entropy is None or used is None:
        return "No update has been logged yet.", []
    sentence = (
        f"{_judge(loss, entropy)} Shown a masked stretch of {where}, the model names the code of "
        f"{format_percent(accuracy)} of the frames and pays {format_number(loss)} bits for each; knowing only how "
        f"often each code comes, it would pay {format_number(entropy)}."
    )
    stats = [
        Stat(format_percent(accuracy), "accuracy", "of the codes of masked frames"),
        Stat(f"{format_number(loss)} bits", "code loss", f"entropy of the codes {format_number(entropy)} bits"),
        Stat(format_number(used), "codes in effective use", "as targets"),
    ]
    return sentence, stats + _list_more_stats(run, split)


def make_learning(run: RunFolder) -> str:
    """Draw loss, accuracy and perplexity with the levels that tell what they mean."""
    if predicts_codes(run):
        return _draw_codes(run)
    chance_loss, chance = _find_chance(run, "train")
    candidates = format_number(round(1 / chance))
    loss = make_figure_of(
        run, "loss_contrastive", "Contrastive loss", "bits a masked frame",
        f"What it costs to name the true frame among {candidates}, or fewer where others carry its codes. A model that "
        f"knows nothing pays {format_number(chance_loss)} bits; lower is better.",
        levels=[Level(chance_loss, f"chance, {format_number(chance_loss)} bits")],
    )  # fmt: skip
    accuracy = make_figure_of(
        run, "accuracy", "Accuracy", "share of masked frames",
        f"How often the true frame scores highest among the {candidates}. It stays well under 100{THIN_SPACE}%: "
        "not all that is said can be told from what stands around it.",
        levels=[Level(chance, "chance")], from_zero=True, describe=format_percent,
    )  # fmt: skip
    return make_section("Learning", loss + accuracy + _draw_perplexity(run))


def _draw_codes(run: RunFolder) -> str:
    curves = [
        *make_pair(run, "loss_codes"),
        make_curve("entropy of the targets", "c1", *pick_values(run, "train", "target_entropy")),
    ]
    loss = make_figure(
        "Code loss", draw_curves(curves), "What it costs to name the code of a masked frame. Below the entropy of the "
        "targets the model knows more than how often each code comes.", "bits a masked frame",
    )  # fmt: skip
    accuracy = make_figure_of(
        run, "accuracy", "Accuracy", "share of masked frames", "How often the true code scores highest.",
        from_zero=True, describe=format_percent,
    )  # fmt: skip
    pairs = (("targets", "c1", "code_perplexity"), ("predictions", "c2", "prediction_perplexity"))
    used = [make_curve(label, style, *pick_values(run, "train", name), smooth=True) for label, style, name in pairs]
    note = "Codes in effective use: as targets so far, and as predictions of one update. 1 would be a collapse."
    perplexity = make_figure("Perplexity", draw_curves(used, from_zero=True), note, "codes")
    return make_section("Learning", loss + accuracy + perplexity if any(curves) else "")


def make_machinery(run: RunFolder) -> str:
    """Draw the small charts: parts of the loss, schedules, speed."""
    plain: Callable[[float], str] = format_number
    small = [
        ("loss", "Total loss", "bits a masked frame", plain),
        ("loss_diversity", "Diversity loss", "bits", plain),
        ("loss_features", "Feature penalty", "bits", plain),
        ("loss_unmasked", "Loss at frames that are not masked, weighted", "bits a masked frame", plain),
        ("loss_intermediate", "Loss after the inner block", "bits a masked frame", plain),
        ("removed_negatives", "Removed negatives", "same codes as the target", format_percent),
        ("masked_share", "Masked share", "of all frames", format_percent),
        ("context_spread", "Spread of contexts", "0 would be collapse", plain),
        ("feature_variance", "Feature variance", "share over time, 0 would be collapse", plain),
        ("temperature", "Gumbel temperature", "", plain),
    ]
    figures = [
        make_figure_of(run, name, title, unit, small=True, describe=describe, from_zero=name != "masked_share")
        for name, title, unit, describe in small
    ]
    return make_section("Under the bonnet", "".join(figures) + draw_trainer(run), css="grid small")


def draw_trainer(run: RunFolder) -> str:
    """Draw what every training run has: learning rate, gradient norm, speed, and the figures of the machine."""
    plain: Callable[[float], str] = format_number
    return "".join(
        make_figure_of(run, name, title, unit, small=True, from_zero=True, describe=describe)
        for name, title, unit, describe in (
            ("lr", "Learning rate", "", plain),
            ("grad_norm", "Gradient norm", "", plain),
            ("audio_s_per_s", "Speed", "seconds of audio a second", plain),
            ("loader_wait", "Waiting for audio", "share of the time", format_percent),
            ("memory_mib", "Memory", "MiB, this process", plain),
            ("gpu_memory_mib", "GPU memory", "MiB, peak", plain),
            ("gpu_use", "GPU at work", "share of the time", format_percent),
        )
    )


def _draw_perplexity(run: RunFolder) -> str:
    num_codes = run.get_config("model.quantizer.num_codes")
    rows = [row["hard_perplexity"] for row in run.select("train") if isinstance(row.get("hard_perplexity"), list)]
    groups = max(map(len, rows), default=0)
    curves = []
    for group in range(groups):
        style = f"c{group % 5 + 1}"
        hard = pick_values(run, "train", "hard_perplexity", group)
        soft = pick_values(run, "train", "soft_perplexity", group)
        curves.append(make_curve(f"codebook {group + 1}", style, *hard, smooth=True))
        curves.append(make_curve(f"codebook {group + 1}, soft", f"{style} soft", *soft, smooth=True, band=False))
    levels = [Level(float(num_codes), f"all {num_codes} codes alike")] if num_codes else []
    picture = draw_curves(curves, levels=levels, from_zero=True)
    note = (
        "How many codes are in use, in effect: the hard perplexity counts the codes that were chosen, the soft one "
        "the probabilities behind the choice. 1 would be a collapsed codebook."
    )
    return make_figure("Codebook perplexity", picture, note, "codes") if picture else ""


def _list_more_stats(run: RunFolder, split: str) -> list[Stat]:
    stats = []
    num_codes = run.get_config("model.quantizer.num_codes")
    perplexity = run.last(split, "hard_perplexity")
    if isinstance(perplexity, list) and perplexity and num_codes:
        value = " / ".join(format_number(p) for p in perplexity)
        stats.append(Stat(value, "codes in effective use", f"of {num_codes} in each codebook"))
    hours, (_, speeds) = run.last("train", "hours_seen"), pick_values(run, "train", "audio_s_per_s")
    updates = run.select("train")[-1]["update"] if run.select("train") else 0
    if hours:
        stats.append(Stat(format_hours(hours), "speech heard", f"in {format_number(updates)} updates"))
    if speeds:
        stats.append(Stat(f"{format_number(median(speeds))} ×", "real time", f"median, training{_name_machine(run)}"))
    return stats


def _name_machine(run: RunFolder) -> str:
    """Say what the run computed on, as far as its environment tells."""
    gpu, threads = run.environment.get("gpu"), run.environment.get("num_threads")
    return f" on {gpu}" if gpu else f" on {threads} CPU threads" if threads else ""


def find_latest(run: RunFolder, split: str, name: str) -> float | None:
    """Give the last value of a metric in validation; in training, where values scatter, the median of the last 20.

    Update 0 is left out: nothing was learned before it.
    """
    values = [value for update, value in zip(*pick_values(run, split, name), strict=True) if update > 0]
    if not values:
        return None
    return median(values[-20:]) if split == "train" else values[-1]


def _find_chance(run: RunFolder, split: str) -> tuple[float, float]:
    """Give the loss in bits and the accuracy of a model that knows nothing.

    The latest `loss_of_guessing`, or in a run that is older than this metric log2(K + 1); and 1 / (K + 1).
    """
    candidates = int(run.get_config("objective.num_negatives", 100)) + 1
    measured = find_latest(run, split, "loss_of_guessing")
    return math.log2(candidates) if measured is None else measured, 1 / candidates


def _judge(loss: float, chance: float) -> str:
    gap = chance - loss
    if not math.isfinite(loss):
        return "The loss is no longer a number."
    if gap < 0.02:
        return "The model has not left chance."
    if gap < 0.3:
        return f"The model has just left chance, by {format_number(gap, 2)} bits."
    return f"The model has learned {format_number(gap)} bits a frame beyond chance."
