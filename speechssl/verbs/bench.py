"""`speechssl bench`: how fast this machine does the package's work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.bench.jobs import Job, LoadingJob, Work, build_job
from speechssl.bench.meter import PARTS_METHOD, MemoryMeter, Stopwatch, measure_ceiling, read_device_name, watch_parts
from speechssl.config.verbs import BenchConfig
from speechssl.data.loader import choose_workers
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
    _check(config)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    out = resolve_out(config.out, "bench", config.overwrite)
    computes = config.job != "load"
    ceiling = measure_ceiling(device, precision) if computes else 0.0
    start = time.perf_counter()
    job = build_job(config, (device, precision))
    result = _describe(config, device, precision) | {"build_s": time.perf_counter() - start, "out": str(out)}
    memory = MemoryMeter(device)
    steps = _run_steps(config, job, device)
    # Of `load` this is the first batch; warm-up or not.
    result |= {"first_step_s": steps[0].seconds, "peak_mib": memory.read_mib()}
    steps, group = steps[config.warmup_steps :], 1
    if isinstance(job, LoadingJob):
        # Workers finish side by side, so single batches come in bursts.
        num_workers = choose_workers(config.data.num_workers, device.type == "cuda")
        group = max(1, min(num_workers, config.steps))
        result |= {"num_workers": num_workers, "worker_mib": job.read_worker_mib()}
    result |= _summarise(steps, group)
    if computes:
        assert job.module is not None
        # Measured on both sides of the steps, since the neighbours of a shared machine come and go.
        ceiling = max(ceiling, measure_ceiling(device, precision))
        rate = median(step.work.flop / step.seconds for step in steps)
        result |= {
            "parameters": sum(parameter.numel() for parameter in job.module.parameters()),
            "gflop_per_audio_s": sum(step.work.flop for step in steps) / sum(step.work.audio_s for step in steps) / 1e9,
            "gflop_per_s": rate / 1e9,
            "peak_gflop_per_s": ceiling / 1e9,
            "share_of_peak": rate / ceiling,
        }
    write_result(out, result)
    return result


def _check(config: BenchConfig) -> None:
    """Refuse data that the job has no use for, and rows that are too short: pretraining needs room for its masks."""
    if config.job == "load" and not config.data.train:
        raise ConfigError("`data.train` must be given for job=load (manifests to read), but is missing")
    if config.job in ("ctc", "extract") and config.data.train:
        raise ConfigError(f"`data.train` must be left out for job={config.job}, but is {config.data.train}")
    frames = config.model.count_frames(round(config.seconds * SAMPLE_RATE))
    least = 1 if config.job == "extract" else compute_min_frames(config.model.mask)
    if frames < least:
        raise ConfigError(
            f"`seconds` must give at least {least} frames of 20 ms, but {config.seconds:g} gives {frames}"
        )


class _Step(NamedTuple):
    """What one step took in all and by part, and what it did."""

    seconds: float
    parts: dict[str, float]
    work: Work


def _run_steps(config: BenchConfig, job: Job, device: torch.device) -> list[_Step]:
    """Run the steps and time them, those of the warm-up first."""
    stopwatch, steps = Stopwatch(device), list[_Step]()
    with watch_parts(job.transformer, stopwatch) if job.transformer is not None else nullcontext():
        for _ in track(range(config.warmup_steps + config.steps), f"bench {config.job}", unit="steps"):
            start = time.perf_counter()
            stopwatch.begin()
            work = job.run_step(stopwatch)
            # On a GPU this waits for the step to end.
            parts = stopwatch.finish()
            steps.append(_Step(time.perf_counter() - start, parts, work))
    return steps


def _summarise(steps: Sequence[_Step], group: int) -> dict[str, Any]:
    """Turn times into figures: medians, and how far the middle half spreads; rates are those of `group` steps each."""
    groups = [steps[first : first + group] for first in range(0, len(steps) - group + 1, group)]
    rates = [sum(step.work.audio_s for step in part) / sum(step.seconds for step in part) for part in groups]
    names = dict.fromkeys(name for step in steps for name in step.parts)
    parts = {name: median(step.parts.get(name, 0.0) for step in steps) for name in names}
    inner = {name.partition("/")[2]: parts.pop(name) for name in names if "/" in name}
    if inner:
        inner["rest"] = max(0.0, parts["transformer"] - sum(inner.values()))
    return {
        "audio_s_per_s": median(rates),
        "spread_percent": compute_spread(rates),
        "step_s": median(step.seconds for step in steps),
        "parts_s": parts,
        "transformer_s": inner,
        "parts_method": PARTS_METHOD,
    }


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
