"""On real LibriSpeech, where it is present: the untrained loss is that of guessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.audio.reading import load_audio
from speechssl.cli.compose import compose
from speechssl.data.dataset import Example
from speechssl.data.loader import stack
from speechssl.data.sampler import ForwardPlan, SubBatch
from speechssl.objectives.wav2vec2 import ContrastiveObjective

SPEECH = Path(__file__).resolve().parents[3] / "shared" / "data" / "LibriSpeech" / "dev"

pytestmark = pytest.mark.skipif(not SPEECH.is_dir(), reason="the project's copy of LibriSpeech is not here")


@pytest.mark.parametrize(
    ("name", "tolerance"), [pytest.param("base", 0.02, marks=pytest.mark.slow), ("small", 0.03), ("tiny", 0.07)]
)
def test_untrained_loss_is_chance(name: str, tolerance: float) -> None:
    """log2(101) bits for 100 negatives, in evaluation mode and with Gumbel noise."""
    config = compose("pretrain", [f"model={name}", "out=x"])
    torch.manual_seed(1)
    objective = ContrastiveObjective(config.model, config.objective, 1, 100)
    examples = read_examples(4, 160_000)
    prepared = objective.make_collate()(examples, 1, 0)
    plan = ForwardPlan(1, (SubBatch(0, 0, (0, 1, 2, 3), 160_000),), True)
    batch = stack(plan, [(examples, prepared)])
    for training in (False, True):
        objective.module.train(training)
        with torch.no_grad():
            metrics = objective.summarise(objective.compute(batch, 1), 1)
        assert metrics["loss_contrastive"] == pytest.approx(np.log2(101), rel=tolerance)


def read_examples(count: int, num_samples: int) -> list[Example]:
    waves = (load_audio(path) for path in sorted(SPEECH.rglob("*.ogg"))[::8])
    return [
        Example(str(k), w[:num_samples], None, None) for k, w in enumerate(w for w in waves if len(w) >= num_samples)
    ][:count]
