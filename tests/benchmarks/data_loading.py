"""The loader of pretraining: rate by codec and workers, and what a million rows cost.

    python -m tests.benchmarks.data_loading --manifest m/train.tsv

Utterances of a manifest (without one: noise) are written anew in each codec to a temporary folder. The loader makes
what a pretraining of BASE gets, masks and negatives included, and nobody computes with it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import soundfile
import torch

from speechssl.audio.reading import SAMPLE_RATE, load_audio
from speechssl.bench.meter import read_device_name, read_worker_mib
from speechssl.config.model import ModelConfig
from speechssl.config.objective import ContrastiveConfig
from speechssl.data.dataset import ReadOptions
from speechssl.data.loader import iterate_updates
from speechssl.data.manifest import Manifest, Utterance, build_manifest, load_manifest, save_manifest
from speechssl.data.sampler import PlanConfig, UpdatePlanner
from speechssl.objectives.wav2vec2 import ContrastiveCollate
from tests.benchmarks.extraction import open_utterances
from tests.benchmarks.side_by_side import ROOT

CODECS = {"flac": ("FLAC", "PCM_16"), "wav": ("WAV", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}
CROP_S = 15.6
SUB_BATCH_S = 87.5
NUM_WORKERS = (0, 1, 2)
PSS_UPDATES = 4
"""Updates after which the memory of workers is read."""


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--manifest", default="", help="utterances at 16 kHz; without it noise")
    parser.add_argument("--utterances", type=int, default=240, help="how many, at 1 x")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the lengths of the noise")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large manifest")
    parser.add_argument("--repeats", type=int, default=3, help="passes of each codec and each size")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.measure:
        print(json.dumps(measure_manifest(options.measure)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = open_utterances(options.manifest, options.utterances, options.scale, folder, 1)
        coded = {codec: write_codec(source, folder / codec, codec) for codec in CODECS}
        hardware = f"{read_device_name(torch.device('cpu'))}, {os.cpu_count()} cores"
        command = f"python -m tests.benchmarks.data_loading {' '.join(words)}".strip()
        print(f"{time.strftime('%Y-%m-%d')}; {hardware}; {len(source)} utterances, {source.total_s:.0f} s; `{command}`")
        print(f"\n{format_codecs(coded, options.repeats)}")
        print(f"\n{format_growth(coded['opus'], options.repeats)}")
        print(f"\n{format_rows(coded['opus'], options.rows, folder)}")


def write_codec(source: Manifest, folder: Path, codec: str) -> Manifest:
    """Write all utterances in one codec."""
    folder.mkdir()
    container, subtype = CODECS[codec]
    rows = []
    for index in range(len(source)):
        utterance = source[index]
        samples = load_audio(utterance.path, utterance.offset, utterance.num_samples)
        path = folder / f"{index:05d}.{codec}"
        soundfile.write(path, samples, SAMPLE_RATE, format=container, subtype=subtype)
        rows.append(Utterance(f"{index:05d}", path, SAMPLE_RATE, soundfile.info(path).frames))
    return build_manifest(rows, folder)


def repeat_rows(manifest: Manifest, count: int) -> Manifest:
    """Make a manifest of `count` rows, each of an utterance that is there, with names of their own."""
    table = manifest.table.take(pa.array(np.arange(count) % len(manifest)))
    ids = pa.array([f"{number % 2_000}-{number // 2_000:06d}-{number:08d}" for number in range(count)])
    return Manifest(table.set_column(table.column_names.index("id"), "id", ids), manifest.root, manifest.source)


def make_planner(manifest: Manifest) -> UpdatePlanner:
    """Plan updates of one sub-batch of BASE."""
    samples = int(SUB_BATCH_S * SAMPLE_RATE)
    return UpdatePlanner(manifest.num_samples_16k, PlanConfig(1, samples, 1, samples, int(CROP_S * SAMPLE_RATE)))


def make_collate() -> ContrastiveCollate:
    """Make masks and negatives as pretraining of BASE does."""
    return ContrastiveCollate(ModelConfig(), ContrastiveConfig().num_negatives)


def time_epoch(manifest: Manifest, num_workers: int) -> float:
    """Return audio seconds a second of one epoch, the start of workers and the plan included."""
    start, audio_s = time.perf_counter(), 0.0
    planner = make_planner(manifest)
    updates = (1, planner.sub_batches_per_epoch)
    for batches in iterate_updates(manifest, planner, ReadOptions(1), make_collate(), updates, num_workers):
        audio_s += batches[0].audio_s
    return audio_s / (time.perf_counter() - start)


def format_codecs(coded: dict[str, Manifest], repeats: int) -> str:
    """Write a row a codec: median times real time by workers."""
    heads = " | ".join(f"{count} workers" for count in NUM_WORKERS)
    lines = [f"| codec | {heads} |", f"| --- |{' ---: |' * len(NUM_WORKERS)}"]
    for codec, manifest in coded.items():
        several = repeat_rows(manifest, 4 * len(manifest))
        cells = [f"{median(time_epoch(several, count) for _ in range(repeats)):.0f} ×" for count in NUM_WORKERS]
        lines.append(f"| {codec} ({CODECS[codec][1]}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_growth(manifest: Manifest, repeats: int) -> str:
    """Write times real time for 1, 4 and 16 times the data, two workers, turn by turn."""
    sizes = {factor: repeat_rows(manifest, factor * len(manifest)) for factor in (1, 4, 16)}
    rates: dict[int, list[float]] = {factor: [] for factor in sizes}
    for _ in range(repeats):
        for factor, several in sizes.items():
            rates[factor].append(time_epoch(several, 2))
    lines = ["| data | hours | an epoch, times real time | of 4 × |", "| --- | ---: | ---: | ---: |"]
    for factor, several in sizes.items():
        share = median(rates[factor]) / median(rates[4])
        lines.append(f"| {factor} × | {several.total_s / 3600:.2f} | {median(rates[factor]):.0f} | {share:.2f} |")
    return "\n".join(lines)


def format_rows(manifest: Manifest, count: int, folder: Path) -> str:
    """Write what a large manifest costs beside a small one, each measured in a process of its own."""
    lines = [
        "| manifest | opens, s | adds, MiB | plans an epoch, s | loader to first batch, s | worker, MiB (PSS) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rows in (len(manifest), count):
        large = repeat_rows(manifest, rows)
        for suffix in (".parquet", ".tsv"):
            path = folder / f"{rows}{suffix}"
            save_manifest(large, path)
            command = [sys.executable, "-m", "tests.benchmarks.data_loading", "--measure", str(path)]
            path_of_code = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": path_of_code}, stdout=subprocess.PIPE, text=True, check=True
            )
            cells = [f"{value:.2f}" for value in json.loads(done.stdout).values()]
            lines.append(f"| {rows} rows, {suffix} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_manifest(path: str) -> dict[str, float]:
    """Open a manifest in this process, plan an epoch, start two workers, wait for a batch, read their memory."""
    before, start = _read_rss_mib(), time.perf_counter()
    manifest = load_manifest(path)
    opened, added = time.perf_counter() - start, _read_rss_mib() - before
    start = time.perf_counter()
    planner = make_planner(manifest)
    planner.plan_update(1)
    planned = time.perf_counter() - start
    start = time.perf_counter()
    updates = (1, PSS_UPDATES + 8)
    batches = iterate_updates(manifest, make_planner(manifest), ReadOptions(1), make_collate(), updates, 2)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(PSS_UPDATES):
        next(batches)
    pids = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    worker = read_worker_mib(pids) or float("nan")
    return {"opens": opened, "adds": added, "plans": planned, "first": first, "worker": worker}


def _read_rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
