"""The pretraining step with its optimizer: ours and that of `transformers`, side by side.

    python -m tests.benchmarks.pretrain_step model=base batch=4 seconds=5

Both get batches that are made beforehand, masks and negatives included. `transformers` runs as in its own example
for pretraining without a trainer: its model and default attention, torch's AdamW, gradients divided by the number of
masked frames, the gradient norm, the Gumbel temperature of each step; in float32, and under bf16 autocast. What is
compiled (`torch.compile`) takes part where `--only` names it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.bench.batches import NUM_BATCHES, make_noise
from speechssl.bench.flops import count_pretraining_heads, count_row, keep_share
from speechssl.bench.jobs import build_job
from speechssl.bench.meter import Stopwatch
from speechssl.cli.compose import compose
from speechssl.config.model import ModelConfig
from speechssl.config.verbs import BenchConfig
from speechssl.devices import autocast, resolve_device
from tests.benchmarks.side_by_side import COMPILED, Contest, Contestant, hold, make_parser

NAMES = (
    "ours float32",
    "ours bf16",
    "ours compiled bf16",
    "transformers float32",
    "transformers bf16",
    "transformers compiled bf16",
)
NUM_NEGATIVES = 100


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = make_parser(str(__doc__).splitlines()[0]).parse_intermixed_args(words)
    given = {word.partition("=")[0] for word in options.words}
    # One step a run: the finer the turns, the less the neighbours of a shared machine matter.
    defaults = [] if "steps" in given else ["steps=1"]
    config: BenchConfig = compose("bench", ["pretrain", *options.words, *defaults])
    device = resolve_device(config.device)
    title = f"Pretraining step, {config.model.name}, {config.batch} × {config.seconds:g} s, {config.steps} steps a run"
    build = partial(build_contestant, config, device)
    contest = Contest(title, "tests.benchmarks.pretrain_step", words, device, build, NAMES)
    print(hold(contest, options, warmup=config.warmup_steps))


def build_contestant(config: BenchConfig, device: torch.device, name: str) -> Contestant:
    """Build one of `NAMES`; a run is `steps` steps."""
    library, precision = name.split()[0], name.split()[-1]
    config = replace(config, compile=COMPILED in name)
    step = OurStep(config, device, precision) if library == "ours" else TheirStep(config, device, precision)

    def run() -> None:
        for _ in range(config.steps):
            step()

    audio_s = config.steps * config.batch * config.seconds
    return Contestant(name, precision, run, audio_s, config.steps * count_step(config))


def count_step(config: BenchConfig) -> float:
    """Count the operations of a step; the masked frames are those that are expected."""
    num_samples = round(config.seconds * SAMPLE_RATE)
    frames = config.model.count_frames(num_samples)
    mask = config.model.mask
    masked = frames * (1.0 - (1.0 - mask.prob / mask.length) ** mask.length)
    heads = count_pretraining_heads(config.model, masked)
    return config.batch * count_row(config.model, num_samples, heads, kept=keep_share(config.model))


class OurStep:
    """The package's step, as `speechssl bench` runs it."""

    def __init__(self, config: BenchConfig, device: torch.device, precision: str) -> None:
        self.job = build_job(config, (device, precision))
        self.stopwatch = Stopwatch(device)

    def __call__(self) -> None:
        self.stopwatch.begin()
        self.job.run_step(self.stopwatch)


class TheirStep:
    """A step of `transformers`, with the network of the same dimensions and dropout probabilities."""

    def __init__(self, config: BenchConfig, device: torch.device, precision: str) -> None:
        from transformers import Wav2Vec2ForPreTraining

        torch.manual_seed(config.seed)
        self.device, self.precision, self.done = device, precision, 0
        self.quantizer = config.model.quantizer
        self.model = Wav2Vec2ForPreTraining(make_their_config(config.model)).to(device).train()
        self.optimizer = torch.optim.AdamW(list(self.model.parameters()), lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
        self.batches = cycle(make_their_batches(config, device))
        self.forward = torch.compile(self.model) if config.compile else self.model

    def __call__(self) -> None:
        batch = next(self.batches)
        num_losses = batch["mask_time_indices"].sum()
        with autocast(self.device, self.precision):
            outputs = self.forward(**batch)
        outputs.loss.backward()
        self._scale_gradients(1.0 / num_losses)
        self._compute_gradient_norm()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        quantizer = self.quantizer
        temperature = quantizer.temperature_start * quantizer.temperature_decay**self.done
        self.model.set_gumbel_temperature(max(temperature, quantizer.temperature_end))

    def _scale_gradients(self, factor: torch.Tensor) -> None:
        """Multiply one gradient after the other, as their example does."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.data.mul_(factor)

    def _compute_gradient_norm(self) -> float:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return sum(float(gradient.detach().norm(2)) ** 2 for gradient in gradients) ** 0.5


def make_their_config(network: ModelConfig) -> Any:
    """Make a `Wav2Vec2Config` of the same network, with its dropout."""
    from tests.parity.hf_weights import make_hf_config

    theirs = make_hf_config(network, NUM_NEGATIVES)
    theirs.hidden_dropout, theirs.attention_dropout = network.dropout, network.attention_dropout
    theirs.activation_dropout, theirs.feat_proj_dropout = network.activation_dropout, network.input_dropout
    theirs.feat_quantizer_dropout, theirs.layerdrop = network.feature_dropout, network.layer_drop_prob
    theirs.mask_time_prob, theirs.mask_time_length = network.mask.prob, network.mask.length
    return theirs


def make_their_batches(config: BenchConfig, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """Make batches of the same noise, with masks and negatives by their functions."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

    network, rng = config.model, np.random.default_rng(config.seed)
    num_samples = round(config.seconds * SAMPLE_RATE)
    shape = (config.batch, network.count_frames(num_samples))
    batches = []
    for _ in range(NUM_BATCHES):
        waveforms = np.stack([make_noise(num_samples, rng) for _ in range(config.batch)])
        mask = _compute_mask_indices(shape, network.mask.prob, network.mask.length)
        negatives = _sample_negative_indices(shape, NUM_NEGATIVES, mask)
        arrays = {"input_values": waveforms, "mask_time_indices": mask, "sampled_negative_indices": negatives}
        batches.append({name: torch.from_numpy(array).to(device) for name, array in arrays.items()})
    return batches


if __name__ == "__main__":
    main()
