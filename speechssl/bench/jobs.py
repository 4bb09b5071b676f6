"""The jobs of `speechssl bench`: the package's own steps, with marks between their parts."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from speechssl.bench.batches import make_batches, open_manifest
from speechssl.bench.flops import count_pretraining_heads, count_row, keep_share
from speechssl.bench.meter import Stopwatch, read_worker_mib
from speechssl.config.data import TextConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import BenchConfig
from speechssl.data.loader import Batch, collate_nothing
from speechssl.devices import autocast
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.ctc import CTCObjective
from speechssl.objectives.protocol import Metrics, Objective
from speechssl.objectives.wav2vec2 import ContrastiveObjective
from speechssl.seeds import make_torch_seed
from speechssl.text.vocabulary import build_vocabulary
from speechssl.training.optim import build_optimizer, scale_gradients
from speechssl.training.run import seed_weights, set_up_blocks


@dataclass(frozen=True)
class Work:
    """What one step did.

    Attributes:
        audio_s: seconds of audio, padding not counted.
        flop: operations of matrix products and convolutions (see `bench_flops`).
    """

    audio_s: float
    flop: float


class Job(Protocol):
    """Something that is done step by step."""

    module: nn.Module | None
    """What computes; None where nothing does."""

    transformer: nn.Module | None
    """Whose boundaries are marked; None where there is none."""

    def run_step(self, stopwatch: Stopwatch) -> Work:
        """Do one step, with a mark at the end of each part that is no network's."""
        ...


class TrainingJob:
    """Updates as `speechssl.training.trainer` makes them: one forward and backward, the optimizer, the metrics.

    Args:
        objective: what is learned.
        batches: the batches of each update; one of them each.
        config: of the optimizer.
        device, precision: where and how.
        seed: of dropout.
        count: operations of a batch.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Iterator[list[Batch]],
        config: TrainingConfig,
        device: tuple[torch.device, str],
        seed: int,
        count: Callable[[Batch], float],
    ) -> None:
        self.objective, self.batches, self.config, self.seed, self.count = objective, batches, config, seed, count
        self.device, self.precision = device
        self.module: nn.Module | None = objective.module.to(self.device).train()
        self.transformer: nn.Module | None = objective.module.get_submodule("backbone.transformer")
        self.optimizer = build_optimizer(objective.module, config)
        self.update = 0
        self.metrics: Metrics = {}

    def run_step(self, stopwatch: Stopwatch) -> Work:
        """Make one update; its metrics are in `metrics` afterwards."""
        self.update += 1
        module = self.objective.module
        batch = next(self.batches)[0]
        moved = batch.to(self.device)
        stopwatch.mark("data")
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(make_torch_seed(self.seed, "dropout", self.update, batch.plan.sub_batches[0].number))
        with autocast(self.device, self.precision):
            terms = self.objective.compute(moved, self.update)
        terms.sum.backward()  # type: ignore[no-untyped-call]
        # The last gradients are those of the convolutions.
        stopwatch.mark("front_end")
        terms = terms.detach()
        norm = float(scale_gradients(module, terms.count, self.config.clip_norm))
        stopwatch.mark("optimizer")
        self.metrics = {**self.objective.summarise(terms, self.update), "grad_norm": norm}
        stopwatch.mark("metrics")
        self.optimizer.step()
        stopwatch.mark("optimizer")
        if self.objective.watch is not None:
            self.objective.watch.observe(terms, self.metrics, self.update)
        stopwatch.mark("metrics")
        return Work(batch.audio_s, self.count(batch))


class ExtractionJob:
    """Forwards in inference mode, and the means over time of all layers, copied to the host.

    Args:
        model: in evaluation mode.
        batches: what is embedded.
        device, precision: where and how.
    """

    def __init__(self, model: SpeechModel, batches: Iterator[list[Batch]], device: tuple[torch.device, str]) -> None:
        self.device, self.precision = device
        self.model = model.to(self.device).eval()
        self.batches = batches
        self.module: nn.Module | None = self.model
        self.transformer: nn.Module | None = self.model.backbone.transformer

    @torch.inference_mode()
    def run_step(self, stopwatch: Stopwatch) -> Work:
        """Embed one batch."""
        batch = next(self.batches)[0]
        waveforms = batch.waveforms.to(self.device, non_blocking=True)
        stopwatch.mark("data")
        with autocast(self.device, self.precision):
            frames = self.model(waveforms)
        torch.stack([layer.float().mean(1) for layer in frames.layers]).cpu()
        stopwatch.mark("pooling")
        rows, num_samples = waveforms.shape
        return Work(batch.audio_s, rows * count_row(self.model.config, num_samples, backward=False))


class LoadingJob:
    """Batches of pretraining from a manifest, ready for the model, which there is none of.

    Args:
        batches: of the loader.
    """

    def __init__(self, batches: Iterator[list[Batch]]) -> None:
        self.batches = batches
        self.module: nn.Module | None = None
        self.transformer: nn.Module | None = None

    def run_step(self, stopwatch: Stopwatch) -> Work:
        """Wait for one batch."""
        batch = next(self.batches)[0]
        stopwatch.mark("data")
        return Work(batch.audio_s, 0.0)

    def read_worker_mib(self) -> float | None:
        """Return the largest memory of a loader worker in MiB; None without workers."""
        return read_worker_mib([child.pid for child in multiprocessing.active_children() if child.pid is not None])


def build_job(config: BenchConfig, device: tuple[torch.device, str]) -> TrainingJob | ExtractionJob | LoadingJob:
    """Build the job that `job` names, with freshly drawn weights.

    Args:
        config: of the bench; for `ctc` its network has the values of fine-tuning.
        device: device and precision.
    """
    seed_weights(config.seed)
    if config.job == "ctc":
        return _build_ctc(config, device)
    if config.job == "extract":
        model = SpeechModel(config.model)
        set_up_blocks(model, activation_checkpointing=False, compile=config.compile)
        return ExtractionJob(model, make_batches(config, collate_nothing), device)
    objective = ContrastiveObjective(config.model, ContrastiveConfig(), config.seed, TrainingConfig().max_updates)
    batches = _open_batches(config, objective, device[0])
    if config.job == "load":
        return LoadingJob(batches)
    set_up_blocks(objective.module, config.activation_checkpointing, config.compile)

    def count(batch: Batch) -> float:
        rows, num_samples = batch.waveforms.shape
        heads = count_pretraining_heads(config.model, float(batch.inputs["mask"].sum()) / rows)
        return rows * count_row(config.model, num_samples, heads, kept=keep_share(config.model))

    return TrainingJob(objective, batches, TrainingConfig(), device, config.seed, count)


def _open_batches(config: BenchConfig, objective: ContrastiveObjective, device: torch.device) -> Iterator[list[Batch]]:
    if not config.data.train:
        return make_batches(config, objective.make_collate())
    source = replace(open_manifest(config, device), make_collate=objective.make_collate)
    return source(1, config.warmup_steps + config.steps)


def _build_ctc(config: BenchConfig, device: tuple[torch.device, str]) -> TrainingJob:
    vocabulary = build_vocabulary(TextConfig(), ())
    objective = CTCObjective(SpeechModel(config.model, vocabulary), config.seed)
    set_up_blocks(objective.module, config.activation_checkpointing, config.compile)
    batches = make_batches(config, objective.make_collate(), whole=True)
    network = config.model

    def count(batch: Batch) -> float:
        rows, num_samples = batch.waveforms.shape
        head = 2.0 * network.count_outputs(num_samples) * network.model_dim * len(vocabulary)
        return rows * count_row(network, num_samples, head, kept=keep_share(network))

    return TrainingJob(objective, batches, TrainingConfig(), device, config.seed, count)
