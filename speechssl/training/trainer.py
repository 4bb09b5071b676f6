"""The one loop, for pretraining, recognition and probes. It knows `Objective` and `Batch`, and no model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.checkpoints.saver import Saver
from speechssl.checkpoints.state import Progress, TrainingState
from speechssl.data.dataset import LeftOut
from speechssl.data.loader import Batch
from speechssl.devices import autocast
from speechssl.errors import CollapseError, StoppedOnRequest
from speechssl.objectives.protocol import LossTerms, Metrics, add_terms
from speechssl.seeds import make_torch_seed
from speechssl.training.average import WeightAverage
from speechssl.training.distributed.replica import build_replica
from speechssl.training.guard import NumericalGuard, find_broken, name_utterances
from speechssl.training.left_out import FEW, LeftOutTable, pack, refuse, unpack
from speechssl.training.lines import format_progress
from speechssl.training.metrics import MetricsWriter, measure_system
from speechssl.training.optim import build_optimizer, scale_gradients
from speechssl.training.schedules import compute_frozen_updates, compute_lr
from speechssl.training.setup import Setup

_logger = logging.getLogger("speechssl")


class Trainer:
    """Runs updates from wherever the run folder stands to `max_updates`.

    Everything that changes with time is a function of the update number, so that a resumed run makes the same
    updates as one that was never stopped.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.objective, self.config = setup, setup.objective, setup.config
        self.ranks = setup.ranks
        self.replica = build_replica(setup.objective, setup.ranks, self.config.sharding)
        self.optimizer = build_optimizer(self.objective.module, self.config)
        config = self.config
        self.guard = NumericalGuard(
            config.spike_sigmas, config.max_skipped_in_row, restart_at=compute_frozen_updates(config) + 1
        )
        self.average = WeightAverage(self.objective.module, config.ema_decay) if config.ema_decay else None
        self.state = TrainingState(setup.objective, self.optimizer, guard=self.guard, average=self.average)
        self.saver = Saver(setup.store if setup.ranks.is_main else None)
        self.saved_update = self.num_made = 0
        self.writers: Sequence[MetricsWriter] = ()
        self.skipped: MetricsWriter | None = None
        self.left_out: LeftOutTable | None = None
        self.was_warned = False

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.state.progress

    @property
    def has_moved(self) -> bool:
        """Whether an update was made since the run began or went on."""
        return self.num_made > 0

    def run(self) -> None:
        """Train to the end.

        Raises:
            StoppedOnRequest: a signal or the time limit; the state is saved.
            CollapseError: pretraining collapsed and `training.on_collapse=stop`.
            NumericalError: too many updates were skipped.
            DataError: too many utterances cannot be read, or nothing comes from the workers.
            CheckpointError: a checkpoint could not be saved.
        """
        self._resume()
        if self.ranks.is_main:
            self.writers = self.setup.open_writers(self.progress)
            self.skipped = self.setup.open_skipped(self.progress)
            self.left_out = self.setup.open_left_out()
        try:
            with self.saver:
                self._finish_update(is_new=False)
                self._run_updates()
        finally:
            for writer in (*self.writers, self.skipped):
                if writer is not None:
                    writer.close()
        if self.setup.store is not None and self.ranks.is_main:
            self.setup.store.finish()

    def _resume(self) -> None:
        store = self.setup.store
        if store is None:
            return
        found = store.find_valid() if self.ranks.is_main else None
        # One rank decides: another may see the folder of a network drive later.
        folder = self.ranks.broadcast(str(found or ""))
        if folder:
            provenance = store.load(Path(folder), self.state, self.ranks.is_main)
            self.setup.precision = provenance.precision or self.setup.precision
            self.saved_update = self.progress.update
            _logger.info("resumed from %s", Path(folder).name)

    def _run_updates(self) -> None:
        first, last = self.progress.update + 1, self.config.max_updates
        if first > last:
            return
        start = time.monotonic()
        for batches in self.setup.source(first, last):
            waited = time.monotonic() - start
            self.saver.check()
            self.progress.update += 1
            made = self._make_update(batches)
            if made is None:
                self.progress.update -= 1
                break
            self.num_made += 1
            metrics, audio_s = made
            seconds = time.monotonic() - start
            metrics["loader_wait"] = waited / max(seconds, 1e-9)
            self._log_update(metrics, audio_s, seconds)
            self._finish_update()
            self.ranks.set_timeout(self.config.timeout_s)
            start = time.monotonic()
        if self.progress.update < last:
            # Inside an update, or while waiting for one.
            self._stop(self.setup.stop.check())

    def _make_update(self, batches: Sequence[Batch]) -> tuple[Metrics, float] | None:
        """Make one update from its forwards; the gradient of the sum is divided once, by the count of all.

        Returns:
            Its metrics, and its seconds of audio, both over all ranks; None where the run was asked to stop before
            its last forward, and nothing has changed.
        """
        update, module = self.progress.update, self.objective.module
        module.train()
        self.replica.prepare(update)
        lr = compute_lr(self.config, update)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for batch in batches:
            if self._must_stop_here:
                return None
            parts.append(self._run_forward(batch))
        terms = add_terms(parts)
        samples = sum(batch.valid_samples for batch in batches)
        terms.stats["samples"] = torch.tensor(samples, dtype=torch.float64)
        terms, left_out = self._sum_terms(terms, [each for batch in batches for each in batch.left_out], "data.train")
        audio_s = float(terms.stats["samples"]) / SAMPLE_RATE
        if not terms.count:
            return self._pass_over(terms, lr, left_out), 0.0
        norm = float(scale_gradients(module, terms.count, self.config.clip_norm))
        metrics: Metrics = {**self.objective.summarise(terms, update), "grad_norm": norm, "lr": lr}
        loss = metrics["loss"]
        assert isinstance(loss, float), f"loss must be a number, not {loss!r}"
        reason = self.guard.judge(update, loss, norm)
        metrics["skipped_updates"] = self.guard.skipped
        if reason:
            self._skip_update(reason, metrics, self._find_suspects(parts, batches))
            return metrics, audio_s
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self._check_health(terms, metrics)
        return metrics, audio_s

    def _find_suspects(self, parts: Sequence[LossTerms], batches: Sequence[Batch]) -> list[str]:
        """List the utterances behind a skipped update, of all ranks: those of forwards that broke, else all."""
        broken = self.ranks.gather_lines(find_broken(parts, batches))
        counted = [batch for batch in batches if batch.plan.is_counted]
        return broken or self.ranks.gather_lines([utterance for batch in counted for utterance in batch.ids])

    def _sum_terms(
        self, terms: LossTerms, left_out: list[LeftOut], key: str, is_pass: bool = False
    ) -> tuple[LossTerms, list[LeftOut]]:
        """Add up the terms of all ranks, and take note of what each of them could not read."""
        terms.stats["left_out"] = torch.tensor(len(left_out), dtype=torch.float64)
        terms = self.ranks.sum_terms(terms)
        if terms.stats["left_out"]:
            left_out = unpack(self.ranks.gather_lines(pack(left_out)))
            if self.left_out is not None:
                self.left_out.note(key, left_out, is_pass)
        return terms, left_out

    def _pass_over(self, terms: LossTerms, lr: float, left_out: Sequence[LeftOut]) -> Metrics:
        """Let an update pass of which nothing can be read: it changes nothing, and has no values."""
        if len(left_out) > FEW:
            raise refuse("data.train", f"the {len(left_out)} utterances of update {self.progress.update}", left_out)
        metrics = self.objective.summarise(terms.blank(), self.progress.update) | {"grad_norm": math.nan, "lr": lr}
        metrics["skipped_updates"] = self.guard.skipped
        self._write_skipped("none of its utterances can be read", metrics, [each.id for each in left_out])
        return metrics

    def _skip_update(self, reason: str, metrics: Metrics, ids: list[str]) -> None:
        """Leave weights, moments and average as they are, and stop where that happens too often."""
        self._write_skipped(reason, metrics, ids)
        self.guard.check_count(self.progress.update, reason, ids)

    def _write_skipped(self, reason: str, metrics: Metrics, ids: list[str]) -> None:
        """Say why an update was skipped and which utterances were in it."""
        update = self.progress.update
        if self.ranks.is_main:
            _logger.warning("update %d skipped: %s; utterances %s", update, reason, name_utterances(ids))
        if self.skipped is not None:
            values = {name: metrics[name] for name in ("loss", "grad_norm")}
            self.skipped.write({"update": update, "reason": reason, **values, "ids": ids})

    def _run_forward(self, batch: Batch) -> LossTerms:
        """Run one forward and backward; dropout is a function of (seed, update, first sub-batch)."""
        first = batch.plan.sub_batches[0].number
        torch.manual_seed(make_torch_seed(self.setup.seed, "dropout", self.progress.update, first))
        with self.replica.accumulate(batch.plan.is_last):
            terms = self._compute(batch)
            # A forward that is not counted is made for the other ranks alone.
            total = terms.sum if batch.plan.is_counted else 0.0 * terms.sum
            total.backward()  # type: ignore[no-untyped-call]
        return _take(terms, batch)

    def _compute(self, batch: Batch) -> LossTerms:
        device = self.ranks.device
        with autocast(device, self.setup.precision, self.replica.caches_casts):
            return self.replica.compute(batch.to(device), self.progress.update)

    def _check_health(self, terms: LossTerms, metrics: Metrics) -> None:
        health = self.objective.check_health(terms, metrics, self.progress.update)
        if health is None:
            return
        metrics["collapse_warning"] = int(bool(health.warning))
        if health.problem and self.config.on_collapse == "stop":
            raise CollapseError(health.problem)
        is_new = bool(health.warning) and not self.was_warned
        if is_new or (health.problem and self.progress.update % self.config.log_every == 0):
            _logger.warning(health.problem or health.warning)
        self.was_warned = bool(health.warning)

    def _log_update(self, metrics: Metrics, audio_s: float, seconds: float) -> None:
        self.progress.audio_s += audio_s
        extra: Metrics = {"hours_seen": self.progress.audio_s / 3600, "audio_s_per_s": audio_s / max(seconds, 1e-9)}
        due = self.progress.update % self.config.log_every == 0 or self.progress.update == 1
        if due:
            extra |= measure_system(self.ranks.device)
        self._write("train", metrics | extra)
        if due and not self.setup.is_quiet:
            _logger.info(format_progress(self.progress.update, self.config.max_updates, "train", metrics | extra))

    def _finish_update(self, is_new: bool = True) -> None:
        """Validate, save and stop where this update asks for it.

        Args:
            is_new: False where a run begins or goes on, with a validation that may still be due.
        """
        update, config = self.progress.update, self.config
        if is_new and (update == 1 or update % config.digest_every == 0):
            self.replica.compare_weights(update)
        is_validated, is_best = self._validate_if_due()
        is_last = update == config.max_updates
        due = is_best or is_last or update % config.checkpoint_every == 0
        if due and update > 0 and (is_new or is_validated):
            self._save(is_best)
        stop = self.setup.stop
        stop.has_moved |= is_new
        reason = self.ranks.agree_to_stop(stop.check() if is_new or stop.is_requested else None)
        if reason is not None and (not is_last or self._is_validation_due()):
            self._stop(reason)

    @property
    def _must_stop_here(self) -> bool:
        """Whether to stop inside an update or a validation; several processes agree to stop between updates."""
        return self.ranks.is_alone and self.setup.stop.is_requested

    def _save(self, is_best: bool) -> None:
        if self.setup.store is not None:
            self.saver.save(self.state.take_snapshot(), is_best)
            self.saved_update = self.progress.update

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

    def _is_validation_due(self) -> bool:
        """Say whether this update asks for a validation that it has not had: also after a stop inside one."""
        update, config = self.progress.update, self.config
        if self.setup.validate is None or self.progress.validated_update == update:
            return False
        return update == config.max_updates or update % config.validate_every == 0

    def _validate_if_due(self) -> tuple[bool, bool]:
        """Validate where it is due, and say whether that was done, and whether it is the best one so far."""
        metrics = self._validate() if self._is_validation_due() else None
        if metrics is None:
            return False, False
        self.progress.validated_update = self.progress.update
        return True, self.progress.update > 0 and self._note_best(metrics)

    @torch.no_grad()
    def _validate(self) -> Metrics | None:
        """Run the objective over the validation batches in evaluation mode and log what it finds.

        Returns:
            The metrics; None where the run was asked to stop meanwhile.
        """
        assert self.setup.validate is not None, "no validation set"
        module = self.objective.module.eval()
        average = self.average if self.config.validate_ema else None
        parts, left_out = [], list[LeftOut]()
        with nullcontext() if average is None else average.applied():
            for batch in self.setup.validate():
                if self._must_stop_here:
                    return None
                parts.append(_take(self._compute(batch), batch))
                left_out += batch.left_out
        if self._must_stop_here:
            return None  # what came is not all
        module.train()
        terms, left_out = self._sum_terms(add_terms(parts), left_out, "data.valid", is_pass=True)
        if not terms.count:
            raise refuse("data.valid", "all of it", left_out)
        metrics = self.objective.summarise(terms, self.progress.update)
        self._write("valid", metrics | {"hours_seen": self.progress.audio_s / 3600})
        _logger.info(format_progress(self.progress.update, self.config.max_updates, "valid", metrics))
        return metrics

    def _note_best(self, metrics: Metrics) -> bool:
        """Say whether these validation metrics are the best so far, and remember them if so."""
        progress, names = self.progress, (self.objective.best_metric, self.objective.tie_metric)
        value, tie = (metrics[name] for name in names)
        assert isinstance(value, float) and isinstance(tie, float), f"{names} must be numbers"
        # Unknown in a run of before: whatever equals its best value has been trained for longer.
        best_tie = math.inf if progress.best_tie is None else progress.best_tie
        is_worse = progress.best_value is not None and (value, tie) >= (progress.best_value, best_tie)
        # NaN compares with nothing, so that it would be best until the next validation; a recogniser's WER hides it.
        is_finite = all(math.isfinite(number) for number in metrics.values() if isinstance(number, float))
        if is_worse or not is_finite or not self.objective.is_candidate(metrics):
            return False
        progress.best_value, progress.best_tie, progress.best_update = value, tie, progress.update
        return True

    def _write(self, split: str, metrics: Metrics) -> None:
        record: dict[str, Any] = {"update": self.progress.update, "split": split, **metrics}
        for writer in self.writers:
            writer.write(record)


def _take(terms: LossTerms, batch: Batch) -> LossTerms:
    """Take what a forward adds to the sums: nothing where it is not counted."""
    return terms.detach() if batch.plan.is_counted else terms.zero()
