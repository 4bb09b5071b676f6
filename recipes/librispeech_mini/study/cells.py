"""What is compared: the budgets, the arms and the cells, as data. Nothing is run here.

A cell is one chain with one seed: pretraining where the arm has any, a fine-tuning for each set of labels, evaluation,
probes. A trial is a short cell that is evaluated on `dev` alone; what the trials say is written into `CHOSEN` below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from speechssl.errors import ConfigError

Keys = Mapping[str, Any]
"""Keys of a verb and their values."""

PREVIOUS, TEACHER_LAYER = "{previous}", "{teacher layer}"
"""As a value: the run folder of the pretraining before this one, and the block of it whose states are clustered."""

ALL, FEW, FEWEST = "all", "1h", "10m"
"""The sets of labels: all of `train`, an hour of it, ten minutes of it."""


@dataclass(frozen=True)
class Budget:
    """How much of everything.

    Attributes:
        model: preset of the network.
        network: keys of a network that is no preset.
        pretrain_updates: of a chain, over all its pretrainings.
        pretrain_update_s, finetune_update_s: seconds of audio an update; pretrained arms are equal in both.
        finetune_updates: by labels.
        trial_updates: of the fine-tuning of a trial, with an hour of labels.
        teacher_layer: block of the first k-means network that the second one clusters.
        long_factor: so many times the pretraining in the long chain.
        subsets: length of each smaller set of labels, as `prepare subset=` takes it.
        decodings: `greedy`, and `beam` with the 4-gram.
        chunk_s: seconds of an utterance that operations are counted for, in pretraining and in fine-tuning.
        fill: share of an update's seconds that is speech, in pretraining and in fine-tuning: batches of whole
            utterances leave room. Counted from the sampler's plan, as the records' `hours_seen` are.
        speeds: times real time that the estimates of `cells` assume, in pretraining and in fine-tuning.
        shared: keys of every training.
        probe: keys of every probe.
    """

    model: str = "small"
    network: Keys = field(default_factory=dict)
    pretrain_updates: int = 4000
    pretrain_update_s: float = 48.0
    finetune_updates: Mapping[str, int] = field(default_factory=lambda: {FEWEST: 800, FEW: 1600, ALL: 2800})
    finetune_update_s: float = 32.0
    trial_updates: int = 1000
    teacher_layer: int = 3
    long_factor: int = 5
    subsets: Mapping[str, str] = field(default_factory=lambda: {FEWEST: "10m", FEW: "1h"})
    decodings: tuple[str, ...] = ("greedy", "beam")
    chunk_s: tuple[float, float] = (6.0, 12.0)
    fill: tuple[float, float] = (0.99, 0.832)
    speeds: tuple[float, float] = (160.0, 110.0)
    shared: Keys = field(default_factory=dict)
    probe: Keys = field(default_factory=dict)


TWO_CORES = Budget()
"""The study of the table: 16.5 hours of two cores at its `speeds`."""

REHEARSAL = Budget(
    model="tiny",
    pretrain_updates=3,
    pretrain_update_s=8.0,
    finetune_updates={FEWEST: 3, FEW: 3, ALL: 3},
    finetune_update_s=8.0,
    trial_updates=3,
    teacher_layer=1,
    long_factor=2,
    subsets={FEWEST: "6s", FEW: "12s"},
    decodings=("greedy",),
    chunk_s=(2.0, 2.0),
    shared={"training.sub_batch_s": 8.0, "training.forward_s": 8.0, "logging.tensorboard": False},
    probe={"updates": 10, "num_resamples": 20},
)
"""Whether every step of every cell runs, in a minute."""

GPU: Mapping[str, Budget] = {
    "small": TWO_CORES,
    "12x512": Budget(
        network={
            "model.num_layers": 12,
            "model.model_dim": 512,
            "model.ffn_dim": 2048,
            "model.num_heads": 8,
            "model.layer_drop_prob": 0.05,
        },
        pretrain_updates=3000,
        pretrain_update_s=192.0,
        finetune_updates={FEW: 1000, ALL: 1600},
        finetune_update_s=96.0,
        teacher_layer=8,
        fill=(0.972, 0.896),
        shared={"training.lr": 5e-4},
    ),
}
"""On a GPU: the same cells with `small`, to the update, and a network of 12 blocks of 512 with four times the
audio in an update of pretraining and three times in one of fine-tuning."""

GPU_ARMS, GPU_SEEDS = ("scratch", "kmeans", "wav2vec2"), (1, 2, 3, 4, 5)

GPU_SINGLE_ARMS = ("random_projection", "scratch_short", "random_frozen")
"""Run with the first seed and `small` alone."""


@dataclass(frozen=True)
class Arm:
    """One way to come to a recogniser.

    Attributes:
        title: what the table calls it.
        pretrain: keys of each pretraining, one after the other; none for an arm without.
        finetune: keys of fine-tuning, fixed on `dev`.
        seeds: of its cells.
        is_matched: fine-tuning goes on until its operations are those of the dearest pretrained arm in all.
        trials: keys of fine-tuning that were tried on `dev`, by name.
    """

    title: str
    pretrain: tuple[Keys, ...] = ()
    finetune: Keys = field(default_factory=dict)
    seeds: tuple[int, ...] = (1,)
    is_matched: bool = False
    trials: Mapping[str, Keys] = field(default_factory=dict)


SPEED: Keys = {"data.speed_perturbation": [0.9, 1.0, 1.1]}
"""SpecAugment (`model.mask.*`) is in the preset of fine-tuning, for every arm."""

WAVEFORM: Keys = {"model.front_end": "convolutions"}
"""On the waveform `small` has as many parameters as with log-mel input, to 0.05 %."""

PRETRAINED_TRIALS: Mapping[str, Keys] = {
    "preset": {},
    "slow": {"training.lr": 5e-4},
    "late": {"training.freeze_share": 0.1},
    "speed": SPEED,
}
SCRATCH_TRIALS: Mapping[str, Keys] = {
    "log_mel": {},
    "log_mel_speed": SPEED,
    "waveform": WAVEFORM,
    "waveform_speed": {**WAVEFORM, **SPEED},
}

CHOSEN: Mapping[str, str] = {
    "scratch": "log_mel",
    "wav2vec2": "preset",
    "random_projection": "preset",
    "kmeans": "preset",
}
"""What the cells of each arm fine-tune with: the trial that was best on `dev` of those that have been run.

Run before `test` was first read: three of scratch, one of k-means codes. Since then the last one of scratch and both of
random projection, which changed nothing; for wav2vec 2.0 `preset` is an assumption.
"""

BETTER_OTHER = "kmeans"
"""The other objective that gets the seeds of the main arms; taken before `random_projection` was run."""

LONG_ARM = "kmeans"
"""The pretrained arm that gets the long chain; taken before `wav2vec2` and `random_projection` were run."""

SEEDS = (1, 2, 3)

_CODES = {"objective": "masked_codes", "objective.unmasked_weight": 1.0}
_PROJECTION_CODES = {**_CODES, "objective.targets": "random_projection", "objective.num_codes": 1024}
_MFCC_CODES = {
    **_CODES,
    "objective.targets": "kmeans",
    "objective.num_codes": 100,
    "objective.teacher": "mfcc",
    "objective.subtract_mean": True,
}
_LEARNED_CODES = {
    **_MFCC_CODES,
    "objective.num_codes": 200,
    "objective.teacher": PREVIOUS,
    "objective.teacher_layer": TEACHER_LAYER,
}


def list_arms() -> dict[str, Arm]:
    """List the arms by name, each with what was chosen for it."""

    def seeds(name: str) -> tuple[int, ...]:
        return SEEDS if name == BETTER_OTHER else SEEDS[:1]

    fresh = SCRATCH_TRIALS[CHOSEN["scratch"]]
    few = {name: PRETRAINED_TRIALS[name] for name in ("preset", "slow")}

    def tuned(name: str) -> Keys:
        return PRETRAINED_TRIALS[CHOSEN[name]]

    return {
        "scratch": Arm("from scratch, same total compute", (), fresh, SEEDS, True, SCRATCH_TRIALS),
        # What was run before the count of operations was mended; no cell of it is run any more.
        "scratch_less": Arm("from scratch, 4.3 times the fine-tuning (too few operations)", (), fresh, ()),
        "scratch_short": Arm("from scratch, same fine-tuning", (), fresh),
        "random_frozen": Arm("random encoder, frozen", (), {"training.freeze_share": 1.0}),
        "wav2vec2": Arm("wav2vec 2.0", ({},), tuned("wav2vec2"), SEEDS, trials=PRETRAINED_TRIALS),
        "random_projection": Arm(
            "random-projection codes",
            (_PROJECTION_CODES,),
            tuned("random_projection"),
            seeds("random_projection"),
            trials=few,
        ),
        "kmeans": Arm(
            "k-means codes, two iterations", (_MFCC_CODES, _LEARNED_CODES), tuned("kmeans"), seeds("kmeans"), trials=few
        ),
    }


@dataclass(frozen=True)
class Cell:
    """One chain with one seed.

    Attributes:
        name: of its folders.
        arm: name of the arm.
        seed: of everything in it.
        labels: sets of labels it is fine-tuned with, one after the other.
        kind: `main`, `long`, `gpu` with the network's name behind it, or `trial`, which reads no `test`.
        trial: name of the trial.
        factor: so many times the pretraining.
    """

    name: str
    arm: str
    seed: int
    labels: tuple[str, ...]
    kind: str = "main"
    trial: str = ""
    factor: int = 1


def list_cells(budget: Budget) -> dict[str, Cell]:
    """List all cells by name: the trials first, as they are run first."""
    arms = list_arms()
    cells = [
        Cell(f"trial-{name}-{trial}", name, SEEDS[0], (FEW,), "trial", trial)
        for name, arm in arms.items()
        for trial in arm.trials
    ]
    for name, arm in arms.items():
        # Ten minutes of labels once, for the record; not where that would cost another pretraining's time.
        once = () if arm.is_matched else (FEWEST,)
        cells += [
            Cell(f"{name}-{seed}", name, seed, (FEW, ALL, *(once if seed == SEEDS[0] else ()))) for seed in arm.seeds
        ]
    cells += [
        Cell(f"long-{name}-{SEEDS[0]}", name, SEEDS[0], (ALL,), "long", factor=budget.long_factor)
        for name in (LONG_ARM, "scratch")
    ]
    return {cell.name: cell for cell in cells}


def list_gpu_cells(scales: Iterable[str], num_seeds: int) -> list[Cell]:
    """List the cells on a GPU, the most wanted first: one seed of every network, then the others network by network.

    Seed by seed, so that every seed that is done has its pairs.
    """
    scales = list(scales)
    cells = [_make_gpu_cell(scale, arm, GPU_SEEDS[0]) for scale in scales for arm in GPU_ARMS]
    for scale in scales:
        cells += [_make_gpu_cell(scale, arm, seed) for seed in GPU_SEEDS[1:num_seeds] for arm in GPU_ARMS]
        if scale == "small":
            cells += [_make_gpu_cell(scale, arm, GPU_SEEDS[0]) for arm in GPU_SINGLE_ARMS]
    return cells


def _make_gpu_cell(scale: str, arm: str, seed: int) -> Cell:
    is_once = seed == GPU_SEEDS[0] and not list_arms()[arm].is_matched
    has_fewest = is_once and FEWEST in GPU[scale].finetune_updates
    return Cell(f"gpu-{scale}-{arm}-{seed}", arm, seed, (FEW, ALL, *((FEWEST,) if has_fewest else ())), f"gpu {scale}")


def find_cell(name: str, budget: Budget) -> Cell:
    """Find a cell by its name.

    Raises:
        ConfigError: there is none of this name.
    """
    cells = list_cells(budget)
    if name not in cells:
        raise ConfigError(f"`cell` must be one of {', '.join(cells)}, but is {name!r}")
    return cells[name]
