"""The fine-tuning step with its optimizer, on rows of mixed length: ours and that of `transformers`, side by side.

    python -m tests.benchmarks.ctc_step model=base batch=4 seconds=12

The longest of `batch` rows has `seconds`, the shortest a third of them, and everyone gets the same rows, made
beforehand, and transcripts as long. Both train everything but the convolutions, with masks over time and channels and
dropout of the fine-tuning preset; `transformers` is told what is padding where its model wants that (layer norm), and
not where it does not (group norm), as its documentation says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import cycle

import numpy as np
import torch

from speechssl.audio.reading import SAMPLE_RATE
from speechssl.bench.batches import NUM_BATCHES, make_noise
from speechssl.bench.flops import count_row, keep_share
from speechssl.bench.jobs import TrainingJob
from speechssl.bench.meter import Stopwatch
from speechssl.cli.compose import compose
from speechssl.config.data import TextConfig
from speechssl.config.training import TrainingConfig
from speechssl.config.verbs import BenchConfig
from speechssl.data.dataset import Example, FloatArray
from speechssl.data.loader import Batch, pad_stack, stack
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.devices import autocast, resolve_device
from speechssl.model.speech_model import SpeechModel
from speechssl.objectives.ctc import CTCObjective
from speechssl.text.vocabulary import Vocabulary, build_vocabulary
from speechssl.training.run import seed_weights
from tests.benchmarks.pretrain_step import make_their_config
from tests.benchmarks.side_by_side import Contest, Contestant, hold, make_parser

NAMES = ("ours float32", "ours bf16", "transformers float32", "transformers bf16")
LETTERS_PER_S = 14


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = make_parser(str(__doc__).splitlines()[0]).parse_intermixed_args(words)
    config: BenchConfig = compose("bench", ["ctc", *options.words])
    device = resolve_device(config.device)
    title = f"Fine-tuning step, {config.model.name}, {config.batch} rows of up to {config.seconds:g} s"
    build = partial(build_contestant, config, device)
    print(hold(Contest(title, "tests.benchmarks.ctc_step", words, device, build, NAMES), options, config.warmup_steps))


def make_rows(config: BenchConfig, number: int) -> list[Example]:
    """Make the rows of one batch, the longest first."""
    rng = np.random.default_rng([config.seed, number])
    lengths = np.linspace(1.0, 1 / 3, config.batch) * config.seconds
    rows: list[tuple[FloatArray, str]] = []
    for seconds in lengths.tolist():
        letters = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), round(seconds * LETTERS_PER_S)))
        rows.append((make_noise(round(seconds * SAMPLE_RATE), rng), letters))
    return [Example(str(index), waveform, text, None) for index, (waveform, text) in enumerate(rows)]


def build_contestant(config: BenchConfig, device: torch.device, name: str) -> Contestant:
    """Build one of `NAMES`; a run is one step."""
    library, precision = name.split()
    batches = [make_rows(config, number) for number in range(NUM_BATCHES)]
    make = make_our_step if library == "ours" else TheirStep
    audio_s = sum(len(example.waveform) for example in batches[0]) / SAMPLE_RATE
    kept = keep_share(config.model)
    flop = sum(count_row(config.model, len(example.waveform), kept=kept) for example in batches[0])
    return Contestant(name, precision, make(config, device, precision, batches), audio_s, flop)


class OurStep:
    """The package's step, as the trainer makes it."""

    def __init__(self, job: TrainingJob, device: torch.device) -> None:
        self.job, self.stopwatch = job, Stopwatch(device)

    def __call__(self) -> None:
        self.stopwatch.begin()
        self.job.run_step(self.stopwatch)


def make_our_step(config: BenchConfig, device: torch.device, precision: str, rows: list[list[Example]]) -> OurStep:
    vocabulary = build_vocabulary(TextConfig(), ())
    seed_weights(config.seed)
    objective = CTCObjective(SpeechModel(config.model, vocabulary), config.seed)
    collate, batches = objective.make_collate(), []
    for number, examples in enumerate(rows):
        plan = ForwardPlan(number + 1, (SubBatch(number, 0, tuple(range(len(examples))), 0),), is_last=True)
        batches.append([stack(plan, [(examples, collate(examples, config.seed, number))])])
    where = (device, precision)
    return OurStep(TrainingJob(objective, cycle(batches), TrainingConfig(), where, config.seed, _count_nothing), device)


def _count_nothing(_: Batch) -> float:
    return 0.0


class TheirStep:
    """A step of `transformers` with the network of the same dimensions and probabilities."""

    def __init__(self, config: BenchConfig, device: torch.device, precision: str, batches: list[list[Example]]) -> None:
        from transformers import Wav2Vec2ForCTC

        network, vocabulary = config.model, build_vocabulary(TextConfig(), ())
        theirs = make_their_config(network)
        theirs.update({"vocab_size": len(vocabulary), "pad_token_id": 0, "ctc_zero_infinity": True})
        theirs.update({"final_dropout": network.head_dropout, "ctc_loss_reduction": "mean"})
        theirs.update({"mask_feature_prob": network.mask.channel_prob, "mask_feature_length": 64})
        torch.manual_seed(config.seed)
        self.device, self.precision = device, precision
        self.model = Wav2Vec2ForCTC(theirs).to(device).train()
        self.model.freeze_feature_encoder()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6)
        has_mask = network.conv_norm == "layer"
        self.batches = cycle([self._collate(rows, vocabulary, has_mask) for rows in batches])

    def __call__(self) -> None:
        with autocast(self.device, self.precision):
            loss = self.model(**next(self.batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _collate(self, rows: list[Example], vocabulary: Vocabulary, has_mask: bool) -> dict[str, torch.Tensor]:
        labels = [np.array(vocabulary.encode(row.text or ""), dtype=np.int64) + 1 for row in rows]
        batch = {"input_values": pad_stack([row.waveform for row in rows]), "labels": pad_stack(labels) - 1}
        # -100 marks the padding of labels.
        batch["labels"] = torch.where(batch["labels"] < 0, -100, batch["labels"])
        if has_mask:
            batch["attention_mask"] = pad_stack([np.ones(len(row.waveform), dtype=np.int64) for row in rows])
        return {name: value.to(self.device) for name, value in batch.items()}


if __name__ == "__main__":
    main()
