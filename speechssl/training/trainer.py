"""The one loop, for pretraining, recognition and probes. It knows `Objective` and `Batch`, and no model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from speechssl.config import TrainingConfig
from speechssl.data.loader import Batch
from speechssl.errors import CollapseError, SpeechSSLError, StoppedOnRequest
from speechssl.objectives.protocol import LossTerms, Metrics, Objective, add_terms, make_torch_seed
from speechssl.training.checkpoint import CheckpointStore
from speechssl.training.devices import autocast
from speechssl.training.metrics import MetricsWriter
from speechssl.training.optim import build_optimizer, scale_gradients
from speechssl.training.saver import Saver
from speechssl.training.schedules import compute_lr
from speechssl.training.state import Progress, TrainingState
from speechssl.training.stop import StopFlag

_logger = logging.getLogger("speechssl")

UpdateSource = Callable[[int, int], Iterator[list[Batch]]]
"""`source(first, last)`: the batches of each update from the first to the last, both included."""


@dataclass
class Setup:
    """What a training is made of.

    Attributes:
        objective: what is learned.
        config: optimizer, schedule and bookkeeping.
        source: batches of any range of updates.
        device, precision: where and how it runs.
        seed: of dropout.
        validate: the batches of one validation; None for none.
        store: where checkpoints go; None keeps none (a probe).
        open_writers: opens the writers of metrics for a run that goes on from where it stands.
        stop: says when to stop.
        is_quiet: no lines of progress.
    """

    objective: Objective
    config: TrainingConfig
    source: UpdateSource
    device: torch.device
    precision: str
    seed: int
    validate: Callable[[], Iterator[Batch]] | None = None
    store: CheckpointStore | None = None
    open_writers: Callable[[Progress], Sequence[MetricsWriter]] = lambda progress: ()
    stop: StopFlag = field(default_factory=StopFlag)
    is_quiet: bool = False


class Trainer:
    """Runs updates from wherever the run folder stands to `max_updates`.

    Everything that changes with time is a function of the update number, so that a resumed run makes the same
    updates as one that was never stopped.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.objective, self.config = setup, setup.objective, setup.config
        self.objective.module.to(setup.device)
        self.optimizer = build_optimizer(self.objective.module, self.config)
        self.state = TrainingState(setup.objective, self.optimizer)
        self.saver = Saver(setup.store)
        self.saved_update = 0
        self.writers: Sequence[MetricsWriter] = ()

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.state.progress

    def run(self) -> None:
        """Train to the end.

        Raises:
            StoppedOnRequest: a signal or the time limit; the state is saved.
            CollapseError: pretraining collapsed and `training.on_collapse=stop`.
            SpeechSSLError: the loss is no longer finite, or a checkpoint could not be saved.
        """
        self._resume()
        self.writers = self.setup.open_writers(self.progress)
        try:
            with self.saver:
                self._finish_update(is_new=False)
                self._run_updates()
        finally:
            for writer in self.writers:
                writer.close()
        if self.setup.store is not None:
            self.setup.store.finish()

    def _resume(self) -> None:
        store = self.setup.store
        folder = store.find_valid() if store is not None else None
        if store is None or folder is None:
            return
        self.setup.precision = store.load(folder, self.state).precision or self.setup.precision
        self.saved_update = self.progress.update
        _logger.info("resumed from %s", folder.name)

    def _run_updates(self) -> None:
        first, last = self.progress.update + 1, self.config.max_updates
        if first > last:
            return
        start = time.monotonic()
        for batches in self.setup.source(first, last):
            self.saver.check()
            self.progress.update += 1
            metrics = self._make_update(batches)
            if metrics is None:
                self.progress.update -= 1
                self._stop()
                return
            seconds = time.monotonic() - start
            self._log_update(metrics, sum(batch.audio_s for batch in batches), seconds)
            self._finish_update()
            start = time.monotonic()

    def _make_update(self, batches: Sequence[Batch]) -> Metrics | None:
        """Make one update from its forwards; the gradient of the sum is divided once, by the count of all.

        Returns:
            Its metrics; None where the run was asked to stop before its last forward, and nothing has changed.
        """
        update, module = self.progress.update, self.objective.module
        module.train()
        lr = compute_lr(self.config, update)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for batch in batches:
            if self.setup.stop.is_requested:
                return None
            parts.append(self._run_forward(batch))
        terms = add_terms(parts)
        norm = float(scale_gradients(module, terms.count, self.config.clip_norm))
        metrics: Metrics = {**self.objective.summarise(terms, update), "grad_norm": norm, "lr": lr}
        self._check_finite(metrics)
        self.optimizer.step()
        self._check_health(terms, metrics)
        return metrics

    def _run_forward(self, batch: Batch) -> LossTerms:
        """Run one forward and backward; dropout is a function of (seed, update, first sub-batch)."""
        first = batch.plan.sub_batches[0].number
        torch.manual_seed(make_torch_seed(self.setup.seed, "dropout", self.progress.update, first))
        with autocast(self.setup.device, self.setup.precision):
            terms = self.objective.compute(batch.to(self.setup.device), self.progress.update)
        terms.sum.backward()  # type: ignore[no-untyped-call]
        return terms.detach()

    def _check_finite(self, metrics: Metrics) -> None:
        for name in ("loss", "grad_norm"):
            value = metrics[name]
            if isinstance(value, float) and not math.isfinite(value):
                raise SpeechSSLError(
                    f"`training.lr` must be one that training survives, but with {self.config.lr:g} {name} is {value} "
                    f"at update {self.progress.update} (the checkpoints before it are whole)"
                )

    def _check_health(self, terms: LossTerms, metrics: Metrics) -> None:
        problem = self.objective.check_health(terms, metrics, self.progress.update)
        if problem and self.config.on_collapse == "stop":
            raise CollapseError(problem)
        if problem and self.progress.update % self.config.log_every == 0:
            _logger.warning(problem)

    def _log_update(self, metrics: Metrics, audio_s: float, seconds: float) -> None:
        self.progress.audio_s += audio_s
        extra: Metrics = {"hours_seen": self.progress.audio_s / 3600, "audio_s_per_s": audio_s / max(seconds, 1e-9)}
        self._write("train", metrics | extra)
        due = self.progress.update % self.config.log_every == 0 or self.progress.update == 1
        if due and not self.setup.is_quiet:
            _logger.info(format_progress(self.progress.update, self.config.max_updates, "train", metrics | extra))

    def _finish_update(self, is_new: bool = True) -> None:
        """Validate, save and stop where this update asks for it.

        Args:
            is_new: False where a run begins or goes on, with a validation that may still be due.
        """
        update, config = self.progress.update, self.config
        is_validated, is_best = self._validate_if_due()
        is_last = update == config.max_updates
        due = is_best or is_last or update % config.checkpoint_every == 0
        if due and update > 0 and (is_new or is_validated):
            self._save(is_best)
        stop = self.setup.stop
        reason = stop.check() if is_new or stop.is_requested else None
        if reason is not None and (not is_last or self._is_validation_due()):
            self._stop(reason)

    def _save(self, is_best: bool) -> None:
        if self.setup.store is not None:
            self.saver.save(self.state.take_snapshot(), is_best)
            self.saved_update = self.progress.update

    def _stop(self, reason: tuple[str, int] | None = None) -> None:
        """Save what is not saved yet, wait until it is on disk, and stop."""
        reason = reason or self.setup.stop.check()
        assert reason is not None, "nobody asked to stop"
        update, (message, code) = self.progress.update, reason
        if update == 0:
            raise StoppedOnRequest(f"{message} before the first update; the same command begins again", code)
        if update != self.saved_update:
            self._save(is_best=False)
        self.saver.wait()
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
        parts = []
        for batch in self.setup.validate():
            if self.setup.stop.is_requested:
                return None
            with autocast(self.setup.device, self.setup.precision):
                parts.append(self.objective.compute(batch.to(self.setup.device), self.progress.update).detach())
        module.train()
        metrics = self.objective.summarise(add_terms(parts), self.progress.update)
        self._write("valid", metrics | {"hours_seen": self.progress.audio_s / 3600})
        _logger.info(format_progress(self.progress.update, self.config.max_updates, "valid", metrics))
        return metrics

    def _note_best(self, metrics: Metrics) -> bool:
        """Say whether these validation metrics are the best so far, and remember them if so."""
        value = metrics[self.objective.best_metric]
        assert isinstance(value, float), f"{self.objective.best_metric} must be a number"
        best = self.progress.best_value
        if not self.objective.is_candidate(metrics) or (best is not None and value >= best):
            return False
        self.progress.best_value, self.progress.best_update = value, self.progress.update
        return True

    def _write(self, split: str, metrics: Metrics) -> None:
        record: dict[str, Any] = {"update": self.progress.update, "split": split, **metrics}
        for writer in self.writers:
            writer.write(record)


SHOWN = ("loss", "loss_contrastive", "accuracy", "hard_perplexity", "wer", "cer", "grad_norm", "lr", "audio_s_per_s")


def format_progress(update: int, total: int, split: str, metrics: Metrics) -> str:
    """Write one plain line of progress: the metrics that a user looks at first."""
    parts = [f"{name} {_format(metrics[name])}" for name in SHOWN if name in metrics]
    return f"{split} {update}/{total}  " + "  ".join(parts)


def _format(value: float | list[float]) -> str:
    if isinstance(value, list):
        return "+".join(f"{item:.0f}" for item in value)
    return f"{value:.2e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"
