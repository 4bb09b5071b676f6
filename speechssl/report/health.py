"""Where a run stands, and whether it is healthy: a status line and a verdict for every page, and what was skipped."""

from __future__ import annotations

import fcntl
import math
import os
import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechssl.checkpoints.layout import DATA
from speechssl.parsing import parsing, read_bytes
from speechssl.report.content import Figure, Section, Table, Verdict, count, format_hours, format_number
from speechssl.report.pretraining import choose_split, find_chance, find_latest, find_loss, pick_values
from speechssl.report.run_folder import Row, RunFolder

SHOWN, NAMED = 20, 3

MAX_DATA_BYTES = 2**30
"""Largest record of the data that is read; a million utterances take 30 MB."""

MARGIN_BITS = 0.02
"""A loss within this of guessing is that of guessing, as for the collapse watch."""

RISE = 0.1
"""A loss that is up by more than this share of what it had fallen is told: the best checkpoint lies behind."""

LEAST_PERPLEXITY, MOST_REMOVED, LEAST_MASKED, MOST_SKIPPED = 2.0, 0.25, 0.2, 0.01
"""Where the watch warns (codes in effective use, negatives removed, frames masked), and updates skipped of all."""


def describe_status(run: RunFolder) -> list[tuple[str, str]]:
    """Say where a run stands: its state, the time it took, its seed, its data with hours, and its command."""
    facts: list[tuple[str, str]] = []
    if run.metrics or run.config:
        facts.append(("State", _describe_state(run)))
        seconds = _count_seconds(run)
        facts += [("Training time", f"{format_hours(seconds / 3600)}, without validation")] if seconds else []
    best = run.result.get("best_update")
    facts += [("Best checkpoint", f"update {format_number(best)}")] if isinstance(best, int) and best > 0 else []
    seed = run.get_config("seed", run.result.get("seed"))
    facts += [("Seed", str(seed))] if seed is not None else []
    facts += [("Data", data)] if (data := _describe_data(run)) else []
    command = run.environment.get("command")
    if isinstance(command, list) and command:
        # The first word is a path inside the installation, which nobody typed.
        facts.append(("Command", shlex.join(["speechssl", *map(str, command[1:])])))
    return facts


def judge(run: RunFolder) -> Verdict:
    """Answer "is my run healthy?" for a training run, in one sentence."""
    if run.num_updates == 0:
        return Verdict("open", "Too early to say", "No update has been logged yet.")
    bad, doubts, fine = _judge_task(run)
    last = run.select("train")[-1] if run.select("train") else {}
    if last.get("collapse_warning"):
        bad.append("signs of a collapse hold at its end")
    if (skipped := last.get("skipped_updates") or 0) > MOST_SKIPPED * run.num_updates:
        doubts.append(f"{count(skipped, 'update')} of {format_number(run.num_updates)} were skipped")
    lost = [name for name in (find_loss(run), "grad_norm") if name in last and not _is_finite(last[name])]
    if lost:
        return Verdict("bad", "Not healthy", f"At its end {' and '.join(lost)} is no longer a number.")
    warmup = run.get_config("training.warmup_share", 0.0) * run.get_config("training.max_updates", 0)
    if run.num_updates <= warmup:
        return Verdict("open", "Too early to say", f"The learning rate is still rising. So far {'; '.join(fine)}.")
    if bad:
        return Verdict("bad", "Not healthy", _say([*bad, *doubts, *fine]))
    if doubts:
        return Verdict("doubt", "Healthy, with a reservation", _say([*doubts, *fine]))
    return Verdict("good", "Healthy", _say(fine))


def make_health(run: RunFolder) -> list[Section]:
    """Tell of signs of a collapse, tabulate skipped updates, and say what averaged weights are for."""
    figures = []
    stretches = find_stretches(run.select("train"), "collapse_warning")
    if stretches:
        named = ", ".join(f"from {format_number(first)} to {format_number(last)}" for first, last in stretches[-NAMED:])
        note = "See perplexity, masked share, removed negatives, spread of contexts and feature variance there."
        figures.append(Figure(f"Signs of a collapse held in the updates {named}", None, note, is_wide=True))
    if run.skipped:
        rows = [(row.get("update"), str(row.get("reason", "")), _name(row)) for row in run.skipped[-SHOWN:]]
        caption = f"The last {SHOWN}" if len(run.skipped) > SHOWN else ""
        title = f"{count(len(run.skipped), 'update')} skipped"
        note = "The numbers could not be right, and the weights stayed as they were."
        table = Table(("update", "why", "utterances"), rows, caption)
        figures.append(Figure(title, table, note, is_wide=True))
    decay = run.get_config("training.ema_decay", 0.0)
    if decay:
        uses = " Validation used it, and chose the best checkpoint by it."
        note = f"It lies beside the weights (decay {decay:g}); weights=ema takes it."
        note += uses if run.get_config("training.validate_ema") else ""
        figures.append(Figure("A moving average of the weights", None, note, is_wide=True))
    return [Section("What happened on the way", figures)] if figures else []


def find_stretches(rows: Sequence[Row], name: str) -> list[tuple[int, int]]:
    """Find the first and last update of each stretch in which a metric is not 0."""
    stretches = []
    for is_set, members in groupby(rows, key=lambda row: bool(row.get(name))):
        updates = [int(row["update"]) for row in members]
        if is_set:
            stretches.append((updates[0], updates[-1]))
    return stretches


def _judge_task(run: RunFolder) -> tuple[list[str], list[str], list[str]]:
    """Collect what is ill, what is doubtful and what is well, by what the run's figures are of."""
    split, name = choose_split(run), find_loss(run)
    if run.kind == "finetune" and pick_values(run, split, "cer")[0]:
        name = "cer"
    unit = {"cer": " %", "loss_contrastive": " bits", "loss_codes": " bits"}.get(name, "")
    what = "the character error rate" if name == "cer" else "the loss"
    updates, values = pick_values(run, split, name)
    last = find_latest(run, split, name)
    if last is None:
        return [], [], ["it has logged no loss"]
    change = f"fell from {format_number(values[0])}" if last < values[0] else f"went from {format_number(values[0])}"
    fine, doubts = [f"{what} {change} to {format_number(last)}{unit}"], []
    best, where = min(zip(values[1:], updates[1:], strict=True), default=(last, 0.0))
    if split == "valid" and last - best > RISE * abs(values[0] - best):
        doubts.append(f"{what} was lower at update {format_number(where)} ({format_number(best)}{unit}) than at the end")
    if name == "loss_contrastive":
        return *_judge_contrast(run, split, last, doubts), fine + _tell_codebooks(run, split)
    if name == "loss_codes":
        entropy = find_latest(run, split, "target_entropy") or math.inf
        bad = ["it knows no more than how often each code comes"] if last > entropy - MARGIN_BITS else []
        return bad, doubts, [*fine, f"the entropy of the codes is {format_number(entropy)} bits"]
    wer = find_latest(run, split, "wer")
    fine += [] if wer is None else [f"the word error rate is {format_number(wer)} %"]
    if name == "cer" and wer is not None and wer >= 99 and last > 80:
        return ["hardly a word is right: too few updates, or too high a learning rate"], doubts, fine
    return (["the loss has not fallen"] if last >= values[0] else []), doubts, fine


def _judge_contrast(run: RunFolder, split: str, loss: float, doubts: list[str]) -> tuple[list[str], list[str]]:
    bad, chance = [], find_chance(run).loss
    if loss > chance - MARGIN_BITS:
        bad.append(f"it does no better than guessing, which costs {format_number(chance)} bits")
    perplexity = run.last(split, "hard_perplexity")
    if isinstance(perplexity, list) and perplexity and min(perplexity) < LEAST_PERPLEXITY:
        bad.append("a codebook has collapsed")
    removed, masked = (find_latest(run, split, name) for name in ("removed_negatives", "masked_share"))
    if removed is not None and removed > MOST_REMOVED:
        doubts = [*doubts, "most negatives have the codes of the target"]
    if masked is not None and masked < LEAST_MASKED:
        doubts = [*doubts, f"only {100 * masked:.0f} % of the frames are masked: the utterances are short"]
    return bad, doubts


def _tell_codebooks(run: RunFolder, split: str) -> list[str]:
    told = [f"guessing costs {format_number(find_chance(run).loss)} bits"]
    perplexity = run.last(split, "hard_perplexity")
    if isinstance(perplexity, list) and perplexity:
        used = " and ".join(map(format_number, perplexity))
        told.append(f"of {run.get_config('model.quantizer.num_codes', 'all')} codes {used} are in use, in effect")
    return told


def _describe_state(run: RunFolder) -> str:
    done, planned = run.num_updates, run.get_config("training.max_updates", 0)
    finished = run.result.get("updates")
    if isinstance(finished, int) and finished >= planned:
        return f"finished, all {count(finished, 'update')}"
    if _is_held(run.path):
        return f"running, at update {format_number(done)} of {format_number(planned)}"
    return f"stopped at update {format_number(done)} of {format_number(planned)}; the same command goes on"


def _is_held(folder: Path) -> bool:
    """Say whether a process holds the run's lock, as a run does until it ends, however it ends."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    return False


def _count_seconds(run: RunFolder) -> float:
    """Add up the seconds of all updates, over interruptions: each line has the speech so far and its own speed."""
    total = before = 0.0
    for row in run.select("train"):
        heard, speed = row.get("hours_seen") or before, row.get("audio_s_per_s")
        total += (heard - before) * 3600 / speed if speed else 0.0
        before = heard
    return total


def _describe_data(run: RunFolder) -> str:
    """Name the run's manifests, with hours and utterances as they were when it began."""
    if run.kind == "evaluate":
        utterances = run.result.get("num_utterances")
        told = ", ".join(Path(name).name for name in run.test_sets)
        return f"{told} ({count(utterances, 'utterance')})" if told and isinstance(utterances, int) else told
    told = []
    sizes = _measure_data(run.path / DATA)
    for key, what in (("data.train", "train on"), ("data.valid", "held out")):
        names = ", ".join(Path(name).name for name in run.get_config(key) or [])
        size = f" ({sizes[key]})" if key in sizes else ""
        told += [f"{what} {names}{size}"] if names else []
    return "; ".join(told)


def _measure_data(path: Path) -> dict[str, str]:
    if not os.path.lexists(path):
        return {}
    with parsing(str(path), "a whole record of the data"):
        table = pq.read_table(pa.BufferReader(read_bytes(path, MAX_DATA_BYTES)), columns=["key", "num_samples"])
        sizes = {}
        for key in pc.unique(table.column("key")).to_pylist():
            lengths = table.filter(pc.equal(table.column("key"), key)).column("num_samples")
            hours = format_hours((pc.sum(lengths).as_py() or 0) / 16_000 / 3600)
            sizes[str(key)] = f"{hours}, {count(len(lengths), 'utterance')}"
    return sizes


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _name(row: Row) -> str:
    ids = [str(name) for name in row.get("ids", [])]
    return ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def _say(reasons: Sequence[str]) -> str:
    sentence = "; ".join(reasons)
    return f"{sentence[0].upper()}{sentence[1:]}."
