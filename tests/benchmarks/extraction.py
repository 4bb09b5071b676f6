"""Utterance means of all layers, from files to an array on disk: ours, `transformers` and torchaudio, side by side.

    python -m tests.benchmarks.extraction model=base --manifest m/dev-clean.tsv
    python -m tests.benchmarks.extraction model=base model.family=wavlm model.position_buckets=320 --manifest …

Everyone has the same weights: freshly drawn ones, exported by the package. `transformers` is fed one utterance at a
time, as its users do, and batched with padding; torchaudio is batched. Batches of others are sorted by length and hold
as much audio as ours. Without a manifest the utterances are noise with lengths like those of LibriSpeech.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.bench.batches import make_noise
from speechssl.bench.flops import count_row
from speechssl.cli.compose import compose
from speechssl.config.verbs import BenchConfig
from speechssl.data.files import expand_audio
from speechssl.data.loader import pad_stack
from speechssl.data.manifest import Manifest
from speechssl.devices import autocast, resolve_device
from speechssl.inference.embed import Embedder, Rows, choose_layers
from speechssl.inference.embedding_files import write_embeddings
from speechssl.inference.source import Source
from speechssl.interop.load import load_model, write_model
from speechssl.model.speech_model import SpeechModel
from speechssl.training.run import seed_weights
from tests.benchmarks.side_by_side import Contest, Contestant, hold, make_parser

NAMES = (
    "ours float32",
    "ours bf16",
    "transformers one by one float32",
    "transformers batched float32",
    "transformers batched bf16",
    "torchaudio batched float32",
    "torchaudio batched bf16",
)

Forward = Callable[[Tensor, Tensor | None], Sequence[Tensor]]
"""Gives the layers (B, T, D) of padded waveforms (B, N) with the valid samples (B,) of each row."""


@dataclass(frozen=True)
class Task:
    """What everyone embeds.

    Attributes:
        config: keys of the bench.
        manifest: the utterances, at 16 kHz.
        folder: where models and results are.
        device: where networks run.
        batch_s: seconds of audio that a batch may hold, padding included.
    """

    config: BenchConfig
    manifest: Manifest
    folder: Path
    device: torch.device
    batch_s: float


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(str(__doc__).splitlines()[0])
    parser.add_argument("--manifest", default="", help="utterances at 16 kHz; without it noise")
    parser.add_argument("--utterances", type=int, default=60, help="how many")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the lengths of the noise")
    parser.add_argument("--batch-s", type=float, default=60.0, help="audio a batch, in seconds, padding included")
    options = parser.parse_intermixed_args(words)
    config: BenchConfig = compose("bench", ["extract", *options.words])
    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = open_utterances(options.manifest, options.utterances, options.scale, folder, config.seed)
        export_model(config, folder)
        task = Task(config, manifest, folder, device, options.batch_s)
        title = f"Extraction, {config.model.name}, {len(manifest)} utterances, {manifest.total_s:.0f} s"
        build = partial(build_contestant, task)
        contest = Contest(title, "tests.benchmarks.extraction", words, device, build, NAMES)
        # A run holds many utterances, so one is enough to warm up.
        print(hold(contest, options, warmup=min(config.warmup_steps, 1)))
        if not options.memory:
            print(f"\n{compare_results(folder, len(manifest))}")


def open_utterances(path: str, count: int, scale: float, folder: Path, seed: int) -> Manifest:
    """Open a manifest's `count` utterances that lie evenly in it, or write noise as FLAC files."""
    if path:
        manifest = expand_audio([path])
        return manifest.select(np.linspace(0, len(manifest) - 1, count).astype(np.int64))
    rng = np.random.default_rng(seed)
    # The middle of LibriSpeech's test sets is 6 s, and few utterances are longer than 30 s.
    lengths = scale * np.clip(np.exp(rng.normal(np.log(6.0), 0.7, count)), 1.5, 30.0)
    (folder / "audio").mkdir()
    for number, seconds in enumerate(lengths):
        noise = make_noise(round(float(seconds) * SAMPLE_RATE), rng)
        soundfile.write(folder / "audio" / f"{number:03d}.flac", noise, SAMPLE_RATE)
    return expand_audio([str(folder / "audio")])


def export_model(config: BenchConfig, folder: Path) -> None:
    """Draw weights and write them in the formats of all contestants."""
    seed_weights(config.seed)
    model = SpeechModel(config.model)
    write_model(model, folder / "ours", "speechssl")
    write_model(model, folder / "theirs", "huggingface")
    write_model(model, folder / "torchaudio.pt", "torchaudio")


def build_contestant(task: Task, name: str) -> Contestant:
    """Build one of `NAMES`; a run embeds everything, and writes `<name>.npy` (utterances, layers, D)."""
    way, _, precision = name.rpartition(" ")
    out = task.folder / f"{name}.npy"
    if way == "ours":
        run = build_ours(task, precision, out)
    else:
        forward = load_transformers(task) if way.startswith("transformers") else load_torchaudio(task)
        batches = plan(task.manifest, 0.0 if "one by one" in way else task.batch_s)
        run = partial(embed_batches, task, forward, batches, precision, out)
    network = task.config.model
    flop = sum(count_row(network, int(samples), backward=False) for samples in task.manifest.num_samples_16k)
    return Contestant(name, precision, run, task.manifest.total_s, flop)


def build_ours(task: Task, precision: str, out: Path) -> Callable[[], None]:
    """Embed as `speechssl embed layer=all` does."""
    model = load_model(str(task.folder / "ours"), task.device)
    embedder = Embedder(model, choose_layers("all", model.num_layers), "mean", task.batch_s, precision=precision)

    def run() -> None:
        rows = Rows(embedder, Source.from_manifest(task.manifest))
        write_embeddings(out, rows.iterate(), rows.schema)

    return run


def load_transformers(task: Task) -> Forward:
    """Load their model, with its default attention; a mask says what is padding."""
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(task.folder / "theirs").to(task.device).eval()

    def forward(waveforms: Tensor, num_samples: Tensor | None) -> Sequence[Tensor]:
        mask = None
        if num_samples is not None:
            mask = (torch.arange(waveforms.shape[1], device=waveforms.device) < num_samples[:, None]).long()
        layers: Sequence[Tensor] = model(waveforms, attention_mask=mask, output_hidden_states=True).hidden_states
        return layers

    return forward


def load_torchaudio(task: Task) -> Forward:
    """Load torchaudio's model, which gives the outputs of its blocks and not what enters the first."""
    from torchaudio.models import wav2vec2_model, wavlm_model

    facts = json.loads((task.folder / "torchaudio.json").read_text(encoding="utf-8"))
    is_wavlm = task.config.model.position_buckets > 0
    model = (wavlm_model if is_wavlm else wav2vec2_model)(**facts["torchaudio"])
    model.load_state_dict(torch.load(task.folder / "torchaudio.pt"))
    model.to(task.device).eval()

    def forward(waveforms: Tensor, num_samples: Tensor | None) -> Sequence[Tensor]:
        # Their WavLM cannot be told what is padding, and attends to it.
        layers: Sequence[Tensor] = model.extract_features(waveforms, None if is_wavlm else num_samples)[0]
        return layers

    return forward


def plan(manifest: Manifest, batch_s: float) -> list[list[int]]:
    """Put utterances of like length together, as many as `batch_s` seconds hold; at least one."""
    lengths = manifest.num_samples_16k
    batches: list[list[int]] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        longest = int(lengths[batches[-1][0]]) if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_s * SAMPLE_RATE:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@torch.inference_mode()
def embed_batches(task: Task, forward: Forward, batches: Sequence[list[int]], precision: str, out: Path) -> None:
    """Read, embed and write, as a user of the library would."""
    network = task.config.model
    made: dict[int, np.ndarray] = {}
    for batch in batches:
        audio = [soundfile.read(task.manifest[index].path, dtype="float32")[0] for index in batch]
        waveforms = pad_stack(audio).to(task.device)
        num_samples = torch.tensor([len(row) for row in audio], device=task.device)
        with autocast(task.device, precision):
            layers = forward(waveforms, num_samples if len(batch) > 1 else None)
        counts = network.count_frames(num_samples).tolist()
        stacked = torch.stack([layer.float() for layer in layers])
        for row, (index, count) in enumerate(zip(batch, counts, strict=True)):
            made[index] = stacked[:, row, :count].mean(1).cpu().numpy()
    np.save(out, np.stack([made[index] for index in range(len(made))]))


def compare_results(folder: Path, num_utterances: int) -> str:
    """Write how far each result is from ours in float32: the lowest cosine over utterances and block outputs."""
    found = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
    if NAMES[0] not in found:
        return ""
    # Ours is (utterances × layers, D); torchaudio lacks what enters the first block.
    shaped = {name: array.reshape(num_utterances, -1, array.shape[-1]) for name, array in found.items()}
    reference = shaped[NAMES[0]][:, 1:]
    lines = ["| result | lowest cosine to ours in float32 |", "| --- | ---: |"]
    for name, array in shaped.items():
        layers = array[:, -reference.shape[1] :]
        norms = np.linalg.norm(layers, axis=-1) * np.linalg.norm(reference, axis=-1)
        lines.append(f"| {name} | {((layers * reference).sum(-1) / norms).min():.6f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
