#!/usr/bin/env python
"""Everything that a table of one GPU's speed needs, in one command, with the profile that explains it.

    python tools/gpu_table.py out=gpu data.train=train.tsv          # on the machine with the GPU
    python tools/gpu_table.py out=/tmp/gpu rehearse=true            # anywhere: tiny, on the CPU, on noise

`data.train` is a manifest (`speechssl prepare` makes one). Every row is a process of its own, and its output lies in
`out` beside `table.md`. A row that failed says so, and the exit status is then 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
from torch.profiler import ProfilerActivity, profile

from speechssl.bench.batches import make_noise
from speechssl.bench.jobs import build_job
from speechssl.bench.meter import Stopwatch, read_device_name
from speechssl.cli.compose import compose
from speechssl.data.files import expand_audio
from speechssl.data.manifest import save_manifest

ROOT = Path(__file__).parents[1]
REHEARSED_UTTERANCES = 12


@dataclass(frozen=True)
class Scale:
    """What is measured.

    Attributes:
        network, large: presets.
        device, precision: of our own rows; what runs beside others runs in both precisions.
        batch, seconds: of a step.
        steps: of each bench.
        updates: of the pretraining that is run whole.
        workers: of its loader.
        repeats: turns beside others.
    """

    network: str
    large: str
    device: str
    precision: str
    batch: int
    seconds: float
    steps: int
    updates: int
    workers: int
    repeats: int


GPU = Scale("base", "large", "cuda", "bf16", 16, 15.6, 30, 300, 12, 5)
REHEARSAL = Scale("tiny", "tiny", "cpu", "float32", 2, 1.0, 2, 4, 1, 1)


def list_commands(scale: Scale, manifest: Path, folder: Path) -> dict[str, list[str]]:
    """Name each row and give its command."""
    where = [f"device={scale.device}", f"precision={scale.precision}"]
    size = [f"batch={scale.batch}", f"seconds={scale.seconds}"]
    bench = [sys.executable, "-m", "speechssl", "bench"]
    count = [f"steps={scale.steps}", "warmup_steps=2"]
    data = [f"data.train=[{manifest}]", f"data.num_workers={scale.workers}"]
    audio_s = scale.batch * scale.seconds
    plan = [f"training.{key}={audio_s}" for key in ("update_s", "sub_batch_s", "forward_s")]
    side = [*size, f"device={scale.device}", "steps=1", "warmup_steps=2", "--repeats", str(scale.repeats)]

    def make_bench(job: str, network: str, *words: str) -> list[str]:
        return [
            *bench,
            job,
            network,
            *where,
            *size,
            *count,
            f"out={folder / f'bench-{job}-{network}-{len(words)}'}",
            *words,
        ]

    return {
        "pretrain, whole run": [
            *[sys.executable, "-m", "speechssl", "pretrain", f"model={scale.network}", *where, *data, *plan],
            *[
                f"data.max_s={scale.seconds}",
                f"training.max_updates={scale.updates}",
                "training.checkpoint_every=1000000",
            ],
            *["data.min_s=0.5", f"data.cache_dir={folder / 'cache'}", f"out={folder / 'run'}"],
        ],
        "bench pretrain, loader included": make_bench("pretrain", scale.network, *data, "overwrite=true"),
        "bench pretrain": make_bench("pretrain", scale.network),
        "bench pretrain, large": make_bench("pretrain", scale.large, "overwrite=true"),
        "bench ctc": make_bench("ctc", scale.network),
        "bench extract": make_bench("extract", scale.network),
        "bench load": make_bench("load", scale.network, *data),
        "side by side, positions": [
            *[sys.executable, "-m", "tests.benchmarks.positions", f"model={scale.network}", *side],
            "--no-memory",
        ],
        "side by side, pretraining step": [
            *[sys.executable, "-m", "tests.benchmarks.pretrain_step", f"model={scale.network}", *side],
        ],
        "side by side, extraction": [
            *[sys.executable, "-m", "tests.benchmarks.extraction", f"model={scale.network}", f"device={scale.device}"],
            *["warmup_steps=1", "--manifest", str(manifest), "--repeats", str(scale.repeats), "--no-memory"],
            *["--utterances", str(min(60, count_rows(manifest)))],
        ],
    }


def count_rows(manifest: Path) -> int:
    """Count the utterances of a manifest."""
    return len(expand_audio([str(manifest)]))


def make_manifest(folder: Path) -> Path:
    """Write noise and a manifest of it, for the rehearsal."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for number in range(REHEARSED_UTTERANCES):
        soundfile.write(folder / "audio" / f"{number}.flac", make_noise(32_000, rng), 16_000)
    path = folder / "rehearsal.tsv"
    save_manifest(expand_audio([str(folder / "audio")]), path)
    return path


def read_rate(name: str, output: str, folder: Path) -> str:
    """Read the figure of a row: audio seconds a second, its share of the peak, its memory."""
    if name.startswith("side by side"):
        return "see below"
    if name == "pretrain, whole run":
        lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rates = [row["audio_s_per_s"] for row in map(json.loads, lines) if row.get("split") == "train"]
        rates = rates[len(rates) // 5 :]
        low, high = np.percentile(rates, [25, 75])
        return f"{median(rates):.0f} × real time (quartiles {low:.0f} to {high:.0f}), {len(rates)} updates"
    result = json.loads(output.splitlines()[-1])
    share = result.get("share_of_peak")
    parts = [f"{result['audio_s_per_s']:.0f} × real time"]
    parts += [f"{100 * share:.1f} % of the measured peak"] if share else []
    parts += [f"{result['peak_mib']:.0f} MiB"] if result.get("peak_mib") else []
    return ", ".join(parts)


def profile_steps(scale: Scale) -> str:
    """Profile three pretraining steps: time by operation, on the device where there is one."""
    words = [f"model={scale.network}", f"batch={scale.batch}", f"seconds={scale.seconds}"]
    device = torch.device(scale.device)
    job = build_job(compose("bench", ["pretrain", *words]), (device, scale.precision))
    stopwatch = Stopwatch(device)
    for _ in range(2):
        job.run_step(stopwatch)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(3):
            job.run_step(stopwatch)
        if on_gpu:
            torch.cuda.synchronize(device)
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=80))


def main(argv: list[str]) -> int:
    """Profile, run every row, write `table.md`, and print it."""
    given = dict(word.partition("=")[::2] for word in argv)
    scale = REHEARSAL if given.get("rehearse") == "true" else GPU
    folder = Path(given.get("out") or tempfile.mkdtemp()).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Path(given["data.train"]).resolve() if "data.train" in given else make_manifest(folder)
    lines = [
        f"{time.strftime('%Y-%m-%d')}; {read_device_name(torch.device(scale.device))}; torch {torch.__version__}",
        "",
    ]
    lines += ["| row | figure | command |", "| --- | --- | --- |"]
    (folder / "profile.txt").write_text(profile_steps(scale), encoding="utf-8")
    details, failed = [], 0
    for name, command in list_commands(scale, manifest, folder).items():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        log = folder / f"{name.replace(' ', '_').replace(',', '')}.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        status = done.returncode
        failed |= status != 0
        figure = f"failed, exit status {status}" if status else read_rate(name, done.stdout, folder)
        words = " ".join(command[1:]).replace(str(folder), "OUT").replace(str(manifest), "MANIFEST")
        lines.append(f"| {name} | {figure} | `{words}` |")
        if name.startswith("side by side") and status == 0:
            details += ["", done.stdout.replace(str(manifest), "MANIFEST")]
        print(lines[-1], file=sys.stderr, flush=True)
        # After every row: a lent machine's time may be up before the last one.
        (folder / "table.md").write_text("\n".join([*lines, *details]) + "\n", encoding="utf-8")
    print((folder / "table.md").read_text(encoding="utf-8"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
