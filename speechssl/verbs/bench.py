"""`speechssl bench`: how fast this machine does the package's work."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.bench.jobs import Job, LoadingJob, Work, build_job
from speechssl.bench.meter import PARTS_METHOD, MemoryMeter, Stopwatch, measure_ceiling, read_device_name, watch_parts
from speechssl.config.verbs import BenchConfig
from speechssl.devices import resolve_device, resolve_precision
from speechssl.durable import write_result
from speechssl.errors import ConfigError
from speechssl.model.masking import compute_min_frames
from speechssl.progress import track
from speechssl.training.run_folder import describe_environment
from speechssl.verbs.frame import verb
from speechssl.verbs.output import resolve_out


@verb
def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure one job, write `result.json` to `out`, and return it.

    Raises:
        ConfigError: the rows are too short, or the job cannot be measured with `data.train` as it is.
    """
    _check_data(config)
    _check_length(config)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    out = resolve_out(config.out, "bench", config.overwrite)
    computes = config.job != "load"
    ceiling = measure_ceiling(device, precision) if computes else 0.0
    start = time.perf_counter()
    job = build_job(config, (device, precision))
    build_s = time.perf_counter() - start
    measured = _measure(config, job, device)
    if computes:
        # Measured on both sides of the steps, since the neighbours of a shared machine come and go.
        ceiling = max(ceiling, measure_ceiling(device, precision))
    figures = _summarise(measured, ceiling) | {"build_s": build_s, "out": str(out)}
    result = _describe(config, device, precision) | figures
    write_result(out, result)
    return result


def _check_data(config: BenchConfig) -> None:
    if config.job == "load" and not config.data.train:
        raise ConfigError("`data.train` must be given for job=load (manifests to read), but is missing")
    if config.job in ("ctc", "extract") and config.data.train:
        raise ConfigError(f"`data.train` must be left out for job={config.job}, but is {config.data.train}")


def _check_length(config: BenchConfig) -> None:
    """Refuse rows that the job cannot use: pretraining needs room for its masks, everything else one frame."""
    network = config.model
    frames = network.count_frames(round(config.seconds * SAMPLE_RATE))
    least = compute_min_frames(network.mask) if config.job in ("pretrain", "load", "ctc") else 1
    if frames < least:
        raise ConfigError(
            f"`seconds` must give at least {least} frames of 20 ms, but {config.seconds:g} gives {frames}"
        )


@dataclass
class _Measured:
    """What the steps gave.

    Attributes:
        first_s: seconds from the start of the first step to its end, warm-up included: for `load` the first batch.
        seconds: of each measured step.
        work: of each measured step.
        parts: seconds of each part, of each measured step.
        peak_mib: largest memory from before the first step on; None where the system does not tell.
        parameters: numbers that are learned; 0 without a network.
        group: steps that one figure is taken over.
        extra: what only this job has.
    """

    first_s: float
    seconds: list[float]
    work: list[Work]
    parts: list[dict[str, float]]
    peak_mib: float | None
    parameters: int
    group: int
    extra: dict[str, Any]


def _measure(config: BenchConfig, job: Job, device: torch.device) -> _Measured:
    """Run the steps and time them, those of the warm-up apart."""
    stopwatch, memory = Stopwatch(device), MemoryMeter(device)
    seconds, work, parts = [], [], []
    watched = watch_parts(job.transformer, stopwatch) if job.transformer is not None else nullcontext()
    with watched:
        for _ in track(range(config.warmup_steps + config.steps), f"bench {config.job}", unit="steps"):
            start = time.perf_counter()
            stopwatch.begin()
            work.append(job.run_step(stopwatch))
            # On a GPU this waits for the step to end.
            parts.append(stopwatch.finish())
            seconds.append(time.perf_counter() - start)
    extra: dict[str, Any] = {}
    group = 1
    if isinstance(job, LoadingJob):
        # Workers finish side by side, so single batches come in bursts.
        group = max(1, min(config.data.num_workers, config.steps))
        extra = {"num_workers": config.data.num_workers, "worker_mib": job.read_worker_mib()}
    skip = config.warmup_steps
    parameters = sum(parameter.numel() for parameter in job.module.parameters()) if job.module is not None else 0
    return _Measured(seconds[0], seconds[skip:], work[skip:], parts[skip:], memory.read_mib(), parameters, group, extra)


def _summarise(measured: _Measured, ceiling: float) -> dict[str, Any]:
    """Turn times into figures: medians over steps, and how far the middle half of the steps spreads."""
    groups = range(0, len(measured.seconds) - measured.group + 1, measured.group)
    rates, flop_rates = [], []
    for first in groups:
        steps = slice(first, first + measured.group)
        total = sum(measured.seconds[steps])
        rates.append(sum(work.audio_s for work in measured.work[steps]) / total)
        flop_rates.append(sum(work.flop for work in measured.work[steps]) / total)
    names = list(dict.fromkeys(name for parts in measured.parts for name in parts))
    result: dict[str, Any] = {
        "audio_s_per_s": median(rates),
        "spread_percent": compute_spread(rates),
        "step_s": median(measured.seconds),
        "first_step_s": measured.first_s,
        "peak_mib": measured.peak_mib,
        "parts_s": {name: median([parts.get(name, 0.0) for parts in measured.parts]) for name in names},
        "parts_method": PARTS_METHOD,
    }
    if ceiling:
        audio_s = sum(work.audio_s for work in measured.work)
        result |= {
            "parameters": measured.parameters,
            "gflop_per_audio_s": sum(work.flop for work in measured.work) / audio_s / 1e9,
            "gflop_per_s": median(flop_rates) / 1e9,
            "peak_gflop_per_s": ceiling / 1e9,
            "share_of_peak": median(flop_rates) / ceiling,
        }
    return result | measured.extra


def compute_spread(values: list[float]) -> float:
    """Return the distance of the quartiles in percent of the median."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(100 * (high - low) / middle)


def _describe(config: BenchConfig, device: torch.device, precision: str) -> dict[str, Any]:
    """Say what was measured, and on what."""
    environment = describe_environment()
    return {
        "bench": config.job,
        "model": config.model.name,
        "batch": config.batch,
        "seconds": config.seconds,
        "steps": config.steps,
        "warmup_steps": config.warmup_steps,
        "data": list(config.data.train) or "noise",
        "precision": precision,
        "device": str(device),
        "device_name": read_device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": environment["python"], **environment["packages"]},
        "git_revision": environment["git_revision"],
        "date": time.strftime("%Y-%m-%d"),
    }
