"""The one loop, for pretraining, recognition and probes. It knows `Objective` and `Batch`, and no model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speechssl.audio import SAMPLE_RATE
from speechssl.config import TrainingConfig
from speechssl.data.loader import Batch
from speechssl.errors import CollapseError, SpeechSSLError, StoppedOnRequest
from speechssl.objectives.protocol import LossTerms, Metrics, Objective, add_terms, make_torch_seed
from speechssl.training.checkpoint import CheckpointStore
from speechssl.training.devices import autocast
from speechssl.training.distributed import Ranks
from speechssl.training.metrics import MetricsWriter
from speechssl.training.optim import build_optimizer, scale_gradients
from speechssl.training.replica import build_replica
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
        ranks: the processes that train together, and where this one computes.
        precision: how it computes.
        seed: of dropout.
        validate: the batches of one validation; None for none.
        store: where checkpoints go; None keeps none (a probe).
        open_writers: opens the writers of metrics for a run that goes on from an update.
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
    open_writers: Callable[[int], Sequence[MetricsWriter]] = lambda update: ()
    stop: StopFlag = field(default_factory=StopFlag)
    is_quiet: bool = False


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
        self.state = TrainingState(setup.objective, self.optimizer)
        self.writers: Sequence[MetricsWriter] = ()
        self.last: dict[str, Metrics] = {}

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.state.progress

    def run(self) -> dict[str, Metrics]:
        """Train to the end.

        Returns:
            The last metrics of each split.

        Raises:
            StoppedOnRequest: a signal or the time limit; the state is saved.
            CollapseError: pretraining collapsed and `training.on_collapse=stop`.
            SpeechSSLError: the loss is no longer finite.
        """
        self._resume()
        self.writers = self.setup.open_writers(self.progress.update)
        try:
            if self.progress.update == 0 and self.setup.validate is not None:
                self._validate()
            self._run_updates()
        finally:
            for writer in self.writers:
                writer.close()
        if self.setup.store is not None and self.ranks.is_main:
            self.setup.store.finish()
        return self.last

    def _resume(self) -> None:
        store = self.setup.store
        if store is None:
            return
        found = store.find_last() if self.ranks.is_main else None
        # One rank decides: another may see the folder of a network drive later.
        folder = self.ranks.broadcast(str(found or ""))
        if folder:
            store.load(Path(folder), self.state)
            _logger.info("resumed from %s", Path(folder).name)

    def _run_updates(self) -> None:
        first, last = self.progress.update + 1, self.config.max_updates
        if first > last:
            return
        start = time.monotonic()
        for batches in self.setup.source(first, last):
            self.progress.update += 1
            metrics, audio_s = self._make_update(batches)
            seconds = time.monotonic() - start
            self._log_update(metrics, audio_s, seconds)
            self._finish_update()
            self.ranks.set_timeout(self.config.timeout_s)
            start = time.monotonic()

    def _make_update(self, batches: Sequence[Batch]) -> tuple[Metrics, float]:
        """Make one update from its forwards; the gradient of the sum is divided once, by the count of all.

        Returns:
            The metrics of the update, and its seconds of audio, both over all ranks.
        """
        update, module = self.progress.update, self.objective.module
        module.train()
        self.replica.prepare(update)
        lr = compute_lr(self.config, update)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        terms = add_terms([self._run_forward(batch) for batch in batches])
        samples = sum(batch.valid_samples for batch in batches)
        terms.stats["samples"] = torch.tensor(samples, dtype=torch.float64)
        terms = self.ranks.sum_terms(terms)
        norm = float(scale_gradients(module, terms.count, self.config.clip_norm))
        metrics: Metrics = {**self.objective.summarise(terms, update), "grad_norm": norm, "lr": lr}
        self._check_finite(metrics)
        self.optimizer.step()
        self._check_health(terms, metrics)
        return metrics, float(terms.stats["samples"]) / SAMPLE_RATE

    def _run_forward(self, batch: Batch) -> LossTerms:
        """Run one forward and backward; dropout is a function of (seed, update, first sub-batch)."""
        first = batch.plan.sub_batches[0].number
        torch.manual_seed(make_torch_seed(self.setup.seed, "dropout", self.progress.update, first))
        with self.replica.accumulate(batch.plan.is_last):
            terms = self._compute(batch)
            terms.sum.backward()  # type: ignore[no-untyped-call]
        return terms.detach()

    def _compute(self, batch: Batch) -> LossTerms:
        device = self.ranks.device
        with autocast(device, self.setup.precision, self.replica.caches_casts):
            return self.replica.compute(batch.to(device), self.progress.update)

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

    def _finish_update(self) -> None:
        """Validate, save and stop where this update asks for it."""
        update, config = self.progress.update, self.config
        is_last = update == config.max_updates
        is_best = False
        if self.setup.validate is not None and (is_last or update % config.validate_every == 0):
            is_best = self._note_best(self._validate())
        reason = self.ranks.agree_to_stop(self.setup.stop.check())
        due = is_best or is_last or update % config.checkpoint_every == 0 or reason is not None
        if update == 1 or update % config.digest_every == 0:
            self.replica.compare_weights(update)
        if self.setup.store is not None and due:
            snapshot = self.state.take_snapshot()
            if self.ranks.is_main:
                self.setup.store.save(snapshot, is_best)
        if reason is not None and not is_last:
            message, code = reason
            raise StoppedOnRequest(f"{message} after update {update}; the same command goes on from there", code)

    @torch.no_grad()
    def _validate(self) -> Metrics:
        """Run the objective over the validation batches in evaluation mode and log what it finds."""
        assert self.setup.validate is not None, "no validation set"
        module = self.objective.module.eval()
        parts = []
        for batch in self.setup.validate():
            terms = self._compute(batch).detach()
            parts.append(terms if batch.plan.is_counted else terms.zero())
        module.train()
        metrics = self.objective.summarise(self.ranks.sum_terms(add_terms(parts)), self.progress.update)
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
        self.last[split] = metrics
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
