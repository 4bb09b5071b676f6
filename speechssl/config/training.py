"""The knobs of the optimizer, its schedule, bookkeeping and trackers. `config.py` passes them on.

The defaults are wav2vec 2.0 BASE (arXiv 2006.11477 and fairseq's configuration); `F:` in a source means fairseq.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from speechssl.config.knobs import DAY_S, check, check_choice, check_finite, knob

MAX_UPDATES, MAX_SUB_BATCHES, MAX_TIMEOUT_S = 10**9, 100_000, 7 * DAY_S
"""Far beyond every published training; more would be counted until memory ends."""


@dataclass(kw_only=True)
class TrainingConfig:
    """Optimizer, schedule and bookkeeping; the defaults are BASE on LibriSpeech 960 h."""

    max_updates: int = knob(400_000, "updates of the whole run", "updates", "§4.2")
    update_s: float = knob(5600.0, "audio per update, over all processes and forward passes", "s", "§4.2: 1.6 h")
    sub_batch_s: float = knob(87.5, "audio per sub-batch, the group of rows that share crop length, mask count and perplexity", "s", "F: max_tokens 1.4M")
    forward_s: float = knob(87.5, "most audio in one forward pass: changes memory use, never the result", "s")
    activation_checkpointing: bool = knob(False, "recompute transformer blocks in the backward pass: less memory, more time, same result")
    compile: bool = knob(False, "torch.compile the transformer blocks: takes minutes at the start, then faster on a GPU; rounding differs")
    deterministic: bool = knob(False, "use torch's deterministic algorithms: on a GPU the same run to the bit, but slower; a CPU always gives that")
    lr: float = knob(5e-4, "peak learning rate", "", "§4.2")
    schedule: str = knob("polynomial", "`polynomial` (linear to 0) or `tri_stage`", "", "F: lr_scheduler")
    schedule_updates: int = knob(0, "length of the learning-rate schedule; 0: training.max_updates when the run starts", "updates")
    warmup_share: float = knob(0.08, "share of the schedule in which the learning rate rises", "", "§4.2")
    hold_share: float = knob(0.4, "share of the schedule at the peak (tri_stage)", "", "F: phase_ratio")
    initial_lr_scale: float = knob(0.01, "learning rate at the first update, as a share of the peak (tri_stage)", "", "F: init_lr_scale")
    final_lr_scale: float = knob(0.05, "learning rate at the last update, as a share of the peak (tri_stage)", "", "F: final_lr_scale")
    beta1: float = knob(0.9, "decay of AdamW's first moment", "", "F: adam_betas")
    beta2: float = knob(0.98, "decay of AdamW's second moment", "", "F: adam_betas")
    eps: float = knob(1e-6, "AdamW's epsilon", "", "F: adam_eps")
    weight_decay: float = knob(0.01, "decoupled weight decay, on every parameter", "", "F: weight_decay")
    clip_norm: float = knob(0.0, "largest gradient norm; 0: no clipping", "", "F: clip_norm")
    freeze_share: float = knob(0.0, "share of the updates in which only the head is trained (fine-tuning); without `init` only 1 has an effect: the encoder stays random", "", "F: freeze_finetune_updates")
    unfreeze_share: float = knob(1.0, "share of the updates after which the blocks of `freeze_layers` learn too; 1: never")
    layer_lr_decay: float = knob(1.0, "factor on the learning rate from each block to the one below it, and from the head to the last; 1: all learn alike (fine-tuning)", "", "as ELECTRA, arXiv 2003.10555")
    checkpoint_every: int = knob(1000, "updates between checkpoints", "updates")
    validate_every: int = knob(1000, "updates between validations", "updates")
    patience: int = knob(0, "validations without a new best one after which the run is finished; 0: make all updates", "validations")
    keep_checkpoints: int = knob(2, "newest checkpoints to keep, beside the best; at least 2, since one may be damaged")
    max_hours: float = knob(0.0, "save and stop with exit code 75 after this time, set-up included; 0: no limit", "h")
    stop_when_late: bool = knob(False, "save and stop with exit code 75 as soon as the speed so far says that the run will not end within training.max_hours")
    on_collapse: str = knob("stop", "what to do when pretraining collapses: `stop` or `warn`")
    spike_sigmas: float = knob(10.0, "skip an update whose loss or gradient norm is this many robust standard deviations, of logarithms, above the last 128; 0: never", "", "docs/training.md")
    max_skipped_in_row: int = knob(5, "stop after this many skipped updates in a row", "updates")
    ema_decay: float = knob(0.0, "decay of a moving average of the weights, saved beside them; 0: none")
    validate_ema: bool = knob(False, "validate with the averaged weights, and choose the best checkpoint by them")
    log_every: int = knob(10, "updates between progress lines and system figures; metrics.jsonl has every update", "updates")
    sharding: str = knob("none", "with several processes: `none` keeps the whole model on each (DDP), `full` a part of it (FSDP2), for models too large for one GPU")
    digest_every: int = knob(100, "updates between checks that all processes have the same weights", "updates")
    timeout_s: float = knob(100.0, "how long a process waits for another before the run ends; 300 s until the first update is done", "s", "torchtitan: comm.train_timeout_seconds")

    def __post_init__(self) -> None:
        for item in fields(self):
            if isinstance(getattr(self, item.name), float):
                check_finite(f"training.{item.name}", getattr(self, item.name))
        self._check_sizes()
        self._check_schedule()
        self._check_optimizer()
        self._check_bookkeeping()

    def _check_sizes(self) -> None:
        check(1 <= self.max_updates <= MAX_UPDATES, "training.max_updates", f"between 1 and {MAX_UPDATES}", self.max_updates)
        for name in ("sub_batch_s", "forward_s"):
            check(0 < getattr(self, name) <= DAY_S, f"training.{name}", f"positive and at most {DAY_S:g} s, a day", getattr(self, name))
        ratio = self.update_s / self.sub_batch_s
        whole = abs(ratio - round(ratio)) < 1e-6 and round(ratio) >= 1
        check(whole, "training.update_s", f"a whole number of sub-batches of training.sub_batch_s ({self.sub_batch_s:g} s)", self.update_s)
        check(ratio < MAX_SUB_BATCHES + 1, "training.update_s", f"at most {MAX_SUB_BATCHES} sub-batches of training.sub_batch_s ({self.sub_batch_s:g} s)", self.update_s)
        check(self.forward_s >= self.sub_batch_s, "training.forward_s", f"at least training.sub_batch_s ({self.sub_batch_s:g} s)", self.forward_s)

    def _check_schedule(self) -> None:
        check_choice("training.schedule", self.schedule, ("polynomial", "tri_stage"))
        check(self.lr > 0, "training.lr", "positive", self.lr)
        check(0 <= self.schedule_updates <= MAX_UPDATES, "training.schedule_updates", f"between 1 and {MAX_UPDATES}, or 0 for training.max_updates", self.schedule_updates)
        for name in _SHARES:
            check(0 <= getattr(self, name) <= 1, f"training.{name}", "between 0 and 1", getattr(self, name))
        check(0 < self.layer_lr_decay <= 1, "training.layer_lr_decay", "positive and at most 1", self.layer_lr_decay)
        if self.schedule == "tri_stage":
            left = 1 - self.warmup_share
            check(self.hold_share <= left + 1e-9, "training.hold_share", f"at most {left:g}, what training.warmup_share leaves", self.hold_share)
            check(self.initial_lr_scale >= 0, "training.initial_lr_scale", "at least 0", self.initial_lr_scale)
            check(self.final_lr_scale > 0, "training.final_lr_scale", "positive, since the decay of tri_stage is exponential (polynomial reaches 0)", self.final_lr_scale)

    def _check_optimizer(self) -> None:
        check(0 <= self.beta1 < 1, "training.beta1", "at least 0 and less than 1", self.beta1)
        check(0 <= self.beta2 < 1, "training.beta2", "at least 0 and less than 1", self.beta2)
        check(self.eps >= 0, "training.eps", "at least 0", self.eps)
        check(self.weight_decay >= 0, "training.weight_decay", "at least 0", self.weight_decay)
        check(self.clip_norm >= 0, "training.clip_norm", "positive, or 0 for no clipping", self.clip_norm)
        check(0 <= self.ema_decay < 1, "training.ema_decay", "at least 0 and less than 1", self.ema_decay)
        check(self.ema_decay > 0 or not self.validate_ema, "training.validate_ema", "false without training.ema_decay", self.validate_ema)

    def _check_bookkeeping(self) -> None:
        for name in _INTERVALS:
            check(getattr(self, name) >= 1, f"training.{name}", "at least 1", getattr(self, name))
        check_choice("training.on_collapse", self.on_collapse, ("stop", "warn"))
        check(self.keep_checkpoints >= 2, "training.keep_checkpoints", "at least 2 (one may be damaged)", self.keep_checkpoints)
        check(self.patience >= 0, "training.patience", "positive, or 0 to make all updates", self.patience)
        check_choice("training.sharding", self.sharding, ("none", "full"))
        check(0 < self.timeout_s <= MAX_TIMEOUT_S, "training.timeout_s", f"positive and at most {MAX_TIMEOUT_S:g} s, a week", self.timeout_s)
        check(self.max_hours >= 0, "training.max_hours", "positive, or 0 for no limit", self.max_hours)
        check(self.max_hours > 0 or not self.stop_when_late, "training.stop_when_late", "false without training.max_hours", self.stop_when_late)
        check(self.spike_sigmas >= 0, "training.spike_sigmas", "positive, or 0 for none", self.spike_sigmas)
        check(self.max_skipped_in_row >= 1, "training.max_skipped_in_row", "at least 1", self.max_skipped_in_row)

    @property
    def planned_updates(self) -> int:
        """How many updates the schedule is laid over."""
        return self.schedule_updates or self.max_updates

    @property
    def sub_batches_per_update(self) -> int:
        """How many sub-batches make an update, over all ranks."""
        return round(self.update_s / self.sub_batch_s)


_SHARES = ("warmup_share", "hold_share", "freeze_share", "unfreeze_share")
_INTERVALS = ("checkpoint_every", "validate_every", "log_every", "digest_every")


@dataclass(kw_only=True)
class LoggingConfig:
    """Where metrics go beside metrics.jsonl."""

    tensorboard: bool = knob(True, "write tensorboard/ in the run folder")
    wandb_project: str = knob("", "also log to this Weights & Biases project (extra `wandb`); empty: no")
    mlflow_experiment: str = knob("", "also log to this MLflow experiment, at MLFLOW_TRACKING_URI (extra `mlflow`); empty: no")
