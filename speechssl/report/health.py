"""Where a run stands, and whether it is healthy: a status line and a verdict for every page, and what was skipped."""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.checkpoints.layout import DATA
from speechssl.parsing import read_bytes
from speechssl.report.figures import Figure, Section, Table, Verdict, count, format_hours, format_number, is_number
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
    told = [("State", _describe_state(run))] if run.config else []
    # Each line has the speech heard so far and the speed of its update: their sum knows of no interruption.
    rows = [row for row in run.select("train") if row.get("hours_seen") and row.get("audio_s_per_s")]
    steps = pairwise([{"hours_seen": 0.0}, *rows])
    hours = sum((row["hours_seen"] - before["hours_seen"]) / row["audio_s_per_s"] for before, row in steps)
    told += [("Training time", f"{format_hours(hours)}, without validation")] if hours else []
    best = run.result.get("best_update")
    told += [("Best checkpoint", f"update {format_number(best)}")] if isinstance(best, int) and best > 0 else []
    seed = run.get_config("seed", run.result.get("seed"))
    told += [("Seed", str(seed))] if seed is not None else []
    told += [("Data", data)] if (data := _describe_data(run)) else []
    command = run.environment.get("command")
    if isinstance(command, list) and command:
        # The first word is a path inside the installation, which nobody typed.
        told.append(("Command", shlex.join(["speechssl", *map(str, command[1:])])))
    return told


def judge(run: RunFolder) -> Verdict:
    """Answer "is my run healthy?" for a training run, in plain words."""
    split, name = choose_split(run), find_loss(run)
    name = "cer" if run.kind == "finetune" and find_latest(run, split, "cer") is not None else name
    loss, last = find_latest(run, split, name), (run.select("train") or [{}])[-1]
    lost = [key for key in (find_loss(run), "grad_norm") if key in last and not is_number(last[key])]
    if lost:
        return Verdict("bad", "Not healthy", f"At its end {' and '.join(lost)} is no longer a number.")
    if loss is None:
        return Verdict("open", "Too early to say", "No update has been logged yet.")
    bad, doubts, fine = _compare(run, split, name, loss)
    if last.get("collapse_warning"):
        bad.append("signs of a collapse hold at its end")
    if (skipped := last.get("skipped_updates") or 0) > MOST_SKIPPED * run.num_updates:
        doubts.append(f"{count(skipped, 'update')} of {format_number(run.num_updates)} were skipped")
    if run.num_updates <= run.get_config("training.warmup_share", 0.0) * run.get_config("training.max_updates", 0):
        return Verdict("open", "Too early to say", f"The learning rate is still rising. {_say(fine)}")
    if bad:
        return Verdict("bad", "Not healthy", f"{_say(bad + doubts)} {_say(fine)}")
    if run.kind == "pretrain" and name == "loss" and not _has_fallen(run):
        why = "It has not fallen by more than its noise on held-out speech, and nothing else of its objective is known."
        return Verdict("open", "Too early to say", f"{_say(fine + doubts)} {why}")
    if doubts:
        return Verdict("doubt", "Healthy, with a reservation", f"{_say(fine)} But {'; '.join(doubts)}.")
    return Verdict("good", "Healthy", _say(fine))


def make_health(run: RunFolder) -> list[Section]:
    """Tell of signs of a collapse, tabulate skipped updates, and say what averaged weights are for."""
    figures = []
    stretches = find_stretches(run.select("train"), "collapse_warning")
    if stretches:
        named = ", ".join(f"from {format_number(first)} to {format_number(last)}" for first, last in stretches[-NAMED:])
        note = "See perplexity, masked share, removed negatives, spread of contexts and variance of features there."
        figures.append(Figure(f"Signs of a collapse held in the updates {named}", None, note, is_wide=True))
    if run.skipped:
        ids = [[str(name) for name in row.get("ids", [])] for row in run.skipped]
        rows = [
            (row["update"], row.get("reason", ""), ", ".join([*names[:NAMED], *(["…"] if len(names) > NAMED else [])]))
            for row, names in list(zip(run.skipped, ids, strict=True))[-SHOWN:]
        ]
        caption = f"The last {SHOWN}" if len(run.skipped) > SHOWN else ""
        note = "The numbers could not be right, and the weights stayed as they were."
        table = Table(("update", "why", "utterances"), rows, caption)
        figures.append(Figure(f"{count(len(run.skipped), 'update')} skipped", table, note, is_wide=True))
    decay = run.get_config("training.ema_decay", 0.0)
    if decay:
        uses = "Validation used it, and chose the best checkpoint by it."
        note = f"It lies beside the weights (decay {decay:g}); weights=ema takes it."
        note += f" {uses}" if run.get_config("training.validate_ema") else ""
        figures.append(Figure("A moving average of the weights", None, note, is_wide=True))
    return [Section("What happened on the way", figures)]


def find_stretches(rows: Sequence[Row], name: str) -> list[tuple[int, int]]:
    """Find the first and last update of each stretch in which a metric is not 0."""
    groups = [(is_set, list(members)) for is_set, members in groupby(rows, key=lambda row: bool(row.get(name)))]
    return [(members[0]["update"], members[-1]["update"]) for is_set, members in groups if is_set]


def _compare(run: RunFolder, split: str, name: str, last: float) -> tuple[list[str], list[str], list[str]]:
    """Collect what is ill, what is doubtful and what is well, by what the run's figures are of."""
    unit = {"cer": " %", "loss_contrastive": " bits", "loss_codes": " bits"}.get(name, "")
    what = "the character error rate" if name == "cer" else "the loss"
    updates, values = pick_values(run, split, name)
    fell = "fell" if last < values[0] else "went"
    bad, doubts = [], []
    fine = [f"{what} {fell} from {format_number(values[0])} to {format_number(last)}{unit}"]
    best, where = min(zip(values[1:], updates[1:], strict=True), default=(last, 0.0))
    if split == "valid" and last - best > RISE * abs(values[0] - best):
        doubts.append(f"it was lower at update {format_number(where)}, {format_number(best)}{unit}")
    entropy, wer, removed, masked = (
        find_latest(run, split, key) for key in ("target_entropy", "wer", "removed_negatives", "masked_share")
    )
    if name == "loss_contrastive":
        chance, perplexity = find_chance(run).loss, run.last(split, "hard_perplexity")
        fine.append(f"guessing costs {format_number(chance)} bits")
        if last > chance - MARGIN_BITS:
            bad.append("it does no better than guessing")
        if isinstance(perplexity, list) and perplexity:
            used = " and ".join(map(format_number, perplexity))
            fine.append(f"{used} of {run.get_config('model.quantizer.num_codes', 'the')} codes are in use, in effect")
            bad += ["a codebook has collapsed"] if min(perplexity) < LEAST_PERPLEXITY else []
    elif name == "loss_codes" and entropy is not None:
        fine.append(f"the entropy of the codes is {format_number(entropy)} bits")
        bad += ["it knows no more than how often each code comes"] if last > entropy - MARGIN_BITS else []
    elif wer is not None:
        fine.append(f"the word error rate is {format_number(wer)} %")
        if wer >= 99 and last > 80:
            bad.append("hardly a word is right: too few updates, or too high a learning rate")
    elif last >= values[0]:
        bad.append("the loss has not fallen")
    if (removed or 0) > MOST_REMOVED:
        doubts.append("many negatives have the codes of the target")
    if masked is not None and masked < LEAST_MASKED:
        doubts.append(f"only {100 * masked:.0f} % of the frames are masked: the utterances are short")
    return bad, doubts, fine


def _has_fallen(run: RunFolder) -> bool:
    """Say whether the loss on held-out speech fell by more than it ever rose from one validation to the next."""
    _, values = pick_values(run, "valid", "loss")
    rises = [after - before for before, after in pairwise(values)]
    return len(rises) > 1 and values[0] - values[-1] > max(0.0, *rises)


def _describe_state(run: RunFolder) -> str:
    done, planned, finished = run.num_updates, run.get_config("training.max_updates", 0), run.result.get("updates")
    if isinstance(finished, int) and finished >= planned:
        return f"finished, all {count(finished, 'update')}"
    if "ended_by" in run.result:
        return f"finished by {run.result['ended_by']} after {count(done, 'update')} of {format_number(planned)}"
    at = f"at update {format_number(done)} of {format_number(planned)}"
    return f"running, {at}" if _is_held(run.path) else f"stopped {at}; the same command goes on"


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


def _describe_data(run: RunFolder) -> str:
    """Name the run's manifests, with hours and utterances as they were when it began."""
    sizes = {}
    if os.path.lexists(run.path / DATA):
        content = pa.BufferReader(read_bytes(run.path / DATA, MAX_DATA_BYTES))
        table = pq.read_table(content, columns=["key", "num_samples"])
        for key in pc.unique(table.column("key")).to_pylist():
            lengths = table.filter(pc.equal(table.column("key"), key)).column("num_samples")
            hours = format_hours((pc.sum(lengths).as_py() or 0) / SAMPLE_RATE / 3600)
            sizes[str(key)] = f" ({hours}, {count(len(lengths), 'utterance')})"
    sets = [
        (word, key, run.get_config(key)) for word, key in (("trained on ", "data.train"), ("held out ", "data.valid"))
    ]
    sets += [("", "data.test", run.test_sets)] if run.kind == "evaluate" else []
    names = [(word + ", ".join(Path(path).name for path in paths), key) for word, key, paths in sets if paths]
    return "; ".join(name + sizes.get(key, "") for name, key in names)


def _say(reasons: Sequence[str]) -> str:
    sentence = "; ".join(reasons)
    return f"{sentence[0].upper()}{sentence[1:]}."
