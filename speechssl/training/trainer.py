"""The one loop, for pretraining, recognition and probes. It knows `Objective` and `Batch`, and no model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field

import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.checkpoints.saver import Saver
from speechssl.checkpoints.snapshot import Progress
from speechssl.checkpoints.store import CheckpointStore
from speechssl.config.training import TrainingConfig
from speechssl.data.dataset import LeftOut
from speechssl.data.loader import Batch
from speechssl.devices import autocast
from speechssl.errors import CollapseError, StoppedOnRequest
from speechssl.objectives.protocol import LossTerms, Metrics, Objective, add_terms
from speechssl.progress import Progress as Bar
from speechssl.progress import track
from speechssl.seeds import make_torch_seed
from speechssl.training.average import WeightAverage
from speechssl.training.distributed.ranks import Ranks
from speechssl.training.distributed.replica import build_replica
from speechssl.training.guard import NumericalGuard, find_broken, name_utterances
from speechssl.training.left_out import FEW, pack, refuse, unpack
from speechssl.training.logs import RunLogs
from speechssl.training.metrics import format_progress, measure_system
from speechssl.training.optim import build_optimizer, scale_gradients, set_lr
from speechssl.training.resume import TrainingState, resume
from speechssl.training.schedules import compute_frozen_updates, compute_lr, is_out_of_patience
from speechssl.training.stop import StopFlag

UpdateSource = Callable[[int, int], Generator[list[Batch], None, None]]
"""`source(first, last)`: the batches of each update from the first to the last, both included."""

_logger = logging.getLogger("speechssl")


@dataclass(eq=False)
class Trainer:
    """Runs updates from wherever the run folder stands to `max_updates`.

    Everything that changes with time is a function of the update number, so that a resumed run makes the same
    updates as one that was never stopped.

    Attributes:
        objective: what is learned.
        config: optimizer, schedule and bookkeeping.
        source: batches of any range of updates.
        ranks: the processes that train together, and where this one computes.
        precision: how it computes; a run that goes on keeps the one that it began in.
        seed: of dropout.
        validate: the batches of one validation; None for none.
        store: where checkpoints go; None keeps none (a probe).
        logs: where metrics go; by default nowhere.
        stop: says when to stop.
        is_quiet: no lines of progress.
    """

    objective: Objective
    config: TrainingConfig
    source: UpdateSource
    ranks: Ranks
    precision: str
    seed: int
    validate: Callable[[], Iterator[Batch]] | None = None
    store: CheckpointStore | None = None
    logs: RunLogs = field(default_factory=RunLogs)
    stop: StopFlag = field(default_factory=StopFlag)
    is_quiet: bool = False

    def __post_init__(self) -> None:
        config, module = self.config, self.objective.module
        self.replica = build_replica(self.objective, self.ranks, config.sharding)
        self.optimizer = build_optimizer(module, config, self.objective.find_depth)
        # What is a usual loss or gradient starts again where more of the encoder begins to learn.
        thaws = [compute_frozen_updates(config, share) + 1 for share in (config.freeze_share, config.unfreeze_share)]
        self.guard = NumericalGuard(config.spike_sigmas, config.max_skipped_in_row, thaws)
        self.average = WeightAverage(module, config.ema_decay) if config.ema_decay else None
        validated = "ema" if config.validate_ema else "model"
        self.state = TrainingState(
            self.objective, self.optimizer, guard=self.guard, average=self.average, validated=validated
        )
        self.saver = Saver(self.store if self.ranks.is_main else None)
        self.saved_update = 0
        self.has_moved = self.was_warned = False

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.state.progress

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do: all updates are made, or validation ran out of patience."""
        progress, config = self.progress, self.config
        is_last = progress.update >= config.max_updates
        return is_last or is_out_of_patience(config, progress.validated_update, progress.best_update)

    def run(self) -> None:
        """Train to the end, or until `training.patience` ends.

        Raises:
            StoppedOnRequest: a signal or the time limit; the state is saved.
            CollapseError: pretraining collapsed and `training.on_collapse=stop`.
            NumericalError: too many updates were skipped.
            DataError: too many utterances cannot be read, or nothing comes from the workers.
            CheckpointError: a checkpoint could not be saved.
        """
        if self.store is not None:
            self.precision = resume(self.state, self.store, self.ranks) or self.precision
            self.saved_update = self.progress.update
        total, done = self.config.max_updates, self.progress.update
        self.bar = Bar("train", total, "updates", done, has_bar=not self.is_quiet, has_lines=False)
        with ExitStack() as opened, self.logs.opened(self.progress), self.saver, self.bar:
            # What the update asked for that the run stands at: it may have been stopped inside a validation.
            is_validated, is_best = self._validate_if_due()
            self._save_if_due(is_validated, is_best)
            self._stop_if_asked()
            first, last = self.progress.update + 1, self.config.max_updates
            # Closed by the block: a traceback would keep the source, and with it the processes that read, alive.
            source = opened.enter_context(closing(self.source(first, last))) if not self.is_over else ()
            start, start_cpu = time.monotonic(), time.process_time()
            for update, batches in enumerate(source, first):
                waited = time.monotonic() - start
                self.saver.check()
                made = self._make_update(update, batches)
                if made is None:
                    break  # asked to stop between two of its forwards
                self.progress.update, self.has_moved = update, True
                self.stop.note_update(update, last)
                cpu_s = time.process_time() - start_cpu
                self._log_update(*made, waited, time.monotonic() - start, cpu_s)
                if update == 1 or update % self.config.digest_every == 0:
                    self.replica.compare_weights(update)
                # In this order: the log is on disk before the checkpoint that a resumed run cuts it back to, the
                # checkpoint knows whether it is the best, and who stops has already saved what was due.
                is_validated, is_best = self._validate_if_due()
                self._save_if_due(is_validated, is_best)
                self._stop_if_asked()
                if self.is_over:
                    break
                self.ranks.set_timeout(self.config.timeout_s)
                start, start_cpu = time.monotonic(), time.process_time()
            if not self.is_over:
                # Asked inside an update, which has changed nothing yet, or while waiting for one.
                self._stop(self.stop.check())
        if self.progress.update < self.config.max_updates:
            _logger.info(
                "finished after update %d: no better since update %d (training.patience=%d)",
                self.progress.update,
                self.progress.best_update,
                self.config.patience,
            )
        if self.store is not None and self.ranks.is_main:
            self.store.finish()

    def _make_update(self, update: int, batches: Sequence[Batch]) -> tuple[Metrics, float] | None:
        """Make one update from its forwards.

        Returns:
            Its metrics, and its seconds of audio, both over all ranks; None where the run was asked to stop before
            its last forward, and nothing has changed.
        """
        module = self.objective.module.train()
        self.replica.prepare(update)
        lr = compute_lr(self.config, update)
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)

        parts = []
        for batch in batches:
            if self._must_stop_here:
                return None
            parts.append(self._run_forward(update, batch))

        terms = add_terms(parts)
        samples = sum(batch.valid_samples for batch in batches)
        terms.stats["samples"] = torch.tensor(samples, dtype=torch.float64)
        terms, left_out = self._sum_terms(terms, [each for batch in batches for each in batch.left_out], "data.train")
        audio_s = float(terms.stats["samples"]) / SAMPLE_RATE
        if not terms.count:
            return self._pass_over(update, terms, lr, left_out), 0.0

        # Gradients so far are of sums. They are divided once, by the count over all forwards and ranks: a mean of means
        # would weigh items by the forward that they came in, and memory or ranks would change the update.
        norm = float(scale_gradients(module, terms.count, self.config.clip_norm))
        metrics: Metrics = {**self.objective.summarise(terms, update), "grad_norm": norm, "lr": lr}

        # Judged before the step: a NaN that has reached the weights stays there.
        loss = metrics["loss"]
        assert isinstance(loss, float), f"loss must be a number, not {loss!r}"
        reason = self.guard.judge(update, loss, norm)
        metrics["skipped_updates"] = self.guard.skipped
        if reason:
            ids = self._find_suspects(parts, batches)
            self._write_skipped(update, reason, metrics, ids)
            self.guard.check_count(update, reason, ids)
            return metrics, audio_s

        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self._check_health(update, terms, metrics)
        return metrics, audio_s

    def _run_forward(self, update: int, batch: Batch) -> LossTerms:
        """Run one forward and backward; dropout is a function of (seed, update, first sub-batch)."""
        torch.manual_seed(make_torch_seed(self.seed, "dropout", update, batch.plan.sub_batches[0].number))
        with self.replica.accumulate(batch.plan.is_last):
            terms = self._compute(update, batch)
            # A forward that is not counted is made for the other ranks alone.
            total = terms.sum if batch.plan.is_counted else 0.0 * terms.sum
            total.backward()  # type: ignore[no-untyped-call]
        return _take(terms, batch)

    def _compute(self, update: int, batch: Batch) -> LossTerms:
        device = self.ranks.device
        with autocast(device, self.precision, self.replica.caches_casts):
            return self.replica.compute(batch.to(device), update)

    def _sum_terms(
        self, terms: LossTerms, left_out: list[LeftOut], key: str, is_pass: bool = False
    ) -> tuple[LossTerms, list[LeftOut]]:
        """Add up the terms of all ranks, and take note of what each of them could not read."""
        terms.stats["left_out"] = torch.tensor(len(left_out), dtype=torch.float64)
        terms = self.ranks.sum_terms(terms)
        if terms.stats["left_out"]:
            left_out = unpack(self.ranks.gather_lines(pack(left_out)))
            self.logs.note_left_out(key, left_out, is_pass)
        return terms, left_out

    def _pass_over(self, update: int, terms: LossTerms, lr: float, left_out: Sequence[LeftOut]) -> Metrics:
        """Let an update pass of which nothing can be read: it changes nothing, and has no values."""
        if len(left_out) > FEW:
            raise refuse("data.train", f"the {len(left_out)} utterances of update {update}", left_out)
        metrics = self.objective.summarise(terms.blank(), update) | {"grad_norm": math.nan, "lr": lr}
        metrics["skipped_updates"] = self.guard.skipped
        self._write_skipped(update, "none of its utterances can be read", metrics, [each.id for each in left_out])
        return metrics

    def _find_suspects(self, parts: Sequence[LossTerms], batches: Sequence[Batch]) -> list[str]:
        """List the utterances behind a skipped update, of all ranks: those of forwards that broke, else all."""
        broken = self.ranks.gather_lines(find_broken(parts, batches))
        counted = [batch for batch in batches if batch.plan.is_counted]
        return broken or self.ranks.gather_lines([utterance for batch in counted for utterance in batch.ids])

    def _write_skipped(self, update: int, reason: str, metrics: Metrics, ids: list[str]) -> None:
        """Say why an update was skipped, which leaves weights, moments and average as they are, and what was in it."""
        if self.ranks.is_main:
            _logger.warning("update %d skipped: %s; utterances %s", update, reason, name_utterances(ids))
        values = {name: metrics[name] for name in ("loss", "grad_norm")}
        self.logs.write_skipped({"update": update, "reason": reason, **values, "ids": ids})

    def _check_health(self, update: int, terms: LossTerms, metrics: Metrics) -> None:
        if self.objective.watch is None:
            return
        health = self.objective.watch.observe(terms, metrics, update)
        metrics["collapse_warning"] = int(bool(health.warning))
        if health.problem and self.config.on_collapse == "stop":
            raise CollapseError(health.problem)
        is_new = bool(health.warning) and not self.was_warned
        if is_new or (health.problem and update % self.config.log_every == 0):
            _logger.warning(health.problem or health.warning)
        self.was_warned = bool(health.warning)

    def _log_update(self, metrics: Metrics, audio_s: float, waited: float, seconds: float, cpu_s: float) -> None:
        """Log an update that took so many seconds, some of which were spent waiting for its batches."""
        update, seconds = self.progress.update, max(seconds, 1e-9)
        self.progress.audio_s += audio_s
        metrics |= {"loader_wait": waited / seconds, "cpu_s": cpu_s}
        metrics |= {"hours_seen": self.progress.audio_s / 3600, "audio_s_per_s": audio_s / seconds}
        due = update % self.config.log_every == 0 or update == 1
        if due:
            metrics |= measure_system(self.ranks.device)
        self.logs.write({"update": update, "split": "train", **metrics})
        self._advance_bar(metrics)
        if due and not self.is_quiet and not self.bar.has_bar:
            _logger.info("%s  %s", format_progress(update, self.config.max_updates, "train", metrics), self.bar.left)

    def _advance_bar(self, metrics: Metrics) -> None:
        progress, best = self.progress, {}
        if progress.best_value is not None:
            best = {"best": f"{self.objective.best_metric} {progress.best_value:.4g} at {progress.best_update}"}
        loss, speed = metrics["loss"], metrics["audio_s_per_s"]
        self.bar.advance(1, **best, loss=f"{loss:.4g}", speed=f"{speed:.0f} s/s")

    def _is_validation_due(self) -> bool:
        """Say whether this update asks for a validation that it has not had: also after a stop inside one."""
        update, config = self.progress.update, self.config
        if self.validate is None or self.progress.validated_update == update:
            return False
        return update == config.max_updates or update % config.validate_every == 0

    def _validate_if_due(self) -> tuple[bool, bool]:
        """Validate where it is due, and say whether that was done, and whether it is the best one so far."""
        metrics = self._validate() if self._is_validation_due() else None
        if metrics is None:
            return False, False
        update = self.progress.validated_update = self.progress.update
        is_best = update > 0 and self._note_best(metrics)
        line = format_progress(update, self.config.max_updates, "valid", metrics)
        _logger.info("%s%s", line, "  best so far" if is_best else "")
        return True, is_best

    @torch.no_grad()
    def _validate(self) -> Metrics | None:
        """Run the objective over the validation batches in evaluation mode and log what it finds.

        Returns:
            The metrics; None where the run was asked to stop meanwhile.
        """
        assert self.validate is not None, "no validation set"
        update, module = self.progress.update, self.objective.module.eval()
        average = self.average if self.config.validate_ema else None
        parts, left_out = [], list[LeftOut]()
        with nullcontext() if average is None else average.applied():
            for batch in track(self.validate(), "validate", unit="batches"):
                if self._must_stop_here:
                    return None
                parts.append(_take(self._compute(update, batch), batch))
                left_out += batch.left_out
        if self._must_stop_here:
            return None  # what came is not all
        module.train()
        terms, left_out = self._sum_terms(add_terms(parts), left_out, "data.valid", is_pass=True)
        if not terms.count:
            raise refuse("data.valid", "all of it", left_out)
        metrics = self.objective.summarise(terms, update)
        self.logs.write({"update": update, "split": "valid", **metrics, "hours_seen": self.progress.audio_s / 3600})
        return metrics

    def _note_best(self, metrics: Metrics) -> bool:
        """Say whether these validation metrics are the best so far, and remember them if so."""
        progress, watch = self.progress, self.objective.watch
        names = (self.objective.best_metric, self.objective.tie_metric or self.objective.best_metric)
        value, tie = (metrics[name] for name in names)
        assert isinstance(value, float) and isinstance(tie, float), f"{names} must be numbers"
        before, before_tie = progress.best_value, progress.best_tie
        is_worse = before is not None and before_tie is not None and (value, tie) >= (before, before_tie)
        # NaN compares with nothing, so that it would be best until the next validation; a recogniser's WER hides it.
        is_finite = all(math.isfinite(number) for number in metrics.values() if isinstance(number, float))
        if is_worse or not is_finite or not (watch is None or watch.is_candidate(metrics)):
            return False
        progress.best_value, progress.best_tie, progress.best_update = value, tie, progress.update
        return True

    def _save_if_due(self, is_validated: bool, is_best: bool) -> None:
        """Save where this update asks for it; where the run stands already, only what a validation has added."""
        update, config = self.progress.update, self.config
        due = is_best or self.is_over or update % config.checkpoint_every == 0
        if due and update > 0 and (is_validated or update != self.saved_update):
            self._save(is_best)

    def _save(self, is_best: bool) -> None:
        if self.store is not None:
            self.saver.save(self.state.take_snapshot(), is_best)
            self.saved_update = self.progress.update

    @property
    def _must_stop_here(self) -> bool:
        """Whether to stop inside an update or a validation; several processes agree to stop between updates."""
        return self.ranks.is_alone and self.stop.is_requested

    def _stop_if_asked(self) -> None:
        """Stop where any rank was asked to, unless nothing is left to do."""
        stop = self.stop
        stop.has_moved = self.has_moved
        reason = self.ranks.agree_to_stop(stop.check() if stop.has_moved or stop.is_requested else None)
        if reason is not None and (not self.is_over or self._is_validation_due()):
            self._stop(reason)

    def _stop(self, reason: tuple[str, int] | None) -> None:
        """Save what is not saved yet, wait until it is on disk, and stop."""
        assert reason is not None, "nobody asked to stop"
        update, (message, code) = self.progress.update, reason
        if update == 0:
            raise StoppedOnRequest(f"{message} before the first update; the same command begins again", code)
        if update != self.saved_update:
            self._save(is_best=False)
        self.saver.wait()
        # A process that ends takes the others with it, and one may be saving still.
        self.ranks.wait_for_all()
        raise StoppedOnRequest(f"{message} after update {update}; the same command goes on from there", code)


def _take(terms: LossTerms, batch: Batch) -> LossTerms:
    """Take what a forward adds to the sums: nothing where it is not counted."""
    return terms.detach() if batch.plan.is_counted else terms.zero()
