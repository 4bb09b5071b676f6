"""The words and curves of a pretraining run: what its metrics tell."""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

from speechssl.report.figures import (
    MAX_POINTS,
    THIN_SPACE,
    Figure,
    Section,
    Series,
    Stat,
    count,
    format_hours,
    format_number,
    format_percent,
    make_series,
    plot,
)
from speechssl.report.run_folder import RunFolder

MASKED, SHARE = "bits a masked frame", "% of masked frames"

SMALL = {
    "loss": ("Total loss", MASKED, 1),
    "loss_diversity": ("Diversity loss", "bits", 1),
    "loss_features": ("Feature penalty", "bits", 1),
    "loss_unmasked": ("Loss at frames that are not masked, weighted", MASKED, 1),
    "loss_intermediate": ("Loss after the inner block", MASKED, 1),
    "removed_negatives": ("Removed negatives", "% of all negatives", 100),
    "masked_share": ("Masked share", "% of all frames", 100),
    "context_spread": ("Spread of contexts", "0 would be collapse", 1),
    "feature_variance": ("Variance of features over time", "0 would be collapse", 1),
    "temperature": ("Gumbel temperature", "", 1),
    "lr": ("Learning rate", "", 1),
    "grad_norm": ("Gradient norm", "", 1),
    "audio_s_per_s": ("Speed", "times real time", 1),
    "loader_wait": ("Waiting for audio", "% of the time", 100),
    "memory_mib": ("Memory", "MiB, this process", 1),
    "gpu_memory_mib": ("GPU memory", "MiB, peak", 1),
    "gpu_use": ("GPU at work", "% of the time", 100),
}
"""Charts under the bonnet: metric, title, unit, factor. A metric that no chart knows has one under its own name."""

LARGE = {
    "loss_contrastive": (MASKED, 1), "loss_codes": (MASKED, 1), "accuracy": (SHARE, 100),
    "soft_perplexity": ("codes", 1), "hard_perplexity": ("codes", 1), "loss_of_guessing": (MASKED, 1),
    "target_entropy": (MASKED, 1), "code_perplexity": ("codes", 1), "prediction_perplexity": ("codes", 1),
    "wer": ("%", 1), "cer": ("%", 1), "loss_per_label": ("nats a letter", 1),
}  # fmt: skip
"""What larger charts, or words, are about: metric, unit, factor."""

SMALL_POINTS = 120
"""Points of a curve of a small chart."""

UNDRAWN = frozenset({"update", "split", "hours_seen", "skipped_updates", "collapse_warning"})
"""What no chart is about."""


class Chance(NamedTuple):
    """What a model gets that knows nothing: loss in bits, accuracy as a share, candidates that it chooses among."""

    loss: float
    accuracy: float
    candidates: str


def pick_values(run: RunFolder, split: str, name: str, element: int | None = None) -> tuple[list[float], list[float]]:
    """Take one metric over the updates of a split; of a list, one element.

    Returns:
        Updates and values; lines without the metric are left out.
    """
    rows = [(row["update"], row.get(name)) for row in run.select(split)]
    if element is not None:
        rows = [(k, v[element] if isinstance(v, list) and element < len(v) else None) for k, v in rows]
    kept = [(float(update), float(value)) for update, value in rows if isinstance(value, (int, float))]
    return [update for update, _ in kept], [value for _, value in kept]


def find_latest(run: RunFolder, split: str, name: str) -> float | None:
    """Give the last value of a metric in validation; in training, where values scatter, the median of the last 20.

    Update 0 is left out: nothing was learned before it.
    """
    values = [value for update, value in zip(*pick_values(run, split, name), strict=True) if update > 0]
    if not values:
        return None
    return median(values[-20:]) if split == "train" else values[-1]


def find_loss(run: RunFolder) -> str:
    """Name the loss that the run is about: of choosing among frames, of naming codes, or of another objective."""
    logged = {key for row in run.metrics for key in row}
    return next((name for name in ("loss_contrastive", "loss_codes") if name in logged), "loss")


def find_unit(run: RunFolder, name: str) -> tuple[str, float]:
    """Find the unit in which the page shows a metric, and by what the logged value is multiplied for it."""
    if name == "loss" and find_loss(run) == "loss":
        return ("nats an utterance" if run.kind == "finetune" else ""), 1
    return SMALL[name][1:] if name in SMALL else LARGE.get(name, ("", 1))


def choose_split(run: RunFolder) -> str:
    """Choose what the page's figures are of: held-out speech, or training speech before the first validation."""
    return "valid" if any(row["update"] > 0 for row in run.select("valid")) else "train"


def find_chance(run: RunFolder) -> Chance:
    """Find what guessing gets, the one definition of the page: the loss of guessing as the run measured it last.

    It is the mean of log2(1 + negatives that were left); an older run that did not measure it has log2(K + 1).
    """
    measured = find_latest(run, choose_split(run), "loss_of_guessing")
    loss = math.log2(int(run.get_config("objective.num_negatives", 100)) + 1) if measured is None else measured
    return Chance(loss, 2.0**-loss, format_number(round(2.0**loss)))


def describe_pretraining(run: RunFolder) -> tuple[str, list[Stat]]:
    """Say in a sentence what the run came to, and pick its first figures."""
    split, name = choose_split(run), find_loss(run)
    loss, accuracy = find_latest(run, split, name), find_latest(run, split, "accuracy")
    where = "its training speech" if split == "train" else "held-out speech"
    hours = run.last(split, "hours_seen")
    heard = f" after {format_hours(hours)} of speech heard" if hours else ""
    if loss is None:
        return "", []
    if name == "loss_contrastive" and accuracy is not None:
        chance = find_chance(run)
        guess = format_percent(chance.accuracy, 2)
        sentence = (
            f"Shown a masked stretch of {where}, the model finds the true sound among {chance.candidates} candidates "
            f"for {format_percent(accuracy)} of the frames{heard}; guessing would find {guess}."
        )
        stats = [
            Stat(format_percent(accuracy), "accuracy", f"guessing {guess}"),
            Stat(f"{format_number(loss)} bits", "contrastive loss", f"guessing {format_number(chance.loss)} bits"),
        ]
    elif name == "loss_codes" and accuracy is not None:
        entropy = find_latest(run, split, "target_entropy") or math.nan
        sentence = (
            f"Shown a masked stretch of {where}, the model names the code of {format_percent(accuracy)} of the frames "
            f"and pays {format_number(loss)} bits for each{heard}; knowing only how often each code comes, it would "
            f"pay {format_number(entropy)}."
        )
        used = find_latest(run, split, "code_perplexity") or math.nan
        stats = [
            Stat(format_percent(accuracy), "accuracy", "of the codes of masked frames"),
            Stat(f"{format_number(loss)} bits", "code loss", f"entropy of the codes {format_number(entropy)} bits"),
            Stat(format_number(used), "codes in effective use", "as targets"),
        ]
    else:
        sentence = f"Its loss on {where} is {format_number(loss)}{heard}."
        stats = [Stat(format_number(loss), "loss", where)]
    return sentence, stats + _list_more_stats(run, split)


def _list_more_stats(run: RunFolder, split: str) -> list[Stat]:
    stats = []
    num_codes = run.get_config("model.quantizer.num_codes")
    perplexity = run.last(split, "hard_perplexity")
    if isinstance(perplexity, list) and perplexity and num_codes:
        value = " / ".join(format_number(p) for p in perplexity)
        stats.append(Stat(value, "codes in effective use", f"of {num_codes} in each codebook"))
    hours, (updates, speeds) = run.last("train", "hours_seen"), pick_values(run, "train", "audio_s_per_s")
    if hours:
        stats.append(Stat(format_hours(hours), "speech heard", f"in {count(run.num_updates, 'update')}"))
    if updates:
        gpu, threads = run.environment.get("gpu"), run.environment.get("num_threads")
        machine = f" on {gpu}" if gpu else f" on {count(threads, 'CPU thread')}" if isinstance(threads, int) else ""
        stats.append(Stat(f"{format_number(median(speeds))} ×", "real time", f"median, training{machine}"))
    return stats


def draw_learning(run: RunFolder) -> list[Figure]:
    """Draw loss, accuracy and perplexity with the levels that tell what they mean."""
    draw = {"loss_contrastive": _draw_contrast, "loss_codes": _draw_codes}.get(find_loss(run))
    if draw is not None:
        return draw(run)
    own = [name for name in _list_metrics(run) if name not in UNDRAWN | SMALL.keys()]
    return plot("Loss", "", make_pair(run, "loss")) + [chart for k in own for chart in plot(k, "", make_pair(run, k))]


def make_pair(run: RunFolder, name: str, factor: float = 1.0, num_points: int = MAX_POINTS) -> list[Series | None]:
    """Make the curves of a metric in training (smoothed) and in validation."""
    (x, y), (valid_x, valid_y) = pick_values(run, "train", name), pick_values(run, "valid", name)
    return [
        make_series("training", "train", x, [factor * value for value in y], smooth=True, num_points=num_points),
        make_series("held out", "valid", valid_x, [factor * value for value in valid_y], num_points=num_points),
    ]


def make_machinery(run: RunFolder) -> list[Section]:
    """Draw the small charts: parts of the loss, schedules, speed, and what no chart of a known objective is about."""
    is_unknown = run.kind == "pretrain" and find_loss(run) == "loss"
    names = SMALL if is_unknown else dict.fromkeys([*SMALL, *_list_metrics(run)])
    drawn = UNDRAWN | LARGE.keys() | {find_loss(run)} | ({"loss"} if run.kind == "finetune" else set())
    figures = []
    for name in names:
        title, unit, factor = SMALL.get(name, (name, "", 1))
        pair = make_pair(run, name, factor, SMALL_POINTS) if name not in drawn else []
        figures += plot(title, unit, pair, from_zero=name != "masked_share", is_small=True)
    return [Section("Under the bonnet", figures)]


def _list_metrics(run: RunFolder) -> list[str]:
    return list(dict.fromkeys(key for row in run.metrics for key in row))


def _draw_contrast(run: RunFolder) -> list[Figure]:
    chance = find_chance(run)
    loss = plot(
        "Contrastive loss", MASKED, make_pair(run, "loss_contrastive"),
        f"What it costs to name the true frame among {chance.candidates}. A model that knows nothing pays "
        f"{format_number(chance.loss)} bits; lower is better.",
        [("guessing", chance.loss)],
    )  # fmt: skip
    accuracy = plot(
        "Accuracy", SHARE, make_pair(run, "accuracy", 100),
        f"How often the true frame scores highest among the {chance.candidates}. It stays well under 100{THIN_SPACE}%: "
        "not all that is said can be told from what stands around it.",
        [("guessing", 100 * chance.accuracy)], from_zero=True,
    )  # fmt: skip
    return loss + accuracy + _draw_perplexity(run)


def _draw_codes(run: RunFolder) -> list[Figure]:
    entropy = make_series("entropy of the targets", "c1", *pick_values(run, "train", "target_entropy"))
    loss = plot(
        "Code loss", MASKED, [*make_pair(run, "loss_codes"), entropy],
        "What it costs to name the code of a masked frame. Below the entropy of the targets the model knows more than "
        "how often each code comes.",
    )  # fmt: skip
    note = "How often the true code scores highest."
    accuracy = plot("Accuracy", SHARE, make_pair(run, "accuracy", 100), note, from_zero=True)
    pairs = (("targets", "c1", "code_perplexity"), ("predictions", "c2", "prediction_perplexity"))
    used = [make_series(label, style, *pick_values(run, "train", name), smooth=True) for label, style, name in pairs]
    note = "Codes in effective use: as targets so far, and as predictions of one update. 1 would be a collapse."
    return loss + accuracy + plot("Perplexity", "codes", used, note, from_zero=True)


def _draw_perplexity(run: RunFolder) -> list[Figure]:
    num_codes = run.get_config("model.quantizer.num_codes")
    rows = [row["hard_perplexity"] for row in run.select("train") if isinstance(row.get("hard_perplexity"), list)]
    series = []
    for group in range(max(map(len, rows), default=0)):
        name, style = f"codebook {group + 1}", f"c{group % 5 + 1}"
        hard, soft = (pick_values(run, "train", f"{kind}_perplexity", group) for kind in ("hard", "soft"))
        series.append(make_series(name, style, *hard, smooth=True))
        series.append(make_series(f"{name}, soft", style, *soft, smooth=True, band=False, kind="thin"))
    note = (
        "How many codes are in use, in effect: the hard perplexity counts the codes that were chosen, the soft one "
        "the probabilities behind the choice. 1 would be a collapsed codebook."
    )
    levels = [(f"all {num_codes} codes alike", float(num_codes))] if num_codes else []
    return plot("Codebook perplexity", "codes", series, note, levels, from_zero=True)
